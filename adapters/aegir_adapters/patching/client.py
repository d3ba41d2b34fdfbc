"""Patching studies from Python, on a model in this process or on a server."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack, overload
from uuid import uuid4

import msgspec

from aegir_adapters.patching.answers import ModelResponse
from aegir_adapters.patching.connection import Connection, InProcess
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.options import (
    CleanRun,
    SweepOptions,
    Target,
    Text,
    sweep_fields,
    target,
)
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.spans import Span
from aegir_adapters.patching.sweep_result import SweepResult, results_by_hook
from aegir_stream.errors import MissingExtraError, OptionError

__all__ = ["PatchStudy"]


class PatchStudy:
    """Sweeps over one model, as a context manager. Results do not depend on where it is.

    Args:
        model: a model in this process, or a service that has one.
        base_url: a server in its place, up to and including `/v1`.

    Raises:
        OptionError: neither or both were given.
        MissingExtraError: `base_url` was given, and httpx is not installed.
    """

    def __init__(
        self, model: PatchableModel | PatchService | None = None, *, base_url: str | None = None
    ) -> None:
        if (model is None) == (base_url is None):
            got = "neither" if model is None else "both"
            raise OptionError(
                f"Expected `model` or `base_url`, got {got}",
                hint="Pass PatchStudy(model) or PatchStudy(base_url='http://127.0.0.1:8000/v1')",
            )
        self._connection: Connection
        if base_url is not None:
            self._connection = _over_http(base_url)
        elif model is not None:
            self._connection = InProcess(
                PatchService(model) if isinstance(model, PatchableModel) else model
            )

    async def __aenter__(self) -> Self:
        """Return the study."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the model or the server."""
        await self._connection.aclose()

    async def model(self) -> ModelResponse:
        """Return what can be patched."""
        return await self._connection.model()

    async def capture_clean(
        self,
        prompt: Text,
        *,
        run: str | None = None,
        layers: Any = "all",
        answer_token: Target | None = None,
        foil_token: Target | None = None,
    ) -> CleanRun:
        """Capture a run of all hooks, to stay until it is dropped or evicted.

        Args:
            prompt: its prompt.
            run: its name; a new one by default.
            layers: a list, ``{"start": 0, "stop": 4, "step": 1}``, or `all`.
            answer_token: what is measured.
            foil_token: what it is compared with.

        Raises:
            RequestError: one of these does not fit the model.
        """
        captured = await self._connection.capture(
            {
                "prompt": prompt,
                "source_run": run or uuid4().hex,
                "layers": layers,
                **target("answer", answer_token),
                **target("foil", foil_token),
            }
        )
        return CleanRun(
            run_id=captured.source_run,
            prompt=prompt,
            num_prompt_tokens=captured.num_prompt_tokens,
            clean_logprob=captured.clean_logprob,
            clean_logit_diff=captured.clean_logit_diff,
        )

    async def positions_for(self, prompt: Text, span: str, *, occurrence: int = 0) -> list[int]:
        """Return the positions of the tokens that spell any character of a span.

        Raises:
            RequestError: the prompt does not have the span so often.
        """
        where = Span(span, occurrence)
        answer = await self._connection.tokens(
            {"prompt": prompt, "positions": [msgspec.to_builtins(where)]}
        )
        return list(answer.positions)

    @overload
    async def sweep_layers_positions(
        self,
        corrupt_prompt: Text | None = None,
        *,
        hooks: None = None,
        **options: Unpack[SweepOptions],
    ) -> SweepResult: ...

    @overload
    async def sweep_layers_positions(
        self,
        corrupt_prompt: Text | None = None,
        *,
        hooks: Sequence[str],
        **options: Unpack[SweepOptions],
    ) -> dict[str, SweepResult]: ...

    async def sweep_layers_positions(
        self,
        corrupt_prompt: Text | None = None,
        *,
        hooks: Sequence[str] | None = None,
        **options: Unpack[SweepOptions],
    ) -> SweepResult | dict[str, SweepResult]:
        """Sweep layers and positions.

        Args:
            corrupt_prompt: what is patched; left out where there are `pairs`.
            hooks: several hooks; the result is then a dictionary by their names.
            options: see `SweepOptions`.

        Raises:
            RequestError: one of these is refused.
        """
        fields = sweep_fields(corrupt_prompt, hooks, options)
        response = await self._connection.sweep(fields, options.get("on_cell"))
        results = results_by_hook(response)
        return results[response.hook] if hooks is None else results

    async def zoom(
        self,
        result: SweepResult,
        *,
        corrupt_prompt: Text,
        around: tuple[int, int] | None = None,
        layer_radius: int = 3,
        position_radius: int = 3,
        **options: Unpack[SweepOptions],
    ) -> SweepResult:
        """Sweep every layer and position around a cell of a coarser sweep.

        Args:
            result: the coarser sweep.
            corrupt_prompt: what was patched there.
            around: layer and position; the best cell by default.
            layer_radius: how many layers to either side.
            position_radius: how many positions to either side.
            options: see `SweepOptions`; the hook and the metric are by default those of the result.

        Raises:
            OptionError: the result has no best cell to zoom in on, or is not of positions of one
                prompt.
            RequestError: one of the options is refused.
        """
        _check_zoom(result)
        layer, position = around or _best(result)
        tokens = await self._connection.tokens({"prompt": corrupt_prompt})
        model = await self.model()
        window: SweepOptions = {
            "hook": result.hook,
            "metric": result.metric_name,
            **options,
            "layers": _window(layer, layer_radius, model.num_layers),
            "positions": _window(position, position_radius, len(tokens.token_ids)),
        }
        return await self.sweep_layers_positions(corrupt_prompt, **window)

    async def drop_run(self, run: str) -> bool:
        """Drop a run, even while it is being read; return whether there was one."""
        return await self._connection.drop(run)


def _over_http(base_url: str) -> Connection:
    try:
        from aegir_adapters.patching.over_http import OverHTTP  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingExtraError("httpx", extra="patching") from error
    return OverHTTP(base_url)


def _check_zoom(result: SweepResult) -> None:
    several = "groups" if result.columns is not None else "prompt pairs"
    if result.columns is not None or result.response.pair_grids is not None:
        raise OptionError(
            f"Expected a sweep of one prompt's positions to zoom in on, got one of {several}",
            hint="Sweep the `layers` and `positions` around the cell",
        )


def _best(result: SweepResult) -> tuple[int, int]:
    best = result.argmax_cell()
    if best is None:
        raise OptionError(
            "Expected a cell to zoom in on, got a result without values", hint="Pass `around`"
        )
    return best.layer, best.position


def _window(centre: int, radius: int, count: int) -> list[int]:
    return [index for index in range(centre - radius, centre + radius + 1) if 0 <= index < count]
