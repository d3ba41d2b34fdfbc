"""Where a sweep's patches come from: a stored run, one captured now, or no run at all."""

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
from aegir_adapters.patching.plan import SweepPlan, aligned_pairs
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

__all__ = ["Origin", "find_origin"]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be told of where patches come from. It holds no activations.

    Attributes:
        positions: swept positions: those asked for that are aligned.
        alignment: how the prompts are aligned; `None` for a source without a prompt.
        leases: of the runs that the source reads.
        captured: name of the run, if it was captured for this sweep.
    """

    positions: tuple[int, ...]
    alignment: Alignment | None = None
    leases: tuple[Lease, ...] = ()
    captured: str | None = None


def find_origin(
    plan: SweepPlan,
    *,
    model: PatchableModel,
    store: RunStore,
    saes: Mapping[str, LatentDictionary],
    held: ExitStack,
) -> tuple[Source, Origin]:
    """Return what the engine is to read, and where that comes from.

    Args:
        plan: the sweep.
        model: captures what is not there.
        store: has the runs; a captured one is listed as transient.
        saes: by name.
        held: gets the release of every lease.

    Raises:
        RequestError: a run is not there or not of this kind, or nothing is aligned.
    """
    request = plan.request
    if plan.reads_run:
        run, origin = _from_run(plan, model, store, held)
        return _in_run(request, run, saes), origin
    if request.source == "mean":
        return _from_mean(plan, model, store, held)
    return _without_run(request, model, saes), Origin(positions=plan.positions)


def _from_run(
    plan: SweepPlan, model: PatchableModel, store: RunStore, held: ExitStack
) -> tuple[RunSource, Origin]:
    lease = _listed(plan, model, store, held)
    alignment = _aligned(plan, model, _source_ids(plan, lease))
    positions = tuple(p for p in plan.positions if p in alignment.sources)
    if not positions:
        raise RequestError(
            "positions",
            list(plan.positions),
            allowed="aligned with positions of the source run",
            hint=alignment.unaligned[0].reason.capitalize(),
        )
    sources = tuple(alignment.sources[position] for position in positions)
    lease, captured = _complete(plan, lease, sources, model=model, store=store, held=held)
    mapped = None if alignment.is_identity else alignment.sources
    origin = Origin(positions=positions, alignment=alignment, leases=(lease,), captured=captured)
    return RunSource(run=lease.run, alignment=mapped), origin


def _in_run(
    request: PatchSweepRequest, run: RunSource, saes: Mapping[str, LatentDictionary]
) -> Source:
    if request.latent is None:
        return run
    return FeatureSource(sae=saes[request.latent.sae], latent=request.latent.index, run=run)


def _without_run(
    request: PatchSweepRequest, model: PatchableModel, saes: Mapping[str, LatentDictionary]
) -> Source:
    if request.latent is not None:
        return FeatureSource(sae=saes[request.latent.sae], latent=request.latent.index)
    if request.vectors is not None:
        return VectorSource(vectors=_vectors(request.vectors, model))
    return ZeroSource()


def _from_mean(
    plan: SweepPlan, model: PatchableModel, store: RunStore, held: ExitStack
) -> tuple[MeanSource, Origin]:
    captured, leases = None, []
    if plan.request.source_runs is None:
        lease = _listed(plan, model, store, held)
        every = range(len(_source_ids(plan, lease)))
        lease, captured = _complete(plan, lease, every, model=model, store=store, held=held)
        leases.append(lease)
    for name in plan.request.source_runs or ():
        lease = _leased("source_runs", name, model, store, held)
        if lease is None:
            raise _unknown_run("source_runs", name, store)
        every = range(len(lease.run.token_ids))
        leases.append(_complete(plan, lease, every, model=model, store=store, held=held)[0])
    origin = Origin(positions=plan.positions, leases=tuple(leases), captured=captured)
    return MeanSource(runs=tuple(lease.run for lease in leases)), origin


def _listed(
    plan: SweepPlan, model: PatchableModel, store: RunStore, held: ExitStack
) -> Lease | None:
    """Return a lease of the run that is asked for; `None` if it is to be captured."""
    request, lease = plan.request, None
    if request.source_run is not None:
        lease = _leased("source_run", request.source_run, model, store, held)
        if lease is None and plan.clean is None:
            raise _unknown_run("source_run", request.source_run, store)
    if lease and plan.clean and plan.clean.token_ids != lease.run.token_ids:
        raise RequestError(
            "clean_prompt",
            request.clean_prompt,
            allowed=f"the prompt that run {lease.run_id!r} was captured from",
            hint="Leave one of `clean_prompt` and `source_run` out, or drop the run first",
        )
    return lease


def _leased(
    field: str, name: str, model: PatchableModel, store: RunStore, held: ExitStack
) -> Lease | None:
    lease = store.lease(name)
    if lease is None:
        return None
    held.callback(lease.release)
    if lease.run.model_id != model.model_id:
        raise RequestError(
            field,
            name,
            allowed=f"a run of {model.model_id}, and it is one of {lease.run.model_id}",
            hint="Drop the run and capture it again",
        )
    return lease


def _unknown_run(field: str, name: str, store: RunStore) -> RequestError:
    names = ", ".join(manifest.run_id for manifest in store.manifests()) or "none"
    return RequestError(
        field,
        name,
        allowed=f"the name of a captured run: {names}",
        hint="Give `clean_prompt` to have it captured in this sweep",
    )


def _source_ids(plan: SweepPlan, lease: Lease | None) -> tuple[int, ...]:
    if lease is not None:
        return lease.run.token_ids
    assert plan.clean is not None  # noqa: S101 - a plan without a run has its prompt
    return plan.clean.token_ids


def _aligned(plan: SweepPlan, model: PatchableModel, source_ids: tuple[int, ...]) -> Alignment:
    pairs, corrupt = plan.request.alignment, plan.prompt.token_ids
    if pairs == "auto":
        return align(source_ids, corrupt)
    clean = plan.clean or tokenize(model.tokenizer, source_ids)
    return align_as(source_ids, corrupt, aligned_pairs(pairs, plan.prompt, clean))


def _complete(
    plan: SweepPlan,
    lease: Lease | None,
    positions: Sequence[int],
    *,
    model: PatchableModel,
    store: RunStore,
    held: ExitStack,
) -> tuple[Lease, str | None]:
    """Return a lease of a run that has all that the sweep reads, and its name if it is new.

    A stored run that lacks some of it is captured again, with what it had and what is asked for.
    """
    token_ids = _source_ids(plan, lease)
    if lease is None:
        run = _captured(plan, model, token_ids, plan.layers)
        name = plan.request.source_run or uuid4().hex
        lease = store.put(name, run, transient=True)
        held.callback(lease.release)
        return lease, name
    if _lacks(lease.run, plan, positions):
        layers = {*lease.run.layers, *plan.layers}
        lease.replace(_captured(plan, model, token_ids, tuple(layers)))
    return lease, None


def _lacks(run: SourceRun, plan: SweepPlan, positions: Sequence[int]) -> bool:
    sites = {parse_hook(hook).site for hook in plan.hooks}
    return any(run.missing(site, plan.layers, positions) for site in sites)


def _captured(
    plan: SweepPlan, model: PatchableModel, token_ids: tuple[int, ...], layers: tuple[int, ...]
) -> SourceRun:
    """Capture all hooks at once, so that a run that is kept serves the sweep of any hook."""
    field = "source_run" if plan.clean is None else "clean_prompt"
    size = capture_bytes(model, layers=len(layers), positions=len(token_ids))
    plan.limits.check_bytes(field, size)
    return capture(model, token_ids, layers=sorted(layers), device="cpu")


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
