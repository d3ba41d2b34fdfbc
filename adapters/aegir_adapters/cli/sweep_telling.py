"""What a sweep's record says that the patching service does not know: names, texts, the latent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from aegir_adapters.cli.sweep_latents import LatentPlace
from aegir_stream.errors import OptionError
from aegir_stream.sweep_events import SweptLatent

if TYPE_CHECKING:
    from aegir_adapters.cli.sweep_model import Subject
    from aegir_adapters.cli.sweep_saes import LoadedSAE
    from aegir_adapters.patching.recording import About
    from aegir_adapters.patching.request import PatchSweepRequest
    from aegir_adapters.patching.service import PatchService

__all__ = ["about", "with_latent"]


def about(asked: PatchSweepRequest, subject: Subject, service: PatchService) -> About:
    """Return what the service does not say of a sweep.

    Raises:
        OptionError: a prompt is no prompt of the model.
    """
    from aegir_adapters.patching.wording import worded  # noqa: PLC0415 - needs the extra

    return worded(
        asked,
        service,
        model=subject.name,
        layers=asked.layers if isinstance(asked.layers, tuple) else (),
        checkpoint=subject.checkpoint.name if subject.checkpoint else None,
        step=subject.checkpoint.step if subject.checkpoint else None,
    )


def with_latent(
    told: About,
    asked: PatchSweepRequest,
    service: PatchService,
    *,
    latent: LatentPlace,
    sae: LoadedSAE,
) -> About:
    """Return the same, with how strongly the patched latent fires in the prompts.

    Raises:
        OptionError: the SAE has no such latent.
    """
    reader = _Latent(service, latent, sae)
    asked_pairs: tuple[Any, ...] = asked.pairs or (asked,)
    read = [
        {
            "activations": reader.activations(pair.prompt),
            "clean_activations": reader.activations(pair.clean_prompt),
        }
        for pair in asked_pairs
    ]
    swept = SweptLatent(
        layer=latent.layer,
        index=latent.index,
        sae=sae.name,
        weights_sha256=sae.weights_sha256,
        **read[0],
    )
    return replace(
        told,
        latent=swept,
        pairs=tuple(replace(pair, **one) for pair, one in zip(told.pairs, read, strict=False)),
        warnings=(*told.warnings, *reader.warnings()),
    )


class _Latent:
    """Reads how strongly a latent fires in prompts."""

    def __init__(self, service: PatchService, latent: LatentPlace, sae: LoadedSAE) -> None:
        if latent.index >= sae.sae.n_latents:
            raise OptionError(
                f"Expected `latent` to be one of the {sae.sae.n_latents:,} of the SAE of layer "
                f"{latent.layer}, got {latent.index}",
                hint=f"They are counted from 0; the SAE lies in {sae.name}",
            )
        self._service = service
        self._latent = latent
        self._sae = sae
        self._fired = False

    def activations(self, prompt: str | tuple[int, ...] | None) -> tuple[float, ...]:
        """Return the activation at every token of a prompt; nothing where there is none."""
        if prompt is None:
            return ()
        from aegir_adapters.patching.capture import capture  # noqa: PLC0415 - needs the extra
        from aegir_adapters.patching.request import TokensRequest  # noqa: PLC0415 - likewise

        model, layer = self._service.model, self._latent.layer
        ids = self._service.tokens(TokensRequest(prompt=prompt)).token_ids
        run = capture(model, ids, layers=[layer], device=model.device)
        rows = run.at("resid_post", layer, range(len(ids)))
        values: list[float] = self._sae.sae.encode(rows.float())[:, self._latent.index].tolist()
        self._fired = self._fired or any(values)
        return tuple(values)

    def warnings(self) -> Iterator[str]:
        """Yield what a reader should know, once all prompts were read."""
        if self._sae.warning is not None:
            yield self._sae.warning
        if not self._fired:
            yield (
                f"Latent {self._latent.index} of layer {self._latent.layer} is zero at every token "
                "of these prompts, so patching it changes nothing"
            )
