"""A run with completions, as a trainer records it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from aegir_stream import codec
from aegir_stream.events import Completion, SAELogRecord
from aegir_stream.layout import RunDirectory
from aegir_stream.sinks.journal import JournalSink
from aegir_stream.typing import Append

WORDS = ("<eos>", "=>", "41", "62", "20", "UPPER", "LOWER", "SPACE")
"""What the tokenizer of the run knows, by token id."""


def ids(text: str) -> tuple[int, ...]:
    """Return the token ids of some words."""
    return tuple(map(WORDS.index, text.split()))


def completion(step: int, number: int = 0, **fields: Any) -> Completion:
    """Return a completion's line."""
    usual: dict[str, Any] = {
        "rank": 0,
        "group": number // 2,
        "rewards": {"verifier": 1.0},
        "reward": 1.0,
        "advantage": 0.5,
        "length": 3,
        "terminated": True,
        "prompt_ids": ids("41 62 =>"),
        "token_ids": ids("UPPER LOWER <eos>"),
        "text": "UPPER LOWER",
    }
    return Completion(step=step, completion=number, **(usual | fields))


def records_of(one: Completion, *, layers: Sequence[int] = (0, 2)) -> list[SAELogRecord]:
    """Return the records of a completion: at each token the latent 10 + token, and 7."""
    return [
        SAELogRecord(
            step=one.step,
            token_index=token,
            layer_index=layer,
            top_feature_indices=(10 + token, 7),
            top_feature_activations=(2.0 + token, 0.5),
            reconstruction_loss=4.0 + token,
            completion=one.completion,
            pass_=one.pass_,
        )
        for token in range(one.length)
        for layer in layers
    ]


class CompletionRun:
    """A run that a test writes.

    Attributes:
        directory: the run directory.
    """

    def __init__(self, root: Path) -> None:
        self.directory = RunDirectory.at(root)
        self._sink = JournalSink(self.directory, identity={"layers": [0, 2]})

    async def record(self, *completions: Completion, layers: Sequence[int] = (0, 2)) -> None:
        """Append completions of one step with their records."""
        await self._sink.open()
        step = completions[0].step
        await self._write("completions", completions, step)
        records = [record for one in completions for record in records_of(one, layers=layers)]
        if records:
            await self._write("sae_features", records, step)

    async def save(self, step: int, *, sae: dict[str, Any] | None = None) -> None:
        """Save a checkpoint, with its tokenizer, and say where SAEs lie."""
        await self._sink.open()
        name = f"checkpoint-{step}"
        self.directory.write_metadata(name, {"sae": sae if sae is not None else SAE})
        words = {word: at for at, word in enumerate(WORDS)}
        tokenizer = Tokenizer(WordLevel(words, unk_token="<eos>"))
        tokenizer.save(str(self.directory.root / name / "tokenizer.json"))
        await self._sink.seal(checkpoint=name, step=step)

    async def finish(self) -> None:
        """End the run."""
        await self._sink.aclose()

    async def _write(self, stream: str, events: Sequence[Any], step: int) -> None:
        data = b"".join(map(codec.encode, events))
        await self._sink.write(Append(stream=stream, data=data, records=len(events), step=step))


SAE = {"0": {"path": "saes/layer-0"}, "2": {"path": "saes/layer-2"}}
