"""Where a sweep's patches come from: stored runs, runs captured now, or none at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from uuid import uuid4

import msgspec
import torch

from aegir_adapters.patching.alignment import Alignment, align, align_as
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.hooks import Site, parse_hook
from aegir_adapters.patching.limits import capture_bytes
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.plan import PairPlan
from aegir_adapters.patching.prompts import aligned_pairs, check_forced
from aegir_adapters.patching.request import PatchSweepRequest, RequestError, VectorRow
from aegir_adapters.patching.sources import (
    FeatureSource,
    LatentDictionary,
    MeanSource,
    RunSource,
    Source,
    SourceRun,
    VectorSource,
    ZeroSource,
)
from aegir_adapters.patching.spans import tokenize
from aegir_adapters.patching.store import Lease, RunStore

__all__ = ["Origin", "Origins"]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be told of where a prompt pair's patches come from. It holds no activations.

    Attributes:
        rows: for each column asked for, its positions that are aligned; none if it is not to be
            swept.
        alignment: how the prompts are aligned; `None` for a source without a prompt.
        leases: of the runs that the source reads.
        captured: name of the run, if it was captured for this sweep.
    """

    rows: tuple[tuple[int, ...], ...]
    alignment: Alignment | None = None
    leases: tuple[Lease, ...] = ()
    captured: str | None = None


class Origins:
    """Finds the sources of one sweep, of one prompt pair after the other.

    Args:
        model: captures what is not there.
        store: has the runs; a captured one is listed as transient.
        saes: by name.
        held: gets the release of every lease.
    """

    def __init__(
        self,
        model: PatchableModel,
        store: RunStore,
        saes: Mapping[str, LatentDictionary],
        held: ExitStack,
    ) -> None:
        self._model = model
        self._store = store
        self._saes = saes
        self._held = held
        self._captured_bytes = 0

    def find(self, plan: PairPlan) -> tuple[Source, Origin]:
        """Return what the engine is to read, and where that comes from.

        Raises:
            RequestError: a run is not there or not of this kind, or nothing is aligned.
        """
        request = plan.request
        if plan.reads_run:
            run, origin = self._from_run(plan)
            return self._in_run(request, run), origin
        if request.source == "mean":
            return self._from_mean(plan)
        return self._without_run(request), Origin(rows=plan.columns)

    def _from_run(self, plan: PairPlan) -> tuple[RunSource, Origin]:
        lease = self._listed(plan)
        alignment = self._aligned(plan, _source_ids(plan, lease))
        rows = tuple(
            tuple(row for row in column if row in alignment.sources) for column in plan.columns
        )
        if not any(rows):
            raise _unaligned(plan, alignment)
        sources = [alignment.sources[row] for column in rows for row in column]
        lease, captured = self._complete(plan, lease, sources)
        mapped = None if alignment.is_identity else alignment.sources
        origin = Origin(rows=rows, alignment=alignment, leases=(lease,), captured=captured)
        return RunSource(run=lease.run, alignment=mapped), origin

    def _in_run(self, request: PatchSweepRequest, run: RunSource) -> Source:
        if request.latent is None:
            return run
        sae = self._saes[request.latent.sae]
        return FeatureSource(sae=sae, latent=request.latent.index, run=run)

    def _without_run(self, request: PatchSweepRequest) -> Source:
        if request.latent is not None:
            return FeatureSource(sae=self._saes[request.latent.sae], latent=request.latent.index)
        if request.vectors is not None:
            return VectorSource(vectors=_vectors(request.vectors, self._model))
        return ZeroSource()

    def _from_mean(self, plan: PairPlan) -> tuple[MeanSource, Origin]:
        captured, leases = None, []
        if plan.request.source_runs is None:
            lease = self._listed(plan)
            lease, captured = self._complete(plan, lease, range(len(_source_ids(plan, lease))))
            leases.append(lease)
        for name in plan.request.source_runs or ():
            lease = self._leased("source_runs", name)
            if lease is None:
                raise self._unknown_run("source_runs", name)
            leases.append(self._complete(plan, lease, range(len(lease.run.token_ids)))[0])
        origin = Origin(rows=plan.columns, leases=tuple(leases), captured=captured)
        return MeanSource(runs=tuple(lease.run for lease in leases)), origin

    def _listed(self, plan: PairPlan) -> Lease | None:
        """Return a lease of the run that is asked for; `None` if it is to be captured."""
        request, lease = plan.request, None
        if request.source_run is not None:
            lease = self._leased("source_run", request.source_run)
            if lease is None and plan.clean is None:
                raise self._unknown_run("source_run", request.source_run)
        if lease and plan.clean and plan.clean.token_ids != lease.run.token_ids:
            raise RequestError(
                "clean_prompt",
                request.clean_prompt,
                allowed=f"the prompt that run {lease.run_id!r} was captured from",
                hint="Leave one of `clean_prompt` and `source_run` out, or drop the run first",
            )
        return lease

    def _leased(self, field: str, name: str) -> Lease | None:
        lease = self._store.lease(name)
        if lease is None:
            return None
        self._held.callback(lease.release)
        if lease.run.model_id != self._model.model_id:
            raise RequestError(
                field,
                name,
                allowed=f"a run of {self._model.model_id}, and it is one of {lease.run.model_id}",
                hint="Drop the run and capture it again",
            )
        return lease

    def _unknown_run(self, field: str, name: str) -> RequestError:
        names = ", ".join(manifest.run_id for manifest in self._store.manifests()) or "none"
        return RequestError(
            field,
            name,
            allowed=f"the name of a captured run: {names}",
            hint="Give `clean_prompt` to have it captured in this sweep",
        )

    def _aligned(self, plan: PairPlan, source_ids: tuple[int, ...]) -> Alignment:
        check_forced(plan.target, source_ids, self._model)
        pairs, corrupt = plan.request.alignment, plan.prompt.token_ids
        if pairs == "auto":
            return align(source_ids, corrupt)
        clean = plan.clean or tokenize(self._model.tokenizer, source_ids)
        return align_as(source_ids, corrupt, aligned_pairs(pairs, plan.prompt, clean))

    def _complete(
        self, plan: PairPlan, lease: Lease | None, positions: Sequence[int]
    ) -> tuple[Lease, str | None]:
        """Return a lease of a run that has all that the sweep reads, and its name if it is new.

        A stored run that lacks some of it is captured again, with what it had and what is asked
        for.
        """
        token_ids = _source_ids(plan, lease)
        if lease is None:
            run = self._capture(plan, token_ids, plan.layers)
            name = plan.request.source_run or uuid4().hex
            lease = self._store.put(name, run, transient=True)
            self._held.callback(lease.release)
            return lease, name
        if _lacks(lease.run, plan, positions):
            layers = {*lease.run.layers, *plan.layers}
            lease.replace(self._capture(plan, token_ids, tuple(layers)))
        return lease, None

    def _capture(
        self, plan: PairPlan, token_ids: tuple[int, ...], layers: tuple[int, ...]
    ) -> SourceRun:
        """Capture all hooks at once, so that a run that is kept serves the sweep of any hook."""
        field = "source_run" if plan.clean is None else "clean_prompt"
        size = capture_bytes(self._model, layers=len(layers), positions=len(token_ids))
        plan.limits.check_bytes(field, size, besides=self._captured_bytes)
        self._captured_bytes += size
        return capture(self._model, token_ids, layers=sorted(layers), device="cpu")


def _unaligned(plan: PairPlan, alignment: Alignment) -> RequestError:
    field = "positions" if plan.names is None else "groups"
    asked = sorted({row for column in plan.columns for row in column})
    return RequestError(
        field,
        asked if plan.names is None else plan.request.groups,
        allowed="aligned with positions of the source run",
        hint=alignment.unaligned[0].reason.capitalize(),
    )


def _source_ids(plan: PairPlan, lease: Lease | None) -> tuple[int, ...]:
    if lease is not None:
        return lease.run.token_ids
    assert plan.clean is not None  # noqa: S101 - a plan without a run has its prompt
    return plan.clean.token_ids


def _lacks(run: SourceRun, plan: PairPlan, positions: Sequence[int]) -> bool:
    sites = {parse_hook(hook).site for hook in plan.hooks}
    return any(run.missing(site, plan.layers, positions) for site in sites)


def _vectors(
    rows: Sequence[VectorRow], model: PatchableModel
) -> dict[tuple[Site, int], torch.Tensor]:
    vectors = {}
    for row in rows:
        if reason := model.refusal(row.hook):
            allowed = ", ".join(hook.name for hook in model.hooks)
            hint = f"This model refuses it: {reason}"
            raise RequestError("vectors", row.hook, allowed=f"for one of {allowed}", hint=hint)
        vectors[parse_hook(row.hook).site, row.layer] = torch.tensor(row.values)
    return vectors
