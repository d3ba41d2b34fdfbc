from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from aegir_adapters.trainer import SidecarCallback, observe
from aegir_stream.events import Note

from .tiny import LAYERS, TOP_K, Recorded, grpo_trainer, model, saes

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from aegir_stream.events import SAELogRecord

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

SEQUENCES = [[5, 6, 7, 1], [8, 1, 0, 0], [4, 4, 4, 1], [9, 3, 1, 0]]
LENGTHS = [4, 2, 4, 3]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return right-padded rows; the first token of each is its prompt, where labels are wanted."""
    ids = torch.tensor([row["ids"] for row in rows])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if rows[0]["labelled"]:
        labels = ids.masked_fill(ids == 0, -100)
        labels[:, 0] = -100
        batch["labels"] = labels
    return batch


class Unlabelled(Trainer):
    """A trainer with a loss of its own, which hands the model no labels."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """Return a loss of the logits alone."""
        return model(**inputs).logits.square().mean()


def trainer(output_dir: Path, *, labelled: bool = True, **args: Any) -> Trainer:
    """Return a plain trainer of four sequences, two at a time."""
    rows = [{"ids": ids, "labelled": labelled} for ids in SEQUENCES]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    plain = (Trainer if labelled else Unlabelled)(
        model=model(),
        args=TrainingArguments(output_dir=str(output_dir), **settings | args),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
    )
    plain.remove_callback(PrinterCallback)
    return plain


@pytest.mark.parametrize(("labelled", "prompt"), [(True, 1), (False, 0)], ids=["labels", "mask"])
def test_any_trainer_is_recorded_by_its_labels_or_its_mask(
    tmp_path: Path, *, labelled: bool, prompt: int
) -> None:
    """Every token with a label is recorded once per layer; without labels, every real token."""
    plain = trainer(tmp_path, labelled=labelled)
    callback = SidecarCallback(sae=saes(), top_k=TOP_K)
    plain.add_callback(callback)
    plain.train()

    recorded = Recorded(tmp_path)
    assert callback.statistics().errors == 0, callback.statistics().last_error
    assert len(recorded.records) == (sum(LENGTHS) - prompt * len(LENGTHS)) * len(LAYERS)
    assert {r.completion for r in recorded.records} == {None}
    assert {r.step for r in recorded.records} == {1, 2}
    ends = [r.token_index for r in recorded.records if r.layer_index == 0]
    assert sorted(ends) == sorted(i for n in LENGTHS for i in range(n - prompt))
    assert [m.step for m in recorded.metrics] == [1, 2]
    assert [p.score for p in recorded.progress] == [None, None]
    assert all(m.loss is not None for m in recorded.metrics)


def test_a_run_without_completions_says_so(tmp_path: Path) -> None:
    """The self-test in the log names what is not joined, and why."""
    plain = trainer(tmp_path)
    observe(plain, sae=saes(), top_k=TOP_K)
    plain.train()
    notes = [line for line in Recorded(tmp_path).control() if isinstance(line, Note)]
    assert [note.kind for note in notes] == ["self_test"]
    assert notes[0].detail["joined"] == []
    assert "no completion id" in notes[0].detail["why"]
    assert notes[0].detail["layer_calls"] == {"loss": 2}


def test_only_training_forwards_are_recorded(tmp_path: Path) -> None:
    """Evaluation after every step adds nothing."""
    plain = trainer(tmp_path, eval_strategy="steps", eval_steps=1)
    observe(plain, sae=saes(), top_k=TOP_K)
    plain.train()
    assert len(Recorded(tmp_path).records) == (sum(LENGTHS) - len(LENGTHS)) * len(LAYERS)


def test_a_micro_batch_that_is_recomputed_is_recorded_once(tmp_path: Path) -> None:
    """With reentrant checkpointing and accumulation, backward adds nothing."""
    plain = trainer(
        tmp_path,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": True},
    )
    observe(plain, sae=saes(), top_k=TOP_K)
    plain.train()
    tokens = (sum(LENGTHS) - len(LENGTHS)) * len(LAYERS)
    assert [m.records for m in Recorded(tmp_path).metrics] == [tokens, tokens]


def test_a_grpo_trainer_that_is_not_attached_still_gives_its_loss_pass(tmp_path: Path) -> None:
    """Generation has no gradients, so the same tokens are read, but without completion ids."""
    attached = grpo_trainer(tmp_path / "attached")
    observe(attached, sae=saes(), top_k=TOP_K)
    attached.train()
    alone = grpo_trainer(tmp_path / "alone")
    callback = SidecarCallback(sae=saes(), top_k=TOP_K)
    alone.add_callback(callback)
    alone.train()
    assert callback.statistics().errors == 0

    def without_ids(path: Path) -> list[SAELogRecord]:
        records = Recorded(path).records
        return [msgspec.structs.replace(record, completion=None) for record in records]

    assert Recorded(tmp_path / "alone").records == without_ids(tmp_path / "attached")
