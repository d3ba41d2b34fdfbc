"""Who may start a sweep on a page."""

from __future__ import annotations

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from aegir_adapters.web.security import NEVER_STORED, comes_from_own_page
from aegir_adapters.web.sweep_starting import BusyError, Starting, SweepOrder, SweepStarter
from aegir_stream.layout import RunDirectory

__all__ = ["SweepGate"]

_SEE_OTHER = 303
_NOT_HERE = "Sweeps are not started from this page; use: aegir sweep"


class SweepGate:
    """Lets requests through that may start sweeps of one run, and starts them.

    Args:
        run: the run directory.
        starter: starts sweeps; none are where it is absent.
    """

    def __init__(self, run: RunDirectory, starter: SweepStarter | None) -> None:
        self._run = run
        self._starter = starter

    def closed(self) -> str | None:
        """Return why no sweep can be started, and the remedy; `None` if one can.

        Looks for libraries, so it is called from worker threads, as the other functions are that
        do not wait.
        """
        return self._starter.refusal() if self._starter else _NOT_HERE

    def look(self) -> Starting | None:
        """Return what became of the newest order; `None` if there was none."""
        return self._starter.look(self._run) if self._starter else None

    def start(self, order: SweepOrder) -> str | None:
        """Start a sweep; return why that did not work, if it did not."""
        if self._starter is None:
            return _NOT_HERE
        try:
            self._starter.start(self._run, order)
        except (BusyError, OSError) as error:
            return str(error)
        return None

    def stop(self) -> None:
        """Cancel the sweep that is being made, if there is one."""
        if self._starter:
            self._starter.stop(self._run)

    async def refused(self, request: Request) -> Response | None:
        """Return the answer to a request that may not start anything."""
        if not comes_from_own_page(request.headers):
            error = "Sweeps are started from this server's own page only"
            return JSONResponse({"error": error}, status_code=403)
        closed = await anyio.to_thread.run_sync(self.closed)
        return JSONResponse({"error": closed}, status_code=403) if closed else None

    def go_on(self, address: str) -> Response:
        """Return the answer that sends a browser to another page."""
        return RedirectResponse(address, status_code=_SEE_OTHER, headers=NEVER_STORED)
