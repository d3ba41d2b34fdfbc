"""How often and how hard each latent fires, by layer and window of steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import msgspec

from aegir_stream.events import Completion, PassName, SAELogRecord

__all__ = ["Firing", "FiringState", "FiringView", "Rate", "Window", "rates"]


class Firing(msgspec.Struct, gc=False):
    """One latent in one window.

    Attributes:
        tokens: tokens on which it was active.
        total: sum of its activations over them.
        highest: largest of them.
    """

    tokens: int
    total: float
    highest: float


class Window(msgspec.Struct):
    """One layer over a range of steps.

    Attributes:
        tokens: recorded tokens.
        latents: those that were active on any.
    """

    tokens: int = 0
    latents: dict[int, Firing] = {}


class FiringState(msgspec.Struct):
    """Windows by layer and number; window n holds the steps from n w + 1 to (n + 1) w.

    Steps count from 1; step 0, of an evaluation before training, is in the first window.

    Attributes:
        width: w, steps in a window; `None` where one window holds all.
        layers: windows by layer.
        seen: first and last step at which each latent fired, by layer.
        non_finite: activations that are no finite number, and do not count.
    """

    width: int | None
    layers: dict[int, dict[int, Window]]
    seen: dict[int, dict[int, tuple[int, int]]]
    non_finite: int = 0

    def steps(self, window: int) -> tuple[int, int | None]:
        """Return the first and the last step of a window; `None` for no end."""
        if self.width is None:
            return 0, None
        return window * self.width + 1, (window + 1) * self.width

    def number(self, step: int) -> int:
        """Return the number of the window that holds a step."""
        return 0 if self.width is None else max(0, step - 1) // self.width

    def whole(self, layer: int) -> Window:
        """Return all windows of a layer as one."""
        whole = Window()
        for _, window in sorted(self.layers.get(layer, {}).items()):
            _merge(whole, window)
        return whole


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of one latent in one window.

    Attributes:
        latent: its index.
        firing_rate: share of the recorded tokens on which it is active.
        mean: activation over all recorded tokens, 0 where it is not active.
        mean_active: activation over the tokens on which it is active.
        highest: largest activation.
    """

    latent: int
    firing_rate: float
    mean: float
    mean_active: float
    highest: float


def rates(window: Window) -> Iterator[Rate]:
    """Yield the rates of the latents that fired in a window, in ascending order."""
    for latent, firing in sorted(window.latents.items()):
        yield Rate(
            latent=latent,
            firing_rate=firing.tokens / window.tokens,
            mean=firing.total / window.tokens,
            mean_active=firing.total / firing.tokens,
            highest=firing.highest,
        )


class FiringView:
    """Folds SAE records into a `FiringState`.

    Active is what stands in a record with a finite activation other than 0. A record holds the K
    hardest latents of its token, so a latent that fires weakly where K others fire harder does not
    count: rates are lower bounds, and exact where no token has K latents. Thinning tokens at random
    leaves rates and means right on average, and lowers maxima.

    Memory goes with latents times windows. Where there would be more than `most_windows`, they are
    made twice as wide, so a long run ends with coarser windows and not with more of them; that
    depends on the newest step alone, and not on the order of the records.

    Args:
        width: steps in a window; `None` for one window over all.
        most_windows: windows per layer at most.
        pass_: the forward pass whose records count.
    """

    streams = ("sae_features",)

    def __init__(
        self, *, width: int | None = None, most_windows: int = 64, pass_: PassName = "loss"
    ) -> None:
        self._width = width
        self._most_windows = most_windows
        self._pass = pass_

    def initial(self) -> FiringState:
        """Return a state in which nothing fired."""
        return FiringState(width=self._width, layers={}, seen={})

    def fold(self, state: FiringState, events: Iterable[SAELogRecord | Completion]) -> FiringState:
        """Count records; completions are passed over."""
        for event in events:
            if isinstance(event, SAELogRecord) and (event.pass_ or "loss") == self._pass:
                self._add(state, event)
        return state

    def _add(self, state: FiringState, record: SAELogRecord) -> None:
        window = self._window(state, record)
        seen = state.seen.setdefault(record.layer_index, {})
        window.tokens += 1
        for latent, activation in zip(
            record.top_feature_indices, record.top_feature_activations, strict=False
        ):
            if not math.isfinite(activation):
                state.non_finite += 1
                continue
            if not activation:
                continue
            firing = window.latents.get(latent)
            if firing is None:
                firing = window.latents[latent] = Firing(0, 0.0, activation)
            first, last = seen.get(latent, (record.step + 1, record.step - 1))
            if not first <= record.step <= last:
                seen[latent] = min(first, record.step), max(last, record.step)
            firing.tokens += 1
            firing.total += activation
            firing.highest = max(firing.highest, activation)

    def _window(self, state: FiringState, record: SAELogRecord) -> Window:
        while state.number(record.step) >= self._most_windows:
            _widen(state)
        windows = state.layers.setdefault(record.layer_index, {})
        number = state.number(record.step)
        window = windows.get(number)
        if window is None:
            window = windows[number] = Window()
        return window


def _widen(state: FiringState) -> None:
    """Make windows twice as wide: put two of them together."""
    state.width = 2 * (state.width or 1)
    for layer, windows in state.layers.items():
        wider: dict[int, Window] = {}
        for number, window in sorted(windows.items()):
            _merge(wider.setdefault(number // 2, Window()), window)
        state.layers[layer] = wider


def _merge(into: Window, window: Window) -> None:
    into.tokens += window.tokens
    for latent, firing in window.latents.items():
        found = into.latents.get(latent)
        if found is None:
            into.latents[latent] = msgspec.structs.replace(firing)
            continue
        found.tokens += firing.tokens
        found.total += firing.total
        found.highest = max(found.highest, firing.highest)
