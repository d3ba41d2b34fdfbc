"""One study of a policy in training: the same sweep again and again, each a record of its own."""

from __future__ import annotations

from contextlib import suppress

from msgspec.structs import replace

from aegir_adapters.patching.borrowed import borrowed
from aegir_adapters.patching.failing import Failing
from aegir_adapters.patching.metric_records import record_further_metrics
from aegir_adapters.patching.recording import record_sweep, started_of
from aegir_adapters.patching.request import PatchSweepRequest
from aegir_adapters.patching.running import RunningSweep
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.wording import worded
from aegir_stream.layout import RunDirectory
from aegir_stream.recorder import Recorder
from aegir_stream.sinks import MemorySink
from aegir_stream.sweep_events import SweepEnded, SweepStarted
from aegir_stream.sweep_log import SweepLog

__all__ = ["Study"]


class Study:
    """Sweeps a policy as it is, whenever it is asked to.

    Args:
        name: name of the study.
        request: what is swept.
        run: takes the records.

    Attributes:
        shield: what keeps its failures from the training loop; see `Recorder.shield`.
        sweeps: how many came to their end.
    """

    def __init__(self, name: str, request: PatchSweepRequest, run: RunDirectory) -> None:
        self._name, self._request, self._run = name, request, run
        # It writes nothing: a recorder is what the project has to keep failures from training.
        self.shield = Recorder(MemorySink())
        self.sweeps = 0
        self._has_left_word = False

    def sweep(self, service: PatchService, *, step: int) -> None:
        """Sweep and record.

        Args:
            service: has the policy, and no runs.
            step: how many optimizer steps have made the policy what it is.

        Raises:
            SweepFailedError: the sweep was refused, failed, or could not be recorded.
        """
        log: SweepLog | None = None

        def tell(reason: str) -> None:
            if log is None:  # otherwise it stands there
                self._leave_word(reason, step)

        with (
            Failing(f"The sweep `{self._name}` of the {_called(step)}", tell),
            borrowed(service.model.module),
            service.sweep(self._request) as running,
        ):
            log = SweepLog(self._run, self._started(running, service, step))
            record_sweep(running, log)
            if self._request.metrics is not None:
                record_further_metrics(self._run, log.grids, running.summary())
        self.sweeps += 1

    def _started(self, running: RunningSweep, service: PatchService, step: int) -> SweepStarted:
        start = running.start
        about = worded(self._request, service, model=_called(step), layers=start.layers, step=step)
        return replace(started_of(start, self._request, about), study=self._name)

    def _leave_word(self, reason: str, step: int) -> None:
        """Leave a file of a sweep that could not begin, the first time that one could not."""
        if self._has_left_word:
            return
        self._has_left_word = True
        asked = self._request
        started = SweepStarted(
            model=_called(step),
            study=self._name,
            step=step,
            tokens=(),
            hooks=asked.hooks or (asked.hook,),
            layers=(),
            positions=(),
            metric=(asked.metrics or (asked.metric,))[0],
            answer=next(
                (t for t in (asked.answer_token, asked.answer) if isinstance(t, str)), None
            ),
            source=asked.source,
            method=asked.method,
        )
        # What fails here as well is told of by the failure that it is about.
        with suppress(OSError):
            SweepLog(self._run, started).end(SweepEnded(status="failed", reason=reason))


def _called(step: int) -> str:
    return f"policy at step {step}"
