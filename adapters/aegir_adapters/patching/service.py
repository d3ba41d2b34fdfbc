"""Sweeps over one model: runs found or captured, leased, and let go whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from inspect import GEN_RUNNING, getgeneratorstate
from uuid import uuid4

from aegir_adapters.patching.answers import CapturedRun, ModelResponse, TokensResponse
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.columns import Columns, columns_of
from aegir_adapters.patching.engine_refusals import engine_refused
from aegir_adapters.patching.hooks import HOOKS
from aegir_adapters.patching.interruption import interruptible
from aegir_adapters.patching.limits import Limits, capture_bytes
from aegir_adapters.patching.manifest import RunManifest
from aegir_adapters.patching.metrics import MetricName
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.origin import Origin, Origins
from aegir_adapters.patching.plan import PairPlan, SweepPlan, plan_layers, plan_sweep
from aegir_adapters.patching.prompts import (
    check_forced,
    read_prompt,
    resolve_positions,
    spelled,
)
from aegir_adapters.patching.reading import engine_metrics
from aegir_adapters.patching.reporting import SweepReport
from aegir_adapters.patching.request import (
    CaptureRequest,
    PatchSweepRequest,
    RequestError,
    TokensRequest,
)
from aegir_adapters.patching.results import Position, SweepBegin
from aegir_adapters.patching.running import RunningSweep
from aegir_adapters.patching.sources import LatentDictionary, RunSource, Source, SourceRun
from aegir_adapters.patching.spec import CHUNK_BYTES, SweepSpec
from aegir_adapters.patching.store import RunStore
from aegir_adapters.patching.sweep import Item, sweep
from aegir_adapters.patching.target import Target, read_target

__all__ = ["PatchService"]

_CPU_CHUNK_BYTES = 1 << 25
"""On a CPU 32 MiB took no longer in all than 256 MiB, and no chunk half a second (8 layers)."""


class PatchService:
    """Sweeps, and the runs that they patch from.

    Safe to use from several threads: the model computes for one of them at a time, and sweeps that
    run at the same time take turns chunk by chunk. Everything here blocks while the model computes.

    Args:
        model: the model.
        store: where captured runs are kept; an empty one of its own by default. Clear it when the
            model's weights have changed.
        limits: what one request may take.
        saes: SAEs by the name under which requests know them.
        chunk_bytes: memory that the activations of one chunk may take. The cells of a chunk become
            final together, so smaller ones bring results sooner, and larger ones keep a GPU busy.
    """

    def __init__(
        self,
        model: PatchableModel,
        *,
        store: RunStore | None = None,
        limits: Limits | None = None,
        saes: Mapping[str, LatentDictionary] | None = None,
        chunk_bytes: int | None = None,
    ) -> None:
        self.model = model
        self.store = store or RunStore()
        self.limits = limits or Limits()
        self._saes = saes or {}
        on_cpu = model.device.type == "cpu"
        self._chunk_bytes = chunk_bytes or (_CPU_CHUNK_BYTES if on_cpu else CHUNK_BYTES)
        self._turn = threading.RLock()

    @contextmanager
    def sweep(
        self, request: PatchSweepRequest, *, interrupt: threading.Event | None = None
    ) -> Iterator[RunningSweep]:
        """Begin a sweep, and end it however the block is left.

        The baselines are computed when the block is entered; cells when they are asked for. On the
        way out the engine is closed and leases are released. A run that was captured for the sweep
        goes with its last lease, unless `keep_source` is set and the sweep came to its end.

        Args:
            request: what to sweep.
            interrupt: stops the model at its next layer when set, from whatever thread.

        Raises:
            RequestError: the request is refused.
            Interrupted: it was asked to stop.
        """
        with ExitStack() as held:
            with self._turn, interruptible(self.model.layers, interrupt):
                plan = plan_sweep(request, self.model, limits=self.limits, saes=self._saes)
                sources, origins = self._found(plan, held)
                columns = _swept_columns(plan, origins)
                specs = [
                    self._spec(pair, source, columns.positions(index))
                    for index, (pair, source) in enumerate(zip(plan.pairs, sources, strict=True))
                ]
                with engine_refused(request):
                    begin, items = self._begun(specs, held)
            report = SweepReport(plan, origins, columns, begin, num_layers=self.model.num_layers)
            yield RunningSweep(
                report,
                [lease for origin in origins for lease in origin.leases],
                items=items,
                turn=self._turn,
                layers=self.model.layers,
                interrupt=interrupt,
                held=held,
            )

    def capture(self, request: CaptureRequest) -> CapturedRun:
        """Capture a run of all hooks to stay, in the place of one of the same name.

        Raises:
            RequestError: the request is refused.
        """
        with self._turn:
            prompt = read_prompt("prompt", request.prompt, self.model, self.limits)
            layers = plan_layers(request.layers, self.model)
            if not layers:
                raise RequestError("layers", request.layers, allowed="at least one")
            target = read_target(request, self.model)
            check_forced(target, prompt.token_ids, self.model)
            size = capture_bytes(self.model, layers=len(layers), positions=len(prompt.token_ids))
            self.limits.check_bytes("prompt", size)
            run = capture(self.model, prompt.token_ids, layers=sorted(layers), device="cpu")
            values: Mapping[MetricName, float | None] = {}
            if target.answer_ids:
                values = self._baselines(run, target)
        name = request.source_run or uuid4().hex
        self.store.put(name, run).release()
        return CapturedRun(
            source_run=name,
            num_prompt_tokens=len(run.token_ids),
            layers=run.layers,
            size_bytes=run.size_bytes,
            clean_logprob=values.get("logprob"),
            clean_logit_diff=values.get("logit_diff"),
        )

    def drop(self, run_id: str) -> bool:
        """Drop a run, even if it is being read; return whether there was one."""
        return self.store.drop(run_id)

    def runs(self) -> tuple[RunManifest, ...]:
        """Return what all stored runs hold."""
        return self.store.manifests()

    def describe(self) -> ModelResponse:
        """Return what can be patched."""
        model = self.model
        refusals = {name: model.refusal(name) for name in HOOKS}
        return ModelResponse(
            model_id=model.model_id,
            hooks=tuple(hook.name for hook in model.hooks),
            refusals={name: reason for name, reason in refusals.items() if reason is not None},
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            has_tokenizer=model.tokenizer is not None,
            saes=tuple(self._saes),
            engine=model.engine,
            engine_reason=model.engine_reason,
        )

    def tokens(self, request: TokensRequest) -> TokensResponse:
        """Take a prompt apart.

        Raises:
            RequestError: the request is refused.
        """
        # A fast tokenizer fails if several threads use it at once.
        with self._turn:
            prompt = read_prompt("prompt", request.prompt, self.model, self.limits)
            tokens = spelled(prompt, self.model)
        return TokensResponse(
            token_ids=prompt.token_ids,
            tokens=tokens,
            positions=resolve_positions("positions", request.positions, prompt),
        )

    def _baselines(self, run: SourceRun, target: Target) -> Mapping[MetricName, float | None]:
        """Return the metrics of a run: a sweep that changes nothing has them as its baselines."""
        spec = SweepSpec(
            prompt_ids=run.token_ids,
            source=RunSource(run=run),
            hooks=(self.model.hooks[0].name,),
            layers=run.layers[:1],
            positions=(0,),
            alpha=0.0,
            answer_ids=target.answer_ids,
            foil_ids=target.foil_ids,
            metrics=("logprob",) if target.foil_ids is None else ("logprob", "logit_diff"),
            order="position",
        )
        with ExitStack() as held:
            begin, _ = self._begun([spec], held)
            return begin.baselines[0].corrupt

    def _found(
        self, plan: SweepPlan, held: ExitStack
    ) -> tuple[tuple[Source, ...], tuple[Origin, ...]]:
        """Return where the patches of each prompt pair come from; `held` gets what is leased."""
        finding = Origins(self.model, self.store, self._saes, held)
        found = []
        for pair in plan.pairs:
            with pair.asked.naming():
                found.append(finding.find(pair))
        sources, origins = zip(*found, strict=True)
        return sources, origins

    def _begun(
        self, specs: Sequence[SweepSpec], held: ExitStack
    ) -> tuple[SweepBegin, Iterator[Item]]:
        """Start the engine, to be closed with `held`, and take its first item."""
        items = sweep(self.model, specs)
        held.callback(self._close, items)
        begin = next(items)
        assert isinstance(begin, SweepBegin)  # noqa: S101 - our own bug otherwise
        return begin, items

    def _close(self, items: Generator[Item, None, None]) -> None:
        # Between two items it is closed at once, whoever has the turn. It runs only where a server
        # was killed, which cancels what waits for the thread, and not the thread.
        runs = getgeneratorstate(items) == GEN_RUNNING
        with self._turn if runs else nullcontext():
            items.close()

    def _spec(self, plan: PairPlan, source: Source, positions: tuple[Position, ...]) -> SweepSpec:
        return SweepSpec(
            prompt_ids=plan.prompt.token_ids,
            source=source,
            hooks=plan.hooks,
            layers=plan.layers,
            positions=positions,
            alpha=plan.request.alpha,
            answer_ids=plan.target.answer_ids,
            foil_ids=plan.target.foil_ids,
            metrics=engine_metrics(plan.request),
            order=plan.request.order,
            method=plan.request.method,
            chunk_bytes=self._chunk_bytes,
        )


def _swept_columns(plan: SweepPlan, origins: Sequence[Origin]) -> Columns:
    """Return the columns that are aligned in every pair.

    Raises:
        RequestError: none is.
    """
    columns = columns_of(plan.names, [origin.rows for origin in origins])
    if not columns.labels:
        raise RequestError(
            "pairs",
            f"{len(origins)} pairs",
            allowed="such that one column at least is aligned in all of them",
            hint="Give an `alignment`, or other positions",
        )
    return columns
