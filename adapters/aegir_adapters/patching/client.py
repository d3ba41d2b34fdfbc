"""Patching studies from Python, on a model in this process or on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Required, Self, TypedDict, Unpack, overload
from uuid import uuid4

import msgspec

from aegir_adapters.patching.connection import Connection, InProcess, OnCell
from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.request import SourceKind
from aegir_adapters.patching.response import ModelResponse
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.spans import Span
from aegir_adapters.patching.sweep_result import SweepResult, results_by_hook
from aegir_stream.errors import MissingExtraError, OptionError

__all__ = ["CleanRun", "PatchStudy", "SweepOptions"]

Text = str | Sequence[int]
"""Text, or token ids."""

Target = int | str | Sequence[int]
"""What is measured: a token id, text that is one token, or the ids of several tokens."""


class CleanRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was captured.

    Attributes:
        run_id: its name.
        prompt: its prompt.
        num_prompt_tokens: tokens of the prompt.
        clean_logprob: of the answer; `None` without one.
        clean_logit_diff: of answer and foil; `None` without them.
    """

    run_id: str
    prompt: Text
    num_prompt_tokens: int
    clean_logprob: float | None = None
    clean_logit_diff: float | None = None


class SweepOptions(TypedDict, total=False):
    """What to sweep, and with what. Other fields are those of `PatchSweepRequest`.

    Attributes:
        answer_token: what is measured.
        foil_token: what it is compared with, for `logit_diff`.
        run: name of the source run.
        clean: the source run, as it was captured.
        layers: a list, ``{"start": 0, "stop": 4, "step": 1}``, or `all`.
        positions: a list of positions and `Span`s, or `all_prompt`.
        on_cell: called with each cell as it becomes final, the most promising first.
    """

    answer_token: Required[Target]
    foil_token: Target | None
    run: str | None
    clean: CleanRun | None
    layers: Sequence[int] | Mapping[str, int] | Literal["all"]
    positions: Sequence[int | Span] | Literal["all_prompt"]
    on_cell: OnCell | None
    hook: str
    metric: MetricName
    alpha: float
    clean_prompt: Text
    keep_source: bool
    clean_baseline: float
    alignment: Sequence[Mapping[str, Any]]
    source: SourceKind
    source_runs: Sequence[str]
    vectors: Sequence[Mapping[str, Any]]
    latent: Mapping[str, Any]
    order: Literal["importance", "position"]
    limits: Mapping[str, int]


_OWN = ("answer_token", "foil_token", "run", "clean", "layers", "on_cell")
"""Options that the request does not have under the same name."""


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
                **_target("answer", answer_token),
                **_target("foil", foil_token),
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
        self, corrupt_prompt: Text, *, hooks: None = None, **options: Unpack[SweepOptions]
    ) -> SweepResult: ...

    @overload
    async def sweep_layers_positions(
        self, corrupt_prompt: Text, *, hooks: Sequence[str], **options: Unpack[SweepOptions]
    ) -> dict[str, SweepResult]: ...

    async def sweep_layers_positions(
        self,
        corrupt_prompt: Text,
        *,
        hooks: Sequence[str] | None = None,
        **options: Unpack[SweepOptions],
    ) -> SweepResult | dict[str, SweepResult]:
        """Sweep layers and positions.

        Args:
            corrupt_prompt: what is patched.
            hooks: several hooks; the result is then a dictionary by their names.
            options: see `SweepOptions`.

        Raises:
            RequestError: one of these is refused.
        """
        if hooks is None:
            (only,) = (await self._swept(corrupt_prompt, {}, options)).values()
            return only
        return await self._swept(corrupt_prompt, {"hooks": hooks}, options)

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
            OptionError: the result has no best cell to zoom in on.
            RequestError: one of the options is refused.
        """
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

    async def _swept(
        self, corrupt_prompt: Text, fields: dict[str, Any], options: SweepOptions
    ) -> dict[str, SweepResult]:
        fields |= {name: value for name, value in options.items() if name not in _OWN}
        fields |= {"prompt": corrupt_prompt, "layers": options.get("layers", "all")}
        fields |= _target("answer", options["answer_token"])
        fields |= _target("foil", options.get("foil_token"))
        clean, run = options.get("clean"), options.get("run")
        if run is not None or clean is not None:
            fields["source_run"] = clean.run_id if clean is not None and run is None else run
        # What a request refuses, it refuses alike here and over HTTP, from plain values.
        plain = msgspec.to_builtins(fields)
        return results_by_hook(await self._connection.sweep(plain, options.get("on_cell")))


def _over_http(base_url: str) -> Connection:
    try:
        from aegir_adapters.patching.over_http import OverHTTP  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MissingExtraError("httpx", extra="patching") from error
    return OverHTTP(base_url)


def _target(kind: str, target: Target | None) -> dict[str, Any]:
    if target is None:
        return {}
    if isinstance(target, int):
        return {f"{kind}_token_id": target}
    return {f"{kind}_token" if isinstance(target, str) else kind: target}


def _best(result: SweepResult) -> tuple[int, int]:
    best = result.argmax_cell()
    if best is None:
        raise OptionError(
            "Expected a cell to zoom in on, got a result without values", hint="Pass `around`"
        )
    return best.layer, best.position


def _window(centre: int, radius: int, count: int) -> list[int]:
    return [index for index in range(centre - radius, centre + radius + 1) if 0 <= index < count]
