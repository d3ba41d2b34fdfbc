"""An SAE from whose records the residual stream is read back, and what should stand there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from aegir_adapters.sae import StandardSAE, Weights
from aegir_adapters.trainer import Precision
from aegir_adapters.trainer.layers import unwrapped

from .tiny import HIDDEN, LAYERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from aegir_stream.events import Completion, SAELogRecord

    from .tiny import Recorded


def revealing_sae() -> StandardSAE:
    """Return an SAE with a latent for each half axis: its code is x, positive and negative."""
    axes = torch.eye(HIDDEN)
    return StandardSAE(
        Weights(
            w_enc=torch.cat([axes, -axes], dim=1),
            b_enc=torch.zeros(2 * HIDDEN),
            w_dec=torch.cat([axes, -axes]),
            b_dec=torch.zeros(HIDDEN),
        )
    )


def revealing() -> dict[str, Any]:
    """Return the options of `observe` with which records say all of the residual stream."""
    saes = {layer: revealing_sae() for layer in LAYERS}
    return {"sae": saes, "top_k": HIDDEN, "precision": Precision.exact()}


def revealed(record: SAELogRecord) -> Tensor:
    """Return the residual stream (d_model,) of which a record tells."""
    code = torch.zeros(2 * HIDDEN)
    code[list(record.top_feature_indices)] = torch.tensor(record.top_feature_activations)
    return code[:HIDDEN] - code[HIDDEN:]


@torch.no_grad()
def alone(policy: nn.Module, ids: Sequence[int]) -> Mapping[int, Tensor]:
    """Return the output of each layer, (T, d_model), by a forward of one sequence alone."""
    causal: Any = unwrapped(policy)
    policy.train(mode=False)
    output = causal.model(torch.tensor([list(ids)]), output_hidden_states=True)
    return {layer: output.hidden_states[layer + 1][0] for layer in LAYERS}


def all_of(completion: Completion) -> Sequence[int]:
    """Return the positions of all tokens of a completion."""
    return range(completion.length)


def off_by(
    recorded: Recorded,
    policy: nn.Module,
    *,
    records: Sequence[SAELogRecord] | None = None,
    positions: Callable[[Completion], Sequence[int]] = all_of,
) -> float:
    """Return by how much any record of a completion differs from a forward of it alone.

    Its tokens at these positions must be recorded once at every layer, and no others. The records
    are those of the live tail if not given.
    """
    records = recorded.records if records is None else records
    places = {(r.step, r.completion, r.layer_index, r.token_index): r for r in records}
    assert len(places) == len(records)
    worst = 0.0
    for c in recorded.completions:
        assert c.prompt_ids is not None
        assert c.token_ids is not None
        for layer, hidden in alone(policy, c.prompt_ids + c.token_ids).items():
            for index in positions(c):
                x = hidden[len(c.prompt_ids) + index]
                record = places.pop((c.step, c.completion, layer, index))
                worst = max(worst, (revealed(record) - x).abs().max().item())
    assert not places
    return worst


def sequences(records: Sequence[SAELogRecord]) -> list[Tensor]:
    """Return the residuals (n, d_model) of each sequence: `token_index` tells where one begins."""
    found: list[list[Tensor]] = []
    for record in records:
        if record.token_index == 0:
            found.append([])
        assert record.token_index == len(found[-1])
        found[-1].append(revealed(record))
    return [torch.stack(rows) for rows in found]
