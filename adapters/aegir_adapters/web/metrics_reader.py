"""Reads the step metrics of a run as they are written."""

from __future__ import annotations

from aegir_adapters.web.metric_table import MetricTable
from aegir_stream.layout import RunDirectory
from aegir_stream.surviving import SurvivingReader

__all__ = ["MetricsReader", "has_metrics"]

_STREAM = "step_metrics"


class MetricsReader:
    """Reads what was appended since the last look; one thread at a time uses it.

    What a resume rewound is left out, as in a replay, and the whole is read anew when that happens.
    What cannot be read is read as soon as it can be.

    Args:
        run: the run directory; it need not be there yet.

    Attributes:
        table: what was read.
        skipped: lines that were no step metrics.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._begin()

    def poll(self) -> bool:
        """Read what is new; tell whether anything is different. Reads files; never fails."""
        changed = self._read()
        while self._reader.rewound:
            self._begin()
            self._read()
            changed = True
        return changed

    def _begin(self) -> None:
        self.table = MetricTable()
        self.skipped = 0
        self._reader = SurvivingReader(self._run, _STREAM, attempts="surviving", patient=True)

    def _read(self) -> bool:
        changed = False
        while (events := self._reader.read()) is not None:
            self.table.take(events)
            changed = changed or bool(events)
        changed = changed or self.skipped != self._reader.skipped
        self.skipped = self._reader.skipped
        return changed


def has_metrics(run: RunDirectory) -> bool:
    """Tell whether a run has step metrics. Lists the directory; never fails."""
    try:
        return bool(run.lanes(_STREAM))
    except OSError:
        return False
