"""The patching service over HTTP."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from aegir_adapters.patching.answering import SweepEndpoint, read_body, refusal, strict_json
from aegir_adapters.patching.limits import Limits
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.request import (
    CaptureRequest,
    RequestError,
    TokensRequest,
    decode_request,
)
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.sources import LatentDictionary
from aegir_adapters.patching.store import RunStore
from aegir_adapters.patching.worker import Worker

__all__ = ["LOOPBACK", "patch_app", "patch_routes"]

LOOPBACK = ("localhost", "127.0.0.1")
"""Names under which only this machine can ask."""


def patch_app(
    model: PatchableModel,
    *,
    store: RunStore | None = None,
    limits: Limits | None = None,
    saes: Mapping[str, LatentDictionary] | None = None,
    allowed_hosts: Collection[str] = LOOPBACK,
) -> Starlette:
    """Return a web application that sweeps a model; its `state.patching` is the `PatchService`.

    Serve it alone, or mount it under any path. There are no passwords: other sites' pages are
    refused, and whoever can reach it can use it. Failures that are nobody's fault are answered with
    500 and raised again, for the server to log.

    Args:
        model: the model; nothing else may use it while the application computes.
        store: where captured runs are kept.
        limits: what one request may take.
        saes: SAEs by the name under which requests know them.
        allowed_hosts: names under which it may be asked; `"*"` where another server checks that.
    """
    service = PatchService(model, store=store, limits=limits, saes=saes)
    app = Starlette(
        routes=patch_routes(service),
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts)),
            Middleware(_OwnPagesOnly),
        ],
        exception_handlers={Exception: _failed},
    )
    app.state.patching = service
    return app


def patch_routes(service: PatchService) -> list[Route]:
    """Return the routes of a service, for an application that checks hosts and origins itself."""
    endpoints = _Endpoints(service)
    return [
        Route("/v1/patch_sweep", SweepEndpoint(service, endpoints.worker), methods=["POST"]),
        Route("/v1/patch_source", endpoints.runs, methods=["GET"]),
        Route("/v1/patch_source", endpoints.capture, methods=["POST"]),
        Route("/v1/patch_source/{run_id:path}", endpoints.drop, methods=["DELETE"]),
        Route("/v1/patch_model", endpoints.model, methods=["GET"]),
        Route("/v1/patch_tokens", endpoints.tokens, methods=["POST"]),
    ]


class _Endpoints:
    """What is answered at once, the sweep aside."""

    def __init__(self, service: PatchService) -> None:
        self._service = service
        self.worker = Worker()

    async def runs(self, _: Request) -> Response:
        content = {"runs": self._service.runs(), "statistics": self._service.store.statistics()}
        return strict_json(content)

    async def drop(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        if self._service.drop(run_id):
            return strict_json({"dropped": True})
        return strict_json({"error": f"patch source run {run_id!r} not found"}, status_code=404)

    async def model(self, _: Request) -> Response:
        return strict_json(self._service.describe())

    async def capture(self, request: Request) -> Response:
        try:
            asked = decode_request(await self._body(request), CaptureRequest)
            return strict_json(await self.worker.run(self._service.capture, asked))
        except RequestError as error:
            return refusal(error)

    async def tokens(self, request: Request) -> Response:
        try:
            asked = decode_request(await self._body(request), TokensRequest)
            return strict_json(await self.worker.run(self._service.tokens, asked))
        except RequestError as error:
            return refusal(error)

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._service.limits.body_bytes)


class _OwnPagesOnly:
    """Refuses what another site's page asks for: a browser says so in `Origin`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app
        if scope["type"] == "http":
            headers = Request(scope).headers
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers.get("host"):
                answer = strict_json(
                    {"error": f"Expected a page of this server, got one of {origin}"},
                    status_code=403,
                )
        await answer(scope, receive, send)


async def _failed(_: Request, error: Exception) -> Response:
    answer = strict_json({"error": f"{type(error).__name__}: {error}"}, status_code=500)
    # The server closes the connection when the error is raised again.
    answer.headers["connection"] = "close"
    return answer
