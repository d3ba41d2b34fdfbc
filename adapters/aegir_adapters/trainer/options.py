"""What a recording can be told beside the SAEs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

from msgspec import Struct, field

from aegir_adapters.trainer.generation import Recall
from aegir_adapters.trainer.rows import Precision
from aegir_stream.clock import SystemClock
from aegir_stream.durability import Durability
from aegir_stream.errors import OptionError
from aegir_stream.events import PassName
from aegir_stream.recorder import Overflow
from aegir_stream.sampling import SamplingRule
from aegir_stream.typing import Clock, Sink

__all__ = ["Iterations", "RecordingOptions"]

Iterations: TypeAlias = Literal["first", "all"]
"""Which of a trainer's iterations over the same completions are recorded."""

_EXAMPLES: Final = {"passes": '("loss", "decode")', "iterations": '"all"'}


class RecordingOptions(Struct, frozen=True, kw_only=True):
    """Options of `SidecarCallback` and `observe`.

    Attributes:
        top_k: latents recorded per token and layer; zeros among them are left out.
        passes: forward passes that are recorded. `loss` is the one that every trainer has; the
            others belong to trainers that generate completions, each with a share of the cost.
        iterations: `first` records the loss pass when a completion is first trained on, `all` in
            every optimizer step that trains on it.
        record_every_n_tokens: of every n positions in a row, record one; which one is drawn anew
            for every completion.
        token_share: record this share of those tokens, each drawn by itself.
        max_tokens_per_completion: record at most so many tokens of a completion.
        max_tokens_per_step: record at most so many tokens of a step, over all ranks and of each
            pass, split evenly among the step's completions.
        sampling_seed: another draw of the tokens. See `aegir_stream.sampling.SamplingRule`, which
            stands in the log.
        record_text: write each completion's text into `completions`.
        record_token_ids: write the token ids of prompts and completions into `completions`.
        metadata: further fields of `aegir_metadata.json`, such as `run_id` or `catalog_version`.
        allow_drift: accept a resumed run that differs from what was recorded.
        precision: significant digits of SAE records.
        control_lines: `False` writes data lines only.
        sinks: where events go beside the run directory.
        queue_bytes: bound on the memory of what waits to be written.
        overflow: what to do when that bound is reached.
        durability: what is synced, and so what a loss of power may take.
        flush_every_s: under `interval`, how long after a write it is synced, at most.
        seal_timeout_s: how long a checkpoint may wait for the log, at most.
        clock: where times come from.
    """

    top_k: int = 16
    passes: tuple[PassName, ...] = ("loss",)
    iterations: Iterations = "first"
    record_every_n_tokens: int = 1
    token_share: float = 1.0
    max_tokens_per_completion: int | None = None
    max_tokens_per_step: int | None = None
    sampling_seed: int = 0
    record_text: bool = False
    record_token_ids: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    allow_drift: bool = False
    precision: Precision = Precision()
    control_lines: bool = True
    sinks: tuple[Sink, ...] = ()
    queue_bytes: int = 256 << 20
    overflow: Overflow = "drop_newest"
    durability: Durability = "os"
    flush_every_s: float = 1.0
    seal_timeout_s: float = 30.0
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            OptionError: a pass or `iterations` is none of the known ones, or a budget is out of
                range.
        """
        _check_names("passes", self.passes, get_args(PassName))
        _check_names("iterations", (self.iterations,), get_args(Iterations))
        self.sampling()

    @property
    def recall(self) -> Recall:
        """What of a completion's content is written down."""
        return Recall(text=self.record_text, token_ids=self.record_token_ids)

    def sampling(self, *, completions_per_step: int | None = None) -> SamplingRule:
        """Return the rule by which tokens are recorded.

        Raises:
            OptionError: a budget is out of range, or less than one token for each completion.
        """
        return SamplingRule(
            record_every_n_tokens=self.record_every_n_tokens,
            token_share=self.token_share,
            max_tokens_per_completion=self.max_tokens_per_completion,
            max_tokens_per_step=self.max_tokens_per_step,
            completions_per_step=completions_per_step,
            sampling_seed=self.sampling_seed,
        )


def _check_names(option: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    # A bare name would be taken for its letters.
    unknown = [names] if isinstance(names, str) else [n for n in names if n not in known]
    if unknown:
        raise OptionError(
            f"Expected `{option}` among {', '.join(known)}, got {', '.join(map(repr, unknown))}",
            hint=f"Write for instance {option}={_EXAMPLES[option]}",
        )
