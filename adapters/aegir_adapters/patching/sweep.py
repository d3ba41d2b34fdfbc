"""One sweep, in this process."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from aegir_adapters.patching.computation import Computation
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.results import CellBatch, SweepBegin, SweepEnd
from aegir_adapters.patching.spec import SweepSpec, check_specs
from aegir_stream.clock import SystemClock
from aegir_stream.typing import Clock

__all__ = ["SweepSpec", "sweep"]

Item = SweepBegin | CellBatch | SweepEnd


def sweep(
    model: PatchableModel, spec: SweepSpec | Sequence[SweepSpec], *, clock: Clock | None = None
) -> Generator[Item, None, None]:
    """Patch every cell and yield the results: one beginning, batches of cells, one end.

    Free cells come first, at once. The others follow chunk by chunk, the most promising first, and
    most promising first within a chunk; where they are estimated, all in one batch. Every cell is
    yielded exactly once. Several specs are prompt pairs that are computed together; they share
    hooks, layers, metrics, alpha, order, budget and method.

    The generator computes only while it is asked for the next item, and holds the model only then:
    between two items its mode, its configuration and its hooks are what they were. Closing it frees
    everything. Not thread-safe: nothing else may use the model meanwhile.

    Args:
        model: the model.
        spec: what to sweep.
        clock: what the elapsed time is taken from.

    Raises:
        OptionError: a spec does not fit the model, or a source lacks something; raised by the call
            itself or with the first item.
        LayerError: a layer does not exist; raised by the call itself.
    """
    specs = [spec] if isinstance(spec, SweepSpec) else list(spec)
    check_specs(model, specs)
    return _items(model, specs, _Stopwatch(clock or SystemClock()))


def _items(
    model: PatchableModel, specs: Sequence[SweepSpec], watch: _Stopwatch
) -> Generator[Item, None, None]:
    watch.go_on()
    computation = Computation(model, specs)
    yield from watch.held(computation.begin())
    if free := computation.free_cells():
        yield from watch.held(free)
    if estimates := computation.estimated_cells():
        yield from watch.held(estimates)
    for number in range(len(computation.chunks)):
        yield from watch.held(computation.compute(number))
    yield computation.end(watch.elapsed_s())


class _Stopwatch:
    """Adds up the time in which the caller does not hold an item."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = 0.0
        self._elapsed = 0.0

    def go_on(self) -> None:
        self._since = self._clock.monotonic()

    def held(self, item: Item) -> Iterator[Item]:
        """Yield one item, and stand still until the caller asks for the next."""
        self._elapsed = self.elapsed_s()
        yield item
        self.go_on()

    def elapsed_s(self) -> float:
        return self._elapsed + self._clock.monotonic() - self._since
