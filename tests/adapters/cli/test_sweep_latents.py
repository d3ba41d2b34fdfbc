"""`aegir sweep --latent`, on a model and SAEs of random weights that lie in a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from adapters.cli.swept import (
    PAIR,
    aegir,
    lines_of,
    make_run,
    make_sae,
    record_saes,
    save_model,
    values_of,
)
from aegir_adapters.cli.sweep_latents import LatentPlace, read_latent, read_saes
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_adapters.sae import Origin, SparseAutoencoder, load_sae, save_sae
from aegir_stream.errors import LayerError, OptionError, ShapeError
from aegir_stream.layout import RunDirectory

PROMPT, CLEAN = PAIR[1], PAIR[3]
ABLATED = ("--prompt", PROMPT, "--answer", "SPACE")
LAYER = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory."""
    path = tmp_path_factory.mktemp("models") / "little"
    save_model(path)
    return path


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Path:
    """A run that was recorded with an SAE at its last layer."""
    root = make_run(tmp_path / "run", model)
    record_saes(root, {LAYER: make_sae()})
    return root


class ByHand:
    """One forward for each cell, with nothing but a hook of torch."""

    def __init__(self, model: Path, sae: SparseAutoencoder, answer: str) -> None:
        self._tokenizer = build_tokenizer()
        self._model = AutoModelForCausalLM.from_pretrained(model)
        self._sae = sae
        (self._answer,) = self._tokenizer(answer, add_special_tokens=False)["input_ids"]

    def residuals(self, prompt: str) -> Tensor:
        """Return what the layer puts out. Shape (positions, width)."""
        seen: list[Tensor] = []
        self._forward(prompt, lambda residual: seen.append(residual.clone()))
        return seen[0]

    def activations(self, prompt: str, latent: int) -> Tensor:
        """Return how strongly a latent fires. Shape (positions,)."""
        return self._sae.encode(self.residuals(prompt))[:, latent]

    def patched(self, prompt: str, latent: int, position: int, activation: float) -> float:
        """Return the answer's log-probability with a latent's activation set at one position."""

        def patch(residual: Tensor) -> None:
            x = residual[position : position + 1].clone()
            code = self._sae.encode(x)
            changed = code.clone()
            changed[:, latent] = activation
            residual[position] = (x + self._sae.decode(changed) - self._sae.decode(code))[0]

        return self._forward(prompt, patch)

    def _forward(self, prompt: str, see: Any) -> float:
        layer = self._model.model.layers[LAYER]

        def hook(_: object, __: object, output: Any) -> None:
            see((output[0] if isinstance(output, tuple) else output)[0])

        handle = layer.register_forward_hook(hook)
        with torch.no_grad():
            logits = self._model(**self._tokenizer(prompt, return_tensors="pt")).logits
        handle.remove()
        return float(logits[0, -1].log_softmax(-1)[self._answer])


@pytest.fixture
def by_hand(model: Path, run: Path) -> ByHand:
    """The same by hand."""
    return ByHand(model, load_sae(run / "sae" / f"layer-{LAYER}"), "SPACE")


def hardest(activations: Tensor) -> int:
    """Return the latent that fires hardest at the last position."""
    return int(activations[-1].argmax())


# -- what is patched -------------------------------------------------------------------------------


def test_an_ablated_latent_equals_a_forward_for_each_cell(run: Path, by_hand: ByHand) -> None:
    """Without a clean prompt its activation is set to zero, and the SAE's error stays."""
    sae = load_sae(run / "sae" / f"layer-{LAYER}")
    latent = hardest(sae.encode(by_hand.residuals(PROMPT)))
    start, *cells, end = lines_of(aegir("sweep", run, *ABLATED, "--latent", f"{LAYER}:{latent}"))
    assert (start["hooks"], start["layers"], start["source"]) == (["resid_post"], [LAYER], "latent")
    assert (start["metric"], end["status"]) == ("logprob", "finished")
    expected = [by_hand.patched(PROMPT, latent, at, 0.0) for at in range(5)]
    found = values_of(cells)
    assert [found["resid_post", LAYER, at] for at in range(5)] == pytest.approx(expected, abs=1e-4)
    assert abs(expected[-1] - start["unpatched"]) > 1e-3


def test_a_latent_becomes_as_active_as_in_the_clean_prompt(run: Path, by_hand: ByHand) -> None:
    """At each position what it was there, of the residual of the patched prompt."""
    sae = load_sae(run / "sae" / f"layer-{LAYER}")
    code, clean = (sae.encode(by_hand.residuals(prompt)) for prompt in (PROMPT, CLEAN))
    latent = int((clean - code)[-1].abs().argmax())
    _, *cells, _ = lines_of(
        aegir("sweep", run, *PAIR, "--latent", f"{LAYER}:{latent}", "--metric", "logprob")
    )
    expected = [by_hand.patched(PROMPT, latent, at, float(clean[at, latent])) for at in range(5)]
    found = values_of(cells)
    assert [found["resid_post", LAYER, at] for at in range(5)] == pytest.approx(expected, abs=1e-4)


def test_the_record_says_which_latent_and_how_strongly_it_fires(run: Path, by_hand: ByHand) -> None:
    """Which SAE it is, where that lies in the run, and its activation at every token."""
    latent = hardest(load_sae(run / "sae" / f"layer-{LAYER}").encode(by_hand.residuals(PROMPT)))
    start, *_ = lines_of(aegir("sweep", run, *PAIR, "--latent", f"{LAYER}:{latent}"))
    told = start["latent"]
    assert (told["layer"], told["index"], told["sae"]) == (LAYER, latent, f"sae/layer-{LAYER}")
    assert told["weights_sha256"] == make_sae().identity()["weights_sha256"]
    for name, prompt in (("activations", PROMPT), ("clean_activations", CLEAN)):
        expected = by_hand.activations(prompt, latent).tolist()
        assert told[name] == pytest.approx(expected, abs=1e-5)
    assert "warnings" not in start


def test_a_latent_that_never_fires_is_told_of(run: Path) -> None:
    """The record warns that nothing can change, and no cell does."""
    start, *cells, _ = lines_of(aegir("sweep", run, *ABLATED, "--latent", f"{LAYER}:23"))
    assert any("Latent 23 of layer 1 is zero at every token" in one for one in start["warnings"])
    assert start["latent"]["activations"] == [0.0] * 5
    assert {cell["value"] for cell in cells} == {start["unpatched"]}


def test_every_pair_says_how_strongly_the_latent_fires(
    run: Path, by_hand: ByHand, tmp_path: Path
) -> None:
    """Each for its own prompts; one in which it fires is enough for no warning."""
    latent = hardest(load_sae(run / "sae" / f"layer-{LAYER}").encode(by_hand.residuals(PROMPT)))
    pairs = tmp_path / "pairs.jsonl"
    prompts = [PROMPT, "61 35 20 39 =>"]
    pairs.write_text("".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in prompts))
    start, *cells, _ = lines_of(
        aegir("sweep", run, "--pairs", pairs, "--answer", "SPACE", "--latent", f"{LAYER}:{latent}")
    )
    for pair, prompt in zip(start["pairs"], prompts, strict=True):
        expected = by_hand.activations(prompt, latent).tolist()
        assert pair["activations"] == pytest.approx(expected, abs=1e-5)
    assert start["latent"]["activations"] == start["pairs"][0]["activations"]
    found = values_of(cells, pair=1)["resid_post", LAYER, 4]
    assert found == pytest.approx(by_hand.patched(prompts[1], latent, 4, 0.0), abs=1e-4)


# -- which SAE it is -------------------------------------------------------------------------------


def test_a_run_that_has_moved_still_has_its_saes(run: Path, tmp_path: Path) -> None:
    """Found below the run's new place, and known by its weights."""
    moved = run.rename(tmp_path / "moved")
    start, *_ = lines_of(aegir("sweep", moved, *ABLATED, "--latent", f"{LAYER}:0"))
    assert start["latent"]["sae"] == f"sae/layer-{LAYER}"


def test_a_run_knows_its_saes_where_a_checkpoint_does_not(run: Path) -> None:
    """A checkpoint whose sidecar is damaged or gone: the run's own manifest says it, too."""
    directory = RunDirectory.at(run)
    saes = directory.read_metadata("checkpoint-4")["sae"]
    sidecar = run / "checkpoint-4" / directory.cfg.metadata_filename
    for damage in (sidecar.unlink, lambda: sidecar.write_text("{")):
        damage()
        assert "got 1" in aegir("sweep", run, *ABLATED, "--latent", "1:0").stderr
    directory.write_manifest({"run_id": "a", "schema": 1, "attempts": [], "sae": saes})
    start, *_ = lines_of(aegir("sweep", run, *ABLATED, "--latent", "1:0"))
    assert start["latent"]["index"] == 0


def test_another_sae_in_its_place_is_refused(run: Path) -> None:
    """Both are named by their weights, and nothing is recorded: its latents are others."""
    expected, other = make_sae(), make_sae(seed=2)
    save_sae(other, run / "sae" / f"layer-{LAYER}")
    result = aegir("sweep", run, *ABLATED, "--latent", f"{LAYER}:0")
    assert result.exit_code == 2
    for sae in (expected, other):
        assert sae.identity()["weights_sha256"] in result.stderr
    assert "--sae" in result.stderr
    assert not (run / "sweeps").exists()


def test_an_sae_that_is_gone_is_told_of(run: Path) -> None:
    """Where it was, which weights it had, and the way around it."""
    shutil.rmtree(run / "sae")
    result = aegir("sweep", run, *ABLATED, "--latent", f"{LAYER}:0")
    assert result.exit_code == 2
    assert f"got nothing in `{run / 'sae' / f'layer-{LAYER}'}`" in result.stderr
    assert make_sae().identity()["weights_sha256"] in result.stderr


def test_an_sae_can_be_named(run: Path, model: Path, tmp_path: Path) -> None:
    """It wins over the run's own, with a word of it in the record; a model alone needs one."""
    other = save_sae(make_sae(seed=2), tmp_path / "other")
    latent = ("--latent", "1:3", "--sae", other)
    start, *_ = lines_of(aegir("sweep", run, *ABLATED, *latent))
    assert start["latent"]["sae"] == str(other)
    assert "records layer 1 with another one" in start["warnings"][0]
    own = ("--sae", run / "sae" / "layer-1")
    start, *_ = lines_of(aegir("sweep", run, *ABLATED, "--latent", "1:3", *own))
    assert "warnings" not in start
    start, *_ = lines_of(aegir("sweep", run, *ABLATED, "--latent", "0:3", *own))
    assert "records layer 1 with it, not layer 0" in start["warnings"][0]
    start, *_ = lines_of(aegir("sweep", model, *ABLATED, *latent))
    assert (start["latent"]["layer"], start.get("warnings")) == (1, None)


def test_an_sae_that_does_not_fit_is_refused(run: Path, tmp_path: Path) -> None:
    """One of another width, and one that reads another place."""
    wide = save_sae(make_sae(width=48), tmp_path / "wide")
    result = aegir("sweep", run, *ABLATED, "--latent", "1:3", "--sae", wide)
    assert isinstance(result.exception, ShapeError)
    elsewhere = make_sae(seed=2)
    elsewhere.origin = Origin(layer=1, hook_name="blocks.1.hook_mlp_out")
    inside = save_sae(elsewhere, tmp_path / "inside")
    result = aegir("sweep", run, *ABLATED, "--latent", "1:3", "--sae", inside)
    assert isinstance(result.exception, LayerError), result.exception
    assert not (run / "sweeps").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--latent", "1"), "`latent` to be LAYER:INDEX, got `1`"),
        (("--latent", "1:-2"), "`latent` to be LAYER:INDEX"),
        (("--latent", "1:24"), "`latent` to be one of the 24 of the SAE of layer 1, got 24"),
        (("--latent", "0:1"), "whose SAE the run records, 1, got 0"),
        (("--latent", "2:1"), "layer of an SAE within 0..1, got 2"),
        (("--latent", "1:1", "--hooks", "mlp_out"), "`hooks` to be resid_post with --latent"),
        (("--latent", "1:1", "--layers", "0"), "`layers` to be 1 with --latent"),
        (("--latent", "1:1", "--metric", "recovered"), "`metric` to be another one without a"),
        (("--sae", "sae/layer-1"), "Expected `sae` beside `latent` alone"),
    ],
)
def test_what_is_no_latent_is_refused(run: Path, arguments: tuple[str, ...], told: str) -> None:
    """One line names the option, the value and what is allowed; nothing is recorded."""
    result = aegir("sweep", run, *ABLATED, *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""
    assert not (run / "sweeps").exists()


def test_a_model_has_no_sae_of_its_own(model: Path) -> None:
    """One must be named."""
    result = aegir("sweep", model, *ABLATED, "--latent", "1:0")
    assert "`little` is a model, not a checkpoint of a run. Name one with --sae" in result.stderr


@given(st.integers(0, 999), st.integers(0, 10**6))
def test_a_latent_is_read_as_it_is_written(layer: int, index: int) -> None:
    """Whatever its numbers are."""
    assert read_latent(f" {layer}:{index} ") == LatentPlace(layer=layer, index=index)


def test_saes_are_named_by_layer() -> None:
    """Each layer once; a path may hold what it likes."""
    assert read_saes(["2=a=b:c", " 0 =x"]) == {2: "a=b:c", 0: "x"}
    for wrong in (["2"], ["=a"], ["2="], ["a=b"], ["1=a", "1=b"]):
        with pytest.raises(OptionError, match="`sae`"):
            read_saes(wrong)


# -- aegir sweep-server ----------------------------------------------------------------------------


def swept_by(address: str, *, index: int) -> dict[str, Any]:
    """Ask a server to ablate a latent of the last layer."""
    latent = {"sae": "layer-1", "index": index}
    asked = {"prompt": PROMPT, "answer": "SPACE", "layers": [LAYER], "hook": "resid_post"}
    body = json.dumps({**asked, "source": "latent", "latent": latent}).encode()
    request = urllib.request.Request(  # noqa: S310 - of this machine
        address, body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - likewise
        found: dict[str, Any] = json.load(answer)
        return found


def test_a_server_knows_the_run_s_saes(run: Path, tmp_path: Path, by_hand: ByHand) -> None:
    """By their layers, beside those that are named; one that is gone is told of and left out."""
    record_saes(run, {0: make_sae(seed=3), LAYER: make_sae()})
    shutil.rmtree(run / "sae" / "layer-0")
    command = [sys.executable, "-m", "aegir_adapters.cli", "sweep-server", str(run), "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        try:
            assert "with the SAEs layer-1 is at http://" in said
            address = said.split(" is at ")[1].split(" ")[0]
            (row,) = swept_by(address, index=2)["grid"]
            with pytest.raises(urllib.error.HTTPError) as refused:
                swept_by(address, index=24)
            with refused.value:
                told = json.load(refused.value)
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
    assert row[4] == pytest.approx(by_hand.patched(PROMPT, 2, 4, 0.0), abs=1e-4)
    assert (refused.value.code, told["field"], told["value"]) == (400, "latent", 24)
    assert "layer-0 is not served: " in errors
    named = aegir("sweep-server", run, "--sae", f"0={tmp_path / 'nowhere'}", "--port", "0")
    assert named.exit_code != 0
    assert "nowhere" in str(named.exception)
