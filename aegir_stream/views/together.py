"""Several views in one pass over a run, and a view of some of its steps and layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from aegir_stream.events import Completion, GRPOMetrics, Progress, SAELogRecord, StepMetrics
from aegir_stream.typing import View

__all__ = ["Narrowed", "Together"]

S = TypeVar("S")

_STREAMS: dict[type, str] = {
    SAELogRecord: "sae_features",
    Completion: "completions",
    GRPOMetrics: "grpo_metrics",
    StepMetrics: "step_metrics",
    Progress: "progress",
}


class Together:
    """Folds several views at once, so that the run is read once.

    Args:
        views: the views; the state is the list of theirs.
    """

    def __init__(self, *views: View[Any]) -> None:
        self._views = views

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that any of the views wants."""
        return tuple(dict.fromkeys(name for view in self._views for name in view.streams))

    def initial(self) -> list[Any]:
        """Return the states before any event."""
        return [view.initial() for view in self._views]

    def fold(self, state: list[Any], events: Iterable[Any]) -> list[Any]:
        """Give every view the events of the streams that it wants."""
        listed = list(events)
        return [self._fold(view, one, listed) for view, one in zip(self._views, state, strict=True)]

    def _fold(self, view: View[Any], state: Any, events: Sequence[Any]) -> Any:
        wanted = [event for event in events if _STREAMS[type(event)] in view.streams]
        return view.fold(state, wanted) if wanted else state


class Narrowed(Generic[S]):
    """Folds some of the events into another view.

    Args:
        view: the view.
        first_step: first step that counts.
        last_step: last one, included; `None` for no end.
        layers: hooked layers whose records count; none for all.
    """

    def __init__(
        self,
        view: View[S],
        *,
        first_step: int = 0,
        last_step: int | None = None,
        layers: Iterable[int] = (),
    ) -> None:
        self._view = view
        self._first = first_step
        self._last = last_step
        self._layers = frozenset(layers)

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that the view wants."""
        return self._view.streams

    def initial(self) -> S:
        """Return the view's state before any event."""
        return self._view.initial()

    def fold(self, state: S, events: Iterable[Any]) -> S:
        """Fold the events that count."""
        return self._view.fold(state, [event for event in events if self._counts(event)])

    def _counts(self, event: Any) -> bool:
        step: int = event.iter if isinstance(event, Progress) else event.step
        if step < self._first or (self._last is not None and step > self._last):
            return False
        is_record = isinstance(event, SAELogRecord)
        return not (self._layers and is_record and event.layer_index not in self._layers)
