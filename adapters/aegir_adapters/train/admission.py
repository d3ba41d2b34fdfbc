"""Whether a run may begin in a directory: whose it is, who is there, what lies in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegir_adapters.train.checks import Check, ok
from aegir_adapters.train.prepared import AssetPaths
from aegir_adapters.train.record import record_path
from aegir_stream.config import OUTPUT_DIR_VARIABLE
from aegir_stream.errors import (
    AegirError,
    RefusedError,
    RunExistsError,
    RunNotFoundError,
    UnreadableRunError,
)
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import Holding, lease_of
from aegir_stream.processes import descends_from

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aegir_adapters.train.checkpoints import Resumption
    from aegir_stream.config import P5Cfg

__all__ = ["check_admission", "require_admission"]

_NAME = "run directory"


def check_admission(
    cfg: P5Cfg,
    resumed: Resumption | None,
    *,
    prepares: bool,
    guard: Callable[[Path], None] | None,
) -> Check:
    """Tell whether a run may begin there."""
    run = RunDirectory(cfg)
    holding = lease_of(run)
    if holding.held and not _is_above_us(holding):
        detail = f"{run.root} is in use by {holding.holder or 'another process'}"
        remedy = f"Wait until it has ended, or choose another: {OUTPUT_DIR_VARIABLE}=DIR"
        return Check(name=_NAME, verdict="refused", detail=detail, remedy=remedy)
    try:
        if guard is not None:
            guard(run.root)
        require_admission(run, resumes=resumed is not None, prepares=prepares)
    except (RefusedError, RunExistsError, RunNotFoundError, UnreadableRunError) as error:
        return _refusal(error)
    if resumed is None:
        return ok(_NAME, f"{run.root} holds no run")
    place = (
        resumed.checkpoint.name if resumed.checkpoint else "step 1: there is no whole checkpoint"
    )
    return ok(_NAME, f"{run.root} goes on from {place}")


def require_admission(run: RunDirectory, *, resumes: bool, prepares: bool) -> None:
    """Return if the directory holds no run, or is to be resumed and holds one.

    Raises:
        RunExistsError: it holds a run, or files that a preparation would write over.
        RunNotFoundError: it is to be resumed, and holds none.
        UnreadableRunError: it cannot be looked into.
    """
    try:
        names = run.disk.names(run.root)
    except OSError as error:
        raise UnreadableRunError(
            f"The output directory `{run.root}` cannot be used: {error.strerror}",
            hint=f"Name another one with --output-dir or {OUTPUT_DIR_VARIABLE}",
        ) from error
    holds_run = run.is_run(names) or record_path(run.root).name in names
    if resumes and not holds_run:
        raise RunNotFoundError(
            f"There is no run to resume in `{run.root}`",
            hint=f"Start one without --resume, or name its directory: {OUTPUT_DIR_VARIABLE}=DIR",
        )
    if not resumes and holds_run:
        raise RunExistsError(
            f"The output directory `{run.root}` holds a run already",
            hint=f"Go on with it: --resume. Or go elsewhere: --output-dir DIR,"
            f" {OUTPUT_DIR_VARIABLE}=DIR",
        )
    taken = AssetPaths(root=run.root).taken() if prepares and not resumes else []
    if taken:
        raise RunExistsError(
            f"The output directory `{run.root}` holds {', '.join(taken)}, which would be replaced",
            hint=f"Go elsewhere: --output-dir DIR, {OUTPUT_DIR_VARIABLE}=DIR",
        )


def _is_above_us(holding: Holding) -> bool:
    return holding.holder is not None and descends_from(holding.holder.process)


def _refusal(error: AegirError) -> Check:
    return Check(name=_NAME, verdict="refused", detail=error.args[0], remedy=error.hint or "")
