"""The nouns of the log: what is recorded, and what a reader is told about it.

Three families, no behaviour:

* **data events** are the plain JSON lines of a stream (`SAELogRecord`, `Completion`,
  `GRPOMetrics`, `Progress`, `StepMetrics`);
* **control lines** carry the reserved key ``"$log"`` and stand between them (`Open`, `Batch`,
  `Gap`, `Note`, `Seal`, `Close`);
* **deliveries** are what a source hands to its reader beside data (`SourceSwitch`,
  `Checkpoint`, `Idle`, `Heartbeat`, `Corrupt`, `Reset`, `Rewound`, `Stalled`, `CaughtUp`,
  `Closed`).

Compatibility: new fields go last, with a default; unknown fields are ignored; a changed meaning
gets a new name.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct, field

SCHEMA = 1
"""Version of the line formats below; stands in every `Open` line."""

PassName: TypeAlias = Literal["loss", "logprob", "reference", "prefill", "decode", "eval"]
"""Which forward of the model a record came from."""


# -- data events -------------------------------------------------------------------------------


class SAELogRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"pass_": "pass"}):
    """One generated token at one hooked layer, under the policy of one optimizer step.

    Attributes:
        step: optimizer step the record belongs to (`global_step + 1` while that step runs).
        token_index: position of the token in its completion, 0-based.
        layer_index: decoder layer whose output residual stream was read.
        top_feature_indices: the latents that fired hardest for this token, hardest first; at
            most K of them, those with zero activation left out.
        top_feature_activations: their activations, same order, in the SAE's own units.
        reconstruction_loss: ``||x - SAE(x)||^2`` summed over d_model, with the SAE's own full
            reconstruction, in the SAE's input units.
        completion: id of the completion within the step; joins `Completion.completion`. Absent
            where the trainer has no completions.
        pass_: forward pass that it was read in (`pass` in the file); absent for `loss`. Under
            `prefill`, `token_index` counts the tokens of the prompt.
    """

    step: int
    token_index: int
    layer_index: int
    top_feature_indices: tuple[int, ...]
    top_feature_activations: tuple[float, ...]
    reconstruction_loss: float
    completion: int | None = None
    pass_: PassName | None = None


class Completion(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"pass_": "pass"}):
    """One sampled completion and what it earned.

    Attributes:
        step: optimizer step that trained on the completion; for one of an evaluation, the last
            step before it.
        completion: id, unique within the step over all ranks.
        rank: process that sampled it.
        group: id of its prompt group within the step (GRPO compares within a group).
        rewards: reward of each reward function by name; `None` where a function abstained.
        reward: the weighted sum R of `rewards`, as the trainer uses it.
        advantage: the trainer's advantage for this completion.
        length: number of completion tokens, the end-of-sequence token included.
        terminated: whether it ended by itself rather than by the length limit.
        prompt_ids: token ids of the prompt, when asked for.
        token_ids: token ids of the completion, when asked for.
        text: decoded completion, when asked for.
        iteration: how often it had been trained on before; the line of an iteration after the
            first is written only where the records of that iteration are.
        pass_: `eval` for a completion of an evaluation (`pass` in the file); absent for those that
            are trained on. Ids of the two are counted apart. Any other name: the step has records
            of the completion, but trains on it later, where it has a line of its own.
    """

    step: int
    completion: int
    rank: int
    group: int
    rewards: dict[str, float | None]
    reward: float
    advantage: float
    length: int
    terminated: bool
    prompt_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    text: str | None = None
    iteration: int = 0
    pass_: PassName | None = None


class SAEHealth(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How well the SAE of one layer still fits the moving policy, over one step's tokens.

    Attributes:
        layer_index: hooked decoder layer.
        fvu: fraction of variance unexplained, sum of ``||x - SAE(x)||^2`` over sum of
            ``||x - mean||^2``, with the *fixed* reference variance of the run's first step
            (a per-step variance collapses as the policy concentrates, and misleads).
        l0: mean number of active latents per token.
        dead_share: share of latents that have not fired since the run (attempt) began.
        norm_drift: mean ``||x||`` over that of the first step, minus 1.
    """

    layer_index: int
    fvu: float
    l0: float
    dead_share: float
    norm_drift: float


class GRPOMetrics(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One optimizer step: what training did and what recording it cost.

    Fields that a trainer does not produce are absent. Times are milliseconds.
    """

    step: int
    ts: float
    loss: float | None = None
    reward_mean: float | None = None
    reward_std: float | None = None
    reward_min: float | None = None
    reward_max: float | None = None
    zero_variance_groups: float | None = None
    kl: float | None = None
    entropy: float | None = None
    length_mean: float | None = None
    learning_rate: float | None = None
    step_ms: float | None = None
    capture_ms: float | None = None
    write_ms: float | None = None
    records: int | None = None
    dropped: int | None = None
    queue_bytes: int | None = None
    errors: int | None = None
    health: tuple[SAEHealth, ...] = ()


class Progress(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One completed iteration of any iterative job; a trainer writes its steps the same way.

    Attributes:
        iter: iteration number.
        score: this iteration's score (for a trainer: the mean reward of the step).
        best: best finite score so far.
        program_id: identifier of the candidate, where there is one.
        model: model that produced it.
        ts: wall-clock seconds since the epoch.
    """

    iter: int
    score: float | None = None
    best: float | None = None
    program_id: str | None = None
    model: str | None = None
    ts: float | None = None


class StepMetrics(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Scalars of one optimizer step that belong to no fixed set: data mix, ledger, your own.

    Attributes:
        step: optimizer step.
        ts: wall-clock seconds since the epoch.
        metrics: values over all ranks, by name; `None` where there is nothing to tell.
        bands: the range in which a metric is healthy, both ends included, by name; `None` is no
            bound.
    """

    step: int
    ts: float
    metrics: dict[str, float | None]
    bands: dict[str, tuple[float | None, float | None]] = {}


DataEvent: TypeAlias = SAELogRecord | Completion | GRPOMetrics | Progress | StepMetrics


# -- control lines -----------------------------------------------------------------------------


class Open(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="$log", tag="open"):
    """First line of a segment; repeated where a later attempt appends to the same file.

    Attributes:
        log: identity of the run's log, the same in all its segments.
        stream: name of the stream (see `aegir_stream.layout.STREAMS`).
        lane: the writer's lane, one per writing process (`rank0`, `rank1`, ...).
        segment: number of this segment in its lane, from 1.
        attempt: process lifetime of the run, from 1.
        rank: process index of the writer.
        schema: version of the line formats.
        writer: program and version.
        encoding: `rows`, one record per line.
        previous: segment that this one continues, absent for the first of a lineage.
        continues: checkpoint that the attempt resumed from.
        continues_step: its step; what an earlier attempt recorded beyond it was rewound.
        recovered_torn_bytes: length of the torn line that the previous writer left behind.
        precision: declared number of significant digits, by field.
    """

    log: str
    stream: str
    lane: str
    segment: int
    attempt: int
    rank: int
    schema: int = 0
    writer: str = ""
    encoding: str = "rows"
    previous: int | None = None
    continues: str | None = None
    continues_step: int | None = None
    recovered_torn_bytes: int = 0
    precision: dict[str, int] = field(default_factory=dict)


class Batch(
    Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    tag_field="$log",
    tag="batch",
    rename={"pass_": "pass"},
):
    """Trailer of one append: what stands between it and the previous control line.

    Attributes:
        records: data records of the append.
        bytes: their size, newlines included.
        crc32: checksum of those bytes (`zlib.crc32`).
        step: optimizer step they belong to.
        rank: process index of the writer.
        attempt: attempt that wrote them.
        pass_: forward pass that they came from (`pass` in the file).
    """

    records: int
    bytes: int
    crc32: int
    step: int | None = None
    rank: int = 0
    attempt: int = 1
    pass_: str | None = None


class Gap(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="$log", tag="gap"):
    """Records that were captured and could not be written, and why."""

    records: int
    reason: str
    first_step: int | None = None
    last_step: int | None = None


class Note(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="$log", tag="note"):
    """Something the writer wants every reader to know, such as the capture self-test."""

    kind: str
    detail: dict[str, Any]


class Seal(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="$log", tag="seal"):
    """Last line of a segment that a checkpoint closed.

    `records`, `bytes` and `crc32` cover the data lines of the whole segment.
    """

    checkpoint: str
    step: int
    segment: int
    records: int
    bytes: int
    crc32: int


class Close(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="$log", tag="close"):
    """Last line of a segment that was ended without a checkpoint.

    `status` is `finished` (training ended), `stopped` (the recorder was closed before its end),
    `abandoned` (a later attempt set the segment aside) or `unsynced` (a sync failed, and the next
    segment goes on).
    """

    status: str
    records: int = 0


Control: TypeAlias = Open | Batch | Gap | Note | Seal | Close


# -- deliveries --------------------------------------------------------------------------------


class SourceSwitch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The active source of a stream changed.

    Attributes:
        source: `live`, `snapshot:checkpoint-N` or `history:NNNNN`.
        path: file that the next records come from.
        verdict: what became of the cursor the reader came with: `resumed`, or `malformed`,
            `foreign`, `expired` with where reading starts instead; absent without a cursor.
        attempt: attempt that wrote the file.
        continues: checkpoint which that attempt resumed from.
    """

    source: str
    path: str
    verdict: str | None = None
    attempt: int | None = None
    continues: str | None = None


class Checkpoint(Struct, frozen=True, kw_only=True):
    """A checkpoint was sealed, or the snapshot fallback moved to a new one."""

    step: int
    checkpoint: str


class Idle(Struct, frozen=True, kw_only=True):
    """There is nothing to read yet, and why."""

    reason: str


class Heartbeat(Struct, frozen=True, kw_only=True):
    """Nothing happened for a while; the connection is alive."""


class Corrupt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bytes that are no record were skipped; reading goes on behind them.

    Lines that were found in a row are told together, with what is wrong with the first; `lines`
    says how many. It is 1 as well where nobody counted.
    """

    path: str
    offset: int
    length: int
    reason: str
    lines: int = 1


class Reset(Struct, frozen=True, kw_only=True):
    """A file that was being read was truncated or replaced; reading starts over as described."""

    path: str
    reason: str


class Rewound(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A new attempt resumed from a checkpoint: records beyond `to_step` were abandoned.

    `to_step` is absent where the new attempt started from scratch.
    """

    attempt: int
    to_step: int | None = None
    continues: str | None = None


class Stalled(Struct, frozen=True, kw_only=True):
    """Reading fails in a way that may pass; it is tried again."""

    path: str
    reason: str


class CaughtUp(Struct, frozen=True, kw_only=True):
    """Everything written so far was delivered."""


class FellBehind(Struct, frozen=True, kw_only=True):
    """The reader's place could not be reached again; it goes on at the newest records."""

    reason: str


class Closed(Struct, frozen=True, kw_only=True):
    """The writer closed the stream; `status` as in `Close`."""

    status: str
