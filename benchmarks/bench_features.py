"""How much faster do arrays fold features than dictionaries, at the size of a real run?

A GRPO step: 128 completions in 16 groups, 256 tokens, 65,536 latents of which 16 are recorded per
token, two layers. Both views fold the same decoded records in one process, taking turns. Reading
and decoding come on top and are the same for both; they are timed beside it.

    python benchmarks/bench_features.py
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from aegir_adapters.analysis import ArrayFeatureRewardView, ArrayFiringView
from aegir_stream import codec
from aegir_stream.events import Completion, SAELogRecord
from aegir_stream.typing import View
from aegir_stream.views import FeatureRewardView, FiringView

STEPS = 4
COMPLETIONS, GROUP, TOKENS = 128, 8, 256
LATENTS, K = 65_536, 16
CHUNK = 1500
ROUNDS = 1


def run_events(seed: int = 0) -> tuple[list[Completion], list[list[SAELogRecord]]]:
    """Return the completions of a few steps, and the records in chunks as a reader gives them."""
    draw = np.random.default_rng(seed)
    lines: list[Completion] = []
    records: list[SAELogRecord] = []
    for step in range(1, STEPS + 1):
        for completion in range(COMPLETIONS):
            lines.append(
                Completion(
                    step=step,
                    completion=completion,
                    rank=0,
                    group=completion // GROUP,
                    rewards={},
                    reward=float(draw.integers(2)),
                    advantage=0.0,
                    length=TOKENS,
                    terminated=True,
                )
            )
            # A few latents are everywhere and most are rare.
            latents = (LATENTS * draw.random((2 * TOKENS, K)) ** 6).astype(int).tolist()
            values = np.sort(draw.exponential(size=(2 * TOKENS, K)) + 0.1)[:, ::-1].tolist()
            records += [
                SAELogRecord(
                    step=step,
                    token_index=token // 2,
                    layer_index=token % 2,
                    top_feature_indices=tuple(latents[token]),
                    top_feature_activations=tuple(values[token]),
                    reconstruction_loss=1.0,
                    completion=completion,
                )
                for token in range(2 * TOKENS)
            ]
    return lines, [records[at : at + CHUNK] for at in range(0, len(records), CHUNK)]


def fold(view: View[Any], lines: list[Completion], chunks: list[list[SAELogRecord]]) -> None:
    """Fold everything, completions first."""
    state = view.fold(view.initial(), lines)
    for chunk in chunks:
        state = view.fold(state, chunk)


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time that something takes: another program's load does not count."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    """Print both, and their ratio."""
    lines, chunks = run_events()
    records = sum(map(len, chunks))
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"{records} records, {K} latents each of {LATENTS}, {len(lines)} completions")
    encoded = [codec.encode(record) for record in chunks[0]]
    decoding = seconds(lambda: [codec.decode(line, SAELogRecord) for line in encoded])
    print(f"decoding alone: {decoding / len(encoded) * records:.2f} s")
    for name, pure, arrays in (
        (
            "features against reward",
            partial(FeatureRewardView, lag=0),
            partial(ArrayFeatureRewardView, lag=0),
        ),
        ("firing rates", FiringView, ArrayFiringView),
    ):
        times: dict[str, list[float]] = {"pure": [], "arrays": []}
        for _ in range(ROUNDS):
            for kind, make in (("pure", pure), ("arrays", arrays)):
                times[kind].append(seconds(partial(fold, make(), lines, chunks)))
        slow, fast = (statistics.median(times[kind]) for kind in ("pure", "arrays"))
        print(
            f"{name}: pure {slow:.2f} s, arrays {fast:.2f} s, "
            f"{slow / fast:.1f} times as fast, {records / fast / 1000:.0f} thousand records/s"
        )


if __name__ == "__main__":
    main()
