"""What a run is doing, from the end of its metrics: one small read, however long the run is."""

from __future__ import annotations

from aegir_adapters.web.amounts import age
from aegir_adapters.web.page import Status
from aegir_stream import codec
from aegir_stream.errors import MalformedEventError
from aegir_stream.events import Close, GRPOMetrics
from aegir_stream.layout import RunDirectory
from aegir_stream.views import capture_share

__all__ = ["read_status"]

_END_BYTES = 64 * 1024
_QUIET_AFTER_S = 120.0


def read_status(run: RunDirectory, *, now: float) -> Status:
    """Look at a run. Reads files; never fails.

    Args:
        run: the run directory.
        now: wall-clock seconds since the epoch.
    """
    name = run.root.name or str(run.root)
    try:
        lines = _last_lines(run.require())
    except OSError as error:
        return Status(name=name, path=str(run.root), badge="waiting", reason=str(error))
    last = _last_metrics(lines)
    return Status(
        name=name,
        path=str(run.root),
        badge=_closing_status(lines) or _badge(last, now=now),
        facts=_facts(last, now=now) if last else (),
    )


def _last_lines(run: RunDirectory) -> list[bytes]:
    """Return the end of the metrics, newest line first; nothing if there are none yet."""
    path = run.live("grpo_metrics")
    try:
        size = run.disk.read(path, offset=0, size=0).size
        end = run.disk.read(path, offset=max(0, size - _END_BYTES), size=_END_BYTES).data
    except FileNotFoundError:
        return []
    return end.split(b"\n")[-2::-1]


def _last_metrics(lines: list[bytes]) -> GRPOMetrics | None:
    for line in lines:
        if not codec.is_control(line):
            try:
                return codec.decode(line, GRPOMetrics)
            except MalformedEventError:
                continue
    return None


def _closing_status(lines: list[bytes]) -> str | None:
    last = codec.decode_control(lines[0]) if lines and codec.is_control(lines[0]) else None
    return last.status if isinstance(last, Close) else None


def _badge(last: GRPOMetrics | None, *, now: float) -> str:
    if last is None:
        return "starting"
    return "live" if now - last.ts < _QUIET_AFTER_S else "quiet"


def _facts(last: GRPOMetrics, *, now: float) -> tuple[tuple[str, str], ...]:
    share = capture_share([last])
    facts = {
        "Step": f"{last.step:,}",
        "Reward": _number(last.reward_mean),
        "Records per step": _number(last.records),
        "Dropped": _number(last.dropped),
        "Capture share": None if share is None else f"{share:.1%}",
        "Last step": age(now - last.ts),
    }
    return tuple((term, value) for term, value in facts.items() if value is not None)


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
