"""How a client reaches a patching service: in its own process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aegir_adapters.patching.answers import CapturedRun, ModelResponse, TokensResponse
from aegir_adapters.patching.request import (
    CaptureRequest,
    PatchSweepRequest,
    TokensRequest,
    convert_request,
)
from aegir_adapters.patching.response import CellEvent, PatchSweepResponse
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.worker import Worker, interrupting

__all__ = ["Connection", "InProcess", "OnCell"]

Fields = Mapping[str, Any]
"""A request's fields by name, as JSON has them."""

OnCell = Callable[[CellEvent], None]
"""Called with each cell as it becomes final."""


class Connection(Protocol):
    """What a client asks of a service; wherever that is, it answers and refuses alike."""

    async def sweep(self, fields: Fields, on_cell: OnCell | None) -> PatchSweepResponse:
        """Sweep; cells are handed on in the order in which they become final.

        Raises:
            RequestError: the request is refused.
        """

    async def capture(self, fields: Fields) -> CapturedRun:
        """Capture a run.

        Raises:
            RequestError: the request is refused.
        """

    async def tokens(self, fields: Fields) -> TokensResponse:
        """Take a prompt apart.

        Raises:
            RequestError: the request is refused.
        """

    async def model(self) -> ModelResponse:
        """Return what can be patched."""

    async def drop(self, run_id: str) -> bool:
        """Drop a run; return whether there was one."""

    async def aclose(self) -> None:
        """Let go of the service."""


class InProcess:
    """A service in this process (see `Connection`). Belongs to one event loop.

    Args:
        service: the service.
    """

    def __init__(self, service: PatchService) -> None:
        self._service = service
        self._worker = Worker()

    async def sweep(self, fields: Fields, on_cell: OnCell | None) -> PatchSweepResponse:
        """See `Connection`."""
        request, watch = convert_request(fields, PatchSweepRequest), on_cell or _ignore
        async with (
            interrupting() as interrupt,
            self._worker.entered(self._service.sweep(request, interrupt=interrupt)) as running,
        ):
            while (cells := await self._worker.run(running.next_batch)) is not None:
                for cell in cells:
                    watch(cell)
            return await self._worker.run(running.summary)

    async def capture(self, fields: Fields) -> CapturedRun:
        """See `Connection`."""
        return await self._worker.run(
            self._service.capture, convert_request(fields, CaptureRequest)
        )

    async def tokens(self, fields: Fields) -> TokensResponse:
        """See `Connection`."""
        return await self._worker.run(self._service.tokens, convert_request(fields, TokensRequest))

    async def model(self) -> ModelResponse:
        """See `Connection`."""
        return self._service.describe()

    async def drop(self, run_id: str) -> bool:
        """See `Connection`."""
        return self._service.drop(run_id)

    async def aclose(self) -> None:
        """See `Connection`."""


def _ignore(_: CellEvent) -> None:
    """Watch a cell that nobody wants to see."""
