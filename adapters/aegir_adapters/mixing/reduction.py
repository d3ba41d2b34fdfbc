"""Metrics over all ranks, in at most two collectives whatever their number.

Everything that is added travels in one packed SUM, everything else in one packed MAX, both float64
with their values in an order that every rank derives alike. Every rank calls the same function at
the same step, also one that has nothing to say. A process without a group does the same arithmetic
and no collective.

Not-a-number is contagious and infinities are values: a metric that is NaN on any rank is NaN
everywhere, in its mean, sum and maximum alike, and on every rank the same. Backends do not agree on
what the maximum of a NaN is, so NaN travels as a count beside the values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf, isnan, nan
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from aegir_adapters.mixing.formulas import (
    MixTotals,
    Targets,
    mix_scalars,
    raw_keys,
    totals_from_raw,
)
from aegir_stream.errors import OptionError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["aggregate_step_metrics", "reduce_loss_metrics", "total_step_metrics"]

Metrics = Mapping[str, float | Tensor]


def reduce_loss_metrics(
    metrics: Metrics,
    mesh: DeviceMesh | ProcessGroup | None = None,
    *,
    sum_keys: Collection[str] = (),
    keys: Iterable[str] | None = None,
) -> dict[str, float]:
    """Return each metric over all ranks: its mean (or sum) as `k`, its maximum as `k_max`.

    A collective: every rank calls it at the same step with the same `sum_keys` and the same keys.
    The mean is over the ranks that have the metric. Where none has it, the sum is 0 and mean and
    maximum are NaN.

    Args:
        metrics: this rank's values: numbers, or tensors of one element (copied to the host in one
            go for each device).
        mesh: the ranks; a one-dimensional device mesh or a process group, `None` for all of them.
        sum_keys: metrics that are counts: `k` is their sum over the ranks.
        keys: the metrics that exist, for calls in which some rank may lack some: it takes part with
            values that change nothing. By default those of this rank, which then have to be
            those of every rank.

    Raises:
        OptionError: `sum_keys` names a metric that does not exist, `metrics` holds one that is not
            among `keys`, or two metrics would be written under one name. Raised before any
            collective, so that a rank which is called wrongly never leaves the others waiting
            half-way through one.
    """
    names = sorted(set(metrics if keys is None else keys))
    _check_names(names, metrics, sum_keys)
    values = _numbers(metrics)
    addends = [values.get(name, 0.0) for name in names]
    present = [float(name in values) for name in names]
    sums, maxima = _reduce([*addends, *present], [values.get(name, -inf) for name in names], mesh)
    counts = sums[len(names) :]
    result: dict[str, float] = {}
    for name, total, count, largest in zip(names, sums, counts, maxima, strict=False):
        result[name] = total if name in sum_keys else (total / count if count else nan)
        result[f"{name}_max"] = largest if count else nan
    return result


def total_step_metrics(
    raw: Mapping[str, float],
    targets: Targets,
    mesh: DeviceMesh | ProcessGroup | None = None,
) -> MixTotals:
    """Return what happened in a window over all ranks. A collective.

    Args:
        raw: what this rank's `StreamMixer.drain_step_metrics` returned; empty on a rank without a
            mixer, which takes part all the same.
        targets: `StreamMixer.targets`, equal on all ranks.
        mesh: see `reduce_loss_metrics`.

    Raises:
        OptionError: the raw values are not those of a mixer with these targets. Raised before any
            collective.
    """
    keys = raw_keys(targets)
    _check_raw(raw, keys.all)
    get = raw.get
    sums, extremes = _reduce(
        [get(key, 0.0) for key in keys.sums],
        [*(get(key, 0.0) for key in keys.maxima), *(-get(key, inf) for key in keys.minima)],
        mesh,
    )
    cut = len(keys.maxima)
    reduced = (*sums, *extremes[:cut], *(-value for value in extremes[cut:]))
    return totals_from_raw(dict(zip(keys.all, reduced, strict=True)), targets)


def aggregate_step_metrics(
    raw: Mapping[str, float],
    targets: Targets,
    mesh: DeviceMesh | ProcessGroup | None = None,
) -> dict[str, float | None]:
    """Return the seven `stream_mixing/` scalars over all ranks. A collective.

    `total_step_metrics`, then `mix_scalars`; see there for what it takes and what it returns.
    """
    return mix_scalars(total_step_metrics(raw, targets, mesh), targets)


def _check_names(names: Sequence[str], metrics: Metrics, sum_keys: Collection[str]) -> None:
    """Refuse what the other ranks could not make sense of."""
    known = set(names)
    for what, given in (("sum_keys", sum_keys), ("metrics", metrics)):
        unknown = sorted(set(given) - known)
        if unknown:
            raise OptionError(
                f"Expected `{what}` among the metrics {list(names)}, got {unknown}",
                hint="Pass every metric that some rank may have as `keys`, the same on all ranks",
            )
    twice = [name for name in names if f"{name}_max" in known]
    if twice:
        raise OptionError(
            f"Expected no metric named like the maximum of another, got {twice[0]!r} and"
            f" '{twice[0]}_max'",
            hint="Rename one: the maximum of each metric is returned under its name and `_max`",
        )


def _check_raw(raw: Mapping[str, float], expected: Sequence[str]) -> None:
    """Refuse raw values of another mixer; none at all are those of a rank without one."""
    if raw and raw.keys() != set(expected):
        odd = sorted(set(raw) ^ set(expected))
        raise OptionError(
            f"Expected the raw values of a mixer with these targets, got a difference in {odd}",
            hint="Pass what `drain_step_metrics()` returned, and `targets` of the same mixer",
        )


def _numbers(metrics: Metrics) -> dict[str, float]:
    """Return metrics as numbers, with one copy to the host for each device they are on."""
    numbers: dict[str, float] = {}
    tensors: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            tensors.setdefault(value.device, {})[name] = value.detach().reshape(())
        else:
            numbers[name] = float(value)
    for device, held in tensors.items():
        # Not every device has float64.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        stacked = torch.stack([value.to(dtype) for value in held.values()])
        numbers.update(zip(held, stacked.tolist(), strict=True))
    return numbers


def _reduce(
    sums: Sequence[float], maxima: Sequence[float], mesh: DeviceMesh | ProcessGroup | None
) -> tuple[list[float], list[float]]:
    """Return sums and maxima over all ranks: one SUM and one MAX, or neither without a group."""
    if mesh is None and not (distributed.is_available() and distributed.is_initialized()):
        return list(map(float, sums)), list(map(float, maxima))
    unknown = [float(isnan(value)) for value in maxima]
    known = [-inf if isnan(value) else value for value in maxima]
    group = _group_of(mesh)
    added = _all_reduced([*sums, *unknown], distributed.ReduceOp.SUM, group)
    largest = _all_reduced(known, distributed.ReduceOp.MAX, group)
    flags = added[len(sums) :]
    return added[: len(sums)], [
        nan if flag else value for flag, value in zip(flags, largest, strict=True)
    ]


def _all_reduced(
    values: list[float], operation: distributed.ReduceOp.RedOpType, group: ProcessGroup | None
) -> list[float]:
    packed = torch.tensor(values, dtype=torch.float64, device=_device_of(group))
    distributed.all_reduce(packed, op=operation, group=group)
    reduced: list[float] = packed.tolist()
    return reduced


def _group_of(mesh: DeviceMesh | ProcessGroup | None) -> ProcessGroup | None:
    """Return the process group of a mesh; `None` is that of all ranks."""
    get_group = getattr(mesh, "get_group", None)
    if get_group is None:
        return mesh  # type: ignore[return-value]
    if mesh.ndim != 1:  # type: ignore[union-attr]
        raise OptionError(
            f"Expected a mesh of one dimension, got one of {mesh.ndim}",  # type: ignore[union-attr]
            hint='Name the dimension to reduce over, such as `mesh["dp"]`',
        )
    group: ProcessGroup = get_group()
    return group


def _device_of(group: ProcessGroup | None) -> torch.device:
    """Return where the backend of a group wants its tensors."""
    devices = distributed.Backend.backend_capability.get(distributed.get_backend(group), ["cpu"])
    if "cpu" in devices:
        return torch.device("cpu")
    return torch.device(devices[0], torch.get_device_module(devices[0]).current_device())
