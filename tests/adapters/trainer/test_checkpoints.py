from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from aegir_adapters.trainer import SidecarCallback, observe, verify_resume
from aegir_adapters.trainer.identity import drift_between, run_identity
from aegir_stream import codec
from aegir_stream.config import P5Cfg
from aegir_stream.errors import IdentityDriftError
from aegir_stream.events import Note, Open, SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.standing import run_state

from .tiny import LAYERS, TOP_K, Recorded, TinySAE, grpo_trainer, model, saes

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


class LoadedSAE(TinySAE):
    """An SAE that knows the file it came from."""

    def __init__(self, path: str) -> None:
        super().__init__(seed=0)
        self.path = path

    def identity(self) -> dict[str, Any]:
        """Return its seed and its file."""
        return super().identity() | {"path": self.path}


def records_of(path: Path) -> list[SAELogRecord]:
    """Return the data lines of one file."""
    lines = path.read_bytes().splitlines()
    return [codec.decode(line, SAELogRecord) for line in lines if not codec.is_control(line)]


def steps_of(path: Path) -> set[int]:
    """Return the steps whose records a file holds."""
    return {record.step for record in records_of(path)}


def test_a_checkpoint_seals_its_records_and_describes_them(tmp_path: Path) -> None:
    """Each checkpoint holds the records since the last one, and the live tail none of them."""
    trainer = grpo_trainer(tmp_path, **SAVING)
    observe(trainer, sae=saes(), top_k=TOP_K, metadata={"run_id": "r1", "catalog_version": 7})
    trainer.train()

    run, recorded = RunDirectory.at(tmp_path), Recorded(tmp_path)
    assert [c.name for c in run.checkpoints()] == ["checkpoint-2", "checkpoint-4"]
    assert steps_of(run.snapshot("checkpoint-2")) == {1, 2}
    assert steps_of(run.snapshot("checkpoint-4")) == {3, 4}
    assert not recorded.records
    for checkpoint in run.checkpoints():
        metadata, seal = (
            run.read_metadata(checkpoint.name),
            run.seal_of(run.snapshot(checkpoint.name)),
        )
        assert seal is not None
        assert metadata["seal"] == {
            "segment": seal.segment,
            "records": seal.records,
            "bytes": seal.bytes,
            "crc32": seal.crc32,
        }
        lengths = [c.length for c in recorded.completions if c.step in steps_of_checkpoint(seal)]
        assert seal.records == sum(lengths) * len(LAYERS)
        assert metadata["last_checkpoint_step"] == checkpoint.step
        assert (metadata["run_id"], metadata["catalog_version"]) == ("r1", 7)
        assert metadata["layers"] == list(LAYERS)
        assert metadata["top_k"] == TOP_K
        assert metadata["sae"]["1"] == {"architecture": "standard", "seed": 1}
        assert metadata["hyper_parameters"]["num_generations"] == 4
        assert metadata["libraries"]["trl"]
        assert metadata["model_class"] == "Qwen3ForCausalLM"
        assert metadata["started_at"] <= metadata["last_checkpoint_at"]


def steps_of_checkpoint(seal: Any) -> set[int]:
    """Return the steps that a checkpoint saved every two steps covers."""
    return {seal.step - 1, seal.step}


def test_a_checkpoint_waits_for_no_spill(tmp_path: Path) -> None:
    """Records that are held for a later spill still belong to the checkpoint of their step."""
    trainer = grpo_trainer(tmp_path, **SAVING)
    cfg = P5Cfg(output_dir=str(tmp_path), sae_live_spill_every_n_steps=3)
    observe(trainer, sae=saes(), output_dir=cfg, top_k=TOP_K)
    trainer.train()
    run = RunDirectory.at(tmp_path)
    assert steps_of(run.snapshot("checkpoint-2")) == {1, 2}
    assert steps_of(run.snapshot("checkpoint-4")) == {3, 4}


@pytest.mark.parametrize("durability", ["os", "checkpoint"])
def test_a_run_can_ask_for_its_checkpoints_to_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    """The option reaches the journal; without it nothing that grows is synced."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    trainer = grpo_trainer(tmp_path, **SAVING)
    observe(trainer, sae=saes(), top_k=TOP_K, durability=durability)
    trainer.train()

    assert bool(synced) == (durability == "checkpoint")


def test_a_resumed_run_continues_its_checkpoint(tmp_path: Path) -> None:
    """Steps after the checkpoint are set aside and run again; the log says what it continues."""
    first = grpo_trainer(tmp_path, **SAVING | {"max_steps": 3})
    observe(first, sae=saes(), top_k=TOP_K)
    first.train()
    (tmp_path / "checkpoint-3").rename(tmp_path / "lost")

    second = grpo_trainer(tmp_path, **SAVING)
    callback = observe(second, sae=saes(), top_k=TOP_K)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert callback.statistics().errors == 0, callback.statistics().last_error

    run = RunDirectory.at(tmp_path)
    opened = [codec.decode_control(h.path.read_bytes().split(b"\n")[0]) for h in run.history()]
    resumed = [o for o in opened if isinstance(o, Open) and o.attempt == 2]
    assert {(o.continues, o.continues_step) for o in resumed} == {("checkpoint-2", 2)}
    assert steps_of(run.snapshot("checkpoint-4")) == {3, 4}
    assert Counter(p.iter for p in Recorded(tmp_path).progress) == {1: 1, 2: 1, 3: 2, 4: 1}


def test_verify_resume_names_what_has_changed(tmp_path: Path) -> None:
    """Before training, drift is an error with the fields and the way to accept it."""
    trainer = grpo_trainer(tmp_path, **SAVING | {"max_steps": 2})
    callback = observe(trainer, sae=saes(), top_k=TOP_K)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    assert callback.identity == callback.prepare(model())
    assert verify_resume(checkpoint, callback.identity) == {}

    other = SidecarCallback(sae={0: TinySAE(seed=5), 1: TinySAE(seed=1)}, top_k=4).prepare(model())
    with pytest.raises(IdentityDriftError, match=r"`sae`.*`top_k` was 8, is 4.*allow_drift=True"):
        verify_resume(checkpoint, other)
    assert set(verify_resume(checkpoint, other, allow_drift=True)) == {"sae", "top_k"}


def test_where_something_was_loaded_from_is_no_drift() -> None:
    """The same SAE from another file is the same; what only one identity says is not compared."""
    here = run_identity(model(), {0: LoadedSAE("/here")}, top_k=4)
    there = run_identity(model(), {0: LoadedSAE("/there")}, top_k=4)
    assert drift_between(here, there) == {}
    assert drift_between({"layers": [0]}, {"top_k": 4}) == {}
    assert set(drift_between(here, there | {"layers": [0, 1]})) == {"layers"}


def test_the_best_score_goes_on_from_the_steps_that_are_kept(tmp_path: Path) -> None:
    """Steps that are run again do not count; the manifest says how many there will be."""
    first = grpo_trainer(tmp_path, **SAVING | {"max_steps": 2})
    observe(first, sae=saes(), top_k=TOP_K)
    first.train()
    with RunDirectory.at(tmp_path).live("progress").open("a") as file:
        file.write('{"iter": 1, "score": 70.0}\n{"iter": 3, "score": 90.0}\n')

    second = grpo_trainer(tmp_path, **SAVING | {"max_steps": 3, "save_strategy": "no"})
    observe(second, sae=saes(), top_k=TOP_K)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    state = run_state(RunDirectory.at(tmp_path))
    newest = Recorded(tmp_path).progress[-1]
    assert (newest.iter, newest.best) == (3, 70.0)
    assert (state.iteration, state.best, state.score) == (3, 70.0, newest.score)
    assert (state.status, state.ending, state.total) == ("finished", "finished", 3)


CATALOGUE = {"catalog_version": "0.7", "weights_hash": "ab", "started_by": "me"}


def test_a_drifted_resume_is_refused_before_its_first_step(tmp_path: Path) -> None:
    """Every changed field and the override are named, and the log is left as it was."""
    first = grpo_trainer(tmp_path, **SAVING | {"max_steps": 2})
    observe(first, sae=saes(), top_k=TOP_K, metadata=CATALOGUE)
    first.train()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")}

    second = grpo_trainer(tmp_path, **SAVING | {"max_steps": 3, "save_strategy": "no"})
    changed = CATALOGUE | {"catalog_version": "0.8", "started_by": "you"}
    observe(second, sae=saes((0,)), top_k=4, metadata=changed)
    with pytest.raises(IdentityDriftError) as refused:
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    message = str(refused.value)
    assert all(f"`{name}` was" in message for name in ("sae", "layers", "top_k"))
    assert "`catalog_version` was '0.7', is '0.8'" in message
    assert "allow_drift=True" in message
    assert "started_by" not in message
    assert "weights_hash" not in message
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")} == before


def test_drift_that_is_allowed_is_written_into_the_log(tmp_path: Path) -> None:
    """The resumed run goes on, and readers see in what it differs."""
    first = grpo_trainer(tmp_path, **SAVING | {"max_steps": 2})
    observe(first, sae=saes(), top_k=TOP_K)
    first.train()

    second = grpo_trainer(tmp_path, **SAVING | {"max_steps": 3, "save_strategy": "no"})
    callback = observe(second, sae=saes(), top_k=4, allow_drift=True)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert second.state.global_step == 3
    notes = [line for line in Recorded(tmp_path).control() if isinstance(line, Note)]
    assert notes[0].kind == "identity_drift"
    assert notes[0].detail == {"checkpoint": "checkpoint-2", "fields": {"top_k": [TOP_K, 4]}}
    assert callback.statistics().errors == 0


def test_a_checkpoint_that_was_not_recorded_can_be_resumed(tmp_path: Path) -> None:
    """A checkpoint that was saved without the callback has no sidecar to differ from."""
    first = grpo_trainer(tmp_path, **SAVING | {"max_steps": 2})
    first.train()

    second = grpo_trainer(tmp_path, **SAVING | {"max_steps": 3, "save_strategy": "no"})
    callback = observe(second, sae=saes(), top_k=TOP_K)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert second.state.global_step == 3
    assert callback.statistics().errors == 0
    assert Recorded(tmp_path).records


def test_hyper_parameters_hold_no_secret(tmp_path: Path) -> None:
    """Tokens that a trainer was given do not end up beside its checkpoints."""
    trainer = grpo_trainer(tmp_path, hub_token="hf_secret", **SAVING | {"max_steps": 2})
    observe(trainer)
    trainer.train()
    sidecar = tmp_path / "checkpoint-2" / "aegir_metadata.json"
    assert "hf_secret" not in sidecar.read_text()
