from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from transformers import PrinterCallback, Qwen3ForSequenceClassification, Trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from aegir_adapters.trainer import SidecarCallback
from aegir_stream.events import Note

from .adapted import adapted, move_adapters
from .revealed import alone, revealing, sequences
from .tiny import LAYERS, Recorded, model, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:trl"),
]

Learnt: TypeAlias = Iterable[tuple[Sequence[int], Sequence[int]]]
"""Token ids of each sequence, and which of its columns are learnt."""

TEXTS = [" ".join(f"w{(3 * i + j * j) % 9}" for j in range(2 + i % 4)) for i in range(6)]
PROMPTS = [f"w{i} w{i + 1}" for i in range(6)]
CHOSEN = [" " + " ".join(f"w{(i + j) % 9}" for j in range(1 + i % 3)) for i in range(6)]
REJECTED = [
    " " + " ".join(f"w{(2 * i + 5 * j + 1) % 9}" for j in range(1 + i % 2)) for i in range(6)
]

DOCUMENTS = Dataset.from_dict({"text": TEXTS})
ANSWERED = Dataset.from_dict({"prompt": PROMPTS, "completion": CHOSEN})
PREFERRED = Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED})
JUDGED = Dataset.from_dict({"prompt": PROMPTS, "completion": CHOSEN, "label": [True, False] * 3})


def settings(output_dir: Path, **args: Any) -> dict[str, Any]:
    """Return the arguments of one quiet epoch at learning rate 0."""
    quiet = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    return quiet | args


def sft(data: Dataset = DOCUMENTS, **args: Any) -> Callable[[Path], Any]:
    """Return how to make a trainer that imitates texts or answers."""

    def make(output_dir: Path) -> Trainer:
        return SFTTrainer(
            model=model(),
            args=SFTConfig(**settings(output_dir, eval_strategy="epoch") | args),
            train_dataset=data,
            eval_dataset=data,
            processing_class=right_padding(),
        )

    return make


def dpo(*, policy: Callable[[], Any] = model, **args: Any) -> Callable[[Path], Any]:
    """Return how to make a trainer that prefers one answer to another, against a reference."""

    def make(output_dir: Path) -> Trainer:
        return DPOTrainer(
            model=policy(),
            ref_model=model(seed=1) if policy is model else None,
            args=DPOConfig(**settings(output_dir, eval_strategy="epoch") | args),
            train_dataset=PREFERRED,
            eval_dataset=PREFERRED,
            processing_class=right_padding(),
        )

    return make


def kto(output_dir: Path) -> Trainer:
    """Return a trainer that pushes answers up or down, each by itself."""
    return KTOTrainer(
        model=adapted(),
        args=KTOConfig(**settings(output_dir)),
        train_dataset=JUDGED,
        processing_class=right_padding(),
    )


def reward(output_dir: Path) -> Trainer:
    """Return a trainer whose model says which of two texts is better; there are no labels."""
    config = model().config
    config.num_labels = 1
    torch.manual_seed(0)
    return RewardTrainer(
        model=Qwen3ForSequenceClassification(config),  # type: ignore[no-untyped-call]
        args=RewardConfig(**settings(output_dir)),
        train_dataset=PREFERRED.remove_columns("prompt"),
        processing_class=right_padding(),
    )


def right_padding() -> Any:
    """Return the tokenizer, padding as these trainers do."""
    tokens = tokenizer()
    tokens.padding_side = "right"
    return tokens


def labelled(trainer: Any) -> Learnt:
    """What a row's labels ask for."""
    for row in trainer.train_dataset:
        yield row["input_ids"], [i for i, label in enumerate(row["labels"]) if label >= 0]


def labelled_in_packs(trainer: Any) -> Learnt:
    """The same of the sequences in a row; nothing predicts the first token of each."""
    for row in trainer.train_dataset:
        begin = 0
        for length in row.get("seq_lengths", [len(row["input_ids"])]):
            end = begin + length
            ids, labels = row["input_ids"][begin:end], row["labels"][begin:end]
            yield ids, [i for i in range(1, length) if labels[i] >= 0]
            begin = end


def answers(trainer: Any) -> Learnt:
    """Both answers to a prompt."""
    for row in trainer.train_dataset:
        for answer in ("chosen_ids", "rejected_ids", "completion_ids"):
            if answer in row:
                ids = row["prompt_ids"] + row[answer]
                yield ids, range(len(row["prompt_ids"]), len(ids))


def everything(trainer: Any) -> Learnt:
    """All that is not padding."""
    for row in trainer.train_dataset:
        for ids in (row["chosen_ids"], row["rejected_ids"]):
            yield ids, range(len(ids))


MODERN: dict[str, Any] = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
OLD: dict[str, Any] = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
}

TRAINERS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Learnt]]] = {
    "SFT": (sft(gradient_accumulation_steps=2), labelled),
    "SFT on answers": (sft(ANSWERED, **MODERN), labelled),
    "SFT without padding": (sft(ANSWERED, padding_free=True, max_length=None), labelled_in_packs),
    "SFT packed": (sft(packing=True, max_length=8), labelled_in_packs),
    "SFT packed and cut": (
        sft(packing=True, packing_strategy="wrapped", max_length=8),
        labelled,
    ),
    "DPO": (dpo(**OLD), answers),
    "DPO with adapters": (dpo(policy=adapted), answers),
    "DPO with known references": (dpo(precompute_ref_log_probs=True), answers),
    "KTO with adapters": (kto, answers),
    "rewards": (reward, everything),
}


@pytest.mark.parametrize(("make", "learnt"), TRAINERS.values(), ids=TRAINERS.keys())
def test_every_token_that_is_learnt_is_recorded_once(
    make: Callable[[Path], Any], learnt: Callable[[Any], Learnt], tmp_path: Path
) -> None:
    """Through the callback alone, sequence by sequence, as a forward of each alone gives it."""
    trainer = make(tmp_path)
    move_adapters(trainer.model, seed=5)
    record(trainer)
    assert_learnt(Recorded(tmp_path), trainer, learnt(trainer))


def record(trainer: Any, *, attached: bool = False) -> None:
    """Train, recording all of the residual stream."""
    trainer.remove_callback(PrinterCallback)
    callback = SidecarCallback(**revealing())
    trainer.add_callback(callback)
    if attached:
        callback.attach(trainer)
    trainer.train()
    statistics = callback.statistics()
    assert (statistics.errors, statistics.records_dropped) == (0, 0), statistics.last_error


def assert_learnt(recorded: Recorded, trainer: Any, learnt: Learnt) -> None:
    """The records are those of a forward of each sequence alone, and no others."""
    expected = [(ids, list(columns)) for ids, columns in learnt if columns]
    assert {record.completion for record in recorded.records} == {None}
    for layer in LAYERS:
        found = sequences([r for r in recorded.records if r.layer_index == layer])
        for ids, columns in expected:
            claim(found, alone(trainer.model, ids)[layer][columns])
        assert not found


def claim(found: list[Tensor], expected: Tensor) -> None:
    """Take the one sequence out of those found that has these residuals."""
    same = [
        i
        for i, residuals in enumerate(found)
        if residuals.shape == expected.shape and (residuals - expected).abs().max() < 1e-4
    ]
    assert same, f"{len(expected)} tokens that are not recorded"
    del found[same[0]]


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor`:FutureWarning")
def test_labels_that_the_trainer_keeps_are_seen_once_it_is_attached(tmp_path: Path) -> None:
    """With label smoothing the model gets no labels; a callback alone says what that means."""
    make = sft(ANSWERED, label_smoothing_factor=0.1)
    trainer = make(tmp_path / "attached")
    record(trainer, attached=True)
    assert_learnt(Recorded(tmp_path / "attached"), trainer, labelled(trainer))
    assert "why" not in self_test(tmp_path / "attached")["passes"]["loss"]

    trainer = make(tmp_path / "alone")
    record(trainer)
    rows = [row["input_ids"] for row in trainer.train_dataset]
    assert_learnt(Recorded(tmp_path / "alone"), trainer, ((ids, range(len(ids))) for ids in rows))
    assert "no labels" in self_test(tmp_path / "alone")["passes"]["loss"]["why"]


def self_test(path: Path) -> dict[str, Any]:
    """Return what a run says of itself."""
    notes = [line for line in Recorded(path).control() if isinstance(line, Note)]
    return next(note.detail for note in notes if note.kind == "self_test")


def test_a_callback_may_move_on_to_another_trainer(tmp_path: Path) -> None:
    """Attached to a second one it lets go of the first, and records the second."""
    first, second = sft()(tmp_path / "first"), sft()(tmp_path / "second")
    second.remove_callback(PrinterCallback)
    callback = SidecarCallback(**revealing()).attach(first).attach(second)
    assert "compute_loss" not in vars(first)
    second.add_callback(callback)
    second.train()
    assert_learnt(Recorded(tmp_path / "second"), second, labelled(second))
    callback.detach()
    assert "compute_loss" not in vars(second)
