"""What all ranks together have to say of their data mix and their ledger, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from aegir_adapters.mixing.bands import Band, healthy_bands
from aegir_adapters.mixing.formulas import Targets, mix_scalars
from aegir_adapters.mixing.ledger import StateLedger
from aegir_adapters.mixing.mixer import StreamMixer
from aegir_adapters.mixing.reduction import reduce_loss_metrics, total_step_metrics
from aegir_adapters.mixing.store import FALSE_EVICTIONS, LEDGER_METRICS
from aegir_stream.clock import SystemClock
from aegir_stream.errors import OptionError
from aegir_stream.events import StepMetrics
from aegir_stream.typing import Clock

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["LedgerBands", "MixObservation"]

LedgerBands = Callable[[int], Mapping[str, Band]]
"""Returns the healthy bands of the window that ends with a step."""

_FALSE_ALARM = 1e-6


class MixObservation:
    """Drains a mixer and a ledger, and brings what they counted together over all ranks.

    Args:
        mixer: what is mixed; on every rank or on none.
        ledger: where states are kept; likewise.
        targets: what the mix should be; what the mixer aims at if absent.
        mesh: the ranks, see `reduce_loss_metrics`.
        false_alarm: probability that a healthy window is outside of a band, see `healthy_bands`.
        ledger_bands: what is healthy for the ledger; no false evictions if absent.
        clock: where time stamps come from; the system's if absent.

    Raises:
        OptionError: there is neither a mixer nor a ledger.
    """

    def __init__(
        self,
        *,
        mixer: StreamMixer | None = None,
        ledger: StateLedger | None = None,
        targets: Targets | None = None,
        mesh: DeviceMesh | ProcessGroup | None = None,
        false_alarm: float = _FALSE_ALARM,
        ledger_bands: LedgerBands | None = None,
        clock: Clock | None = None,
    ) -> None:
        if mixer is None and ledger is None:
            raise OptionError(
                "Expected a mixer, a ledger or both to observe, got neither",
                hint="Pass mixer=StreamMixer(...) or ledger=StateLedger(...)",
            )
        self._mixer = mixer
        self._ledger = ledger
        self._targets = targets
        self._mesh = mesh
        self._false_alarm = false_alarm
        self._ledger_bands = ledger_bands or _no_false_evictions
        self._clock = clock or SystemClock()

    def begin_step(self, step: int) -> None:
        """Say which step what is picked and written from now on belongs to."""
        if self._mixer:
            self._mixer.begin_step(step)
        if self._ledger:
            self._ledger.begin_step(step)

    def collect(self, step: int, *, values: Mapping[str, float] | None = None) -> StepMetrics:
        """Return the window that ends with a step, over all ranks, and begin the next.

        A collective: every rank calls it at the same steps.

        Args:
            step: optimizer step.
            values: further scalars of this rank, the same on all; their means and maxima are added.
        """
        metrics: dict[str, float | None] = {}
        bands: dict[str, Band] = {}
        if self._mixer:
            raw, targets = self._mixer.drain_step_metrics(), self._targets or self._mixer.targets
            totals = total_step_metrics(raw, targets, self._mesh)
            metrics |= mix_scalars(totals, targets)
            bands |= healthy_bands(totals, targets, false_alarm=self._false_alarm)
        counts = self._ledger.drain_step_metrics() if self._ledger else {}
        if counts or values:
            sum_keys = LEDGER_METRICS if counts else ()
            metrics |= reduce_loss_metrics(
                {**(values or {}), **counts}, self._mesh, sum_keys=sum_keys
            )
        if self._ledger:
            bands |= self._ledger_bands(step)
        return StepMetrics(
            step=step,
            ts=self._clock.time(),
            metrics=metrics,
            bands={name: (low, high) for name, (low, high) in bands.items()},
        )


def _no_false_evictions(_: int) -> Mapping[str, Band]:
    return {FALSE_EVICTIONS: Band(0.0, 0.0)}
