"""What was asked for on the command line, as a request to the patching service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from aegir_adapters.cli.indices import indices
from aegir_adapters.cli.sweep_groups import read_groups
from aegir_adapters.cli.sweep_latents import LatentPlace, sae_name
from aegir_adapters.cli.sweep_prompts import Prompt
from aegir_stream.errors import OptionError

if TYPE_CHECKING:
    from aegir_adapters.patching.request import PatchSweepRequest
    from aegir_adapters.patching.service import PatchService

__all__ = ["HOOKS", "HOOK_OF_LATENTS", "Asked", "check", "request"]

HOOKS = "resid_pre,attn_out,mlp_out"
"""Where a sweep patches unless it is told."""

HOOK_OF_LATENTS = "resid_post"
"""What SAEs here read, and where alone their latents can be patched."""

_ALL = "all"
_BESIDE_PAIRS = ("prompt", "clean")
_NEED_CLEAN = ("recovered", "recovered_logit_diff")
_NEED_FOIL = ("logit_diff", "recovered_logit_diff")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep as it was typed.

    Attributes:
        prompt: what is patched; `None` where there are pairs.
        answer: what is measured; of pairs those that have none of their own.
        clean: where the activations come from; `None` puts in zeros.
        foil: what the answer is compared with; of pairs as the answer.
        pairs: several prompts, each with what belongs to it, as fields of a request.
        hooks: names of hooks, with commas between; the usual ones if `None`.
        layers: see `indices`; all, or that of the latent, if `None`.
        positions: likewise, of the prompt.
        groups: groups of positions in their place, see `read_groups`.
        metrics: what a cell holds, of which the first is drawn; chosen by what else is there if
            empty.
        alpha: how much of an activation is replaced.
        preview: whether cells are estimated in the place of being computed.
        latent: the latent that is patched in the place of whole activations.
        sae: where its SAE lies; where the run's own does if `None`.
    """

    prompt: Prompt | None = None
    answer: Prompt | None = None
    clean: Prompt | None = None
    foil: Prompt | None = None
    pairs: tuple[dict[str, Any], ...] | None = None
    hooks: str | None = None
    layers: str | None = None
    positions: str = _ALL
    groups: str | None = None
    metrics: tuple[str, ...] = ()
    alpha: float = 1.0
    preview: bool = False
    latent: LatentPlace | None = None
    sae: str | None = None

    @property
    def has_clean(self) -> bool:
        """Whether activations come from another prompt."""
        if self.pairs is None:
            return self.clean is not None
        return any(_has_clean(pair) for pair in self.pairs)

    @property
    def has_foil(self) -> bool:
        """Whether the answer is compared with something."""
        if self.foil is not None or not self.pairs:
            return self.foil is not None
        return all(_named(pair, "foil") for pair in self.pairs)


def check(asked: Asked) -> None:
    """Refuse what cannot be asked for of any model, before one is loaded.

    Raises:
        OptionError: an option is missing, or does not go with another one.
    """
    if asked.pairs is None:
        _check_prompt(asked)
    else:
        _check_pairs(asked, asked.pairs)
    if asked.groups is not None:
        if asked.positions != _ALL:
            raise _beside("positions", asked.positions, "groups")
        read_groups(asked.groups)
    _check_metrics(asked)
    if asked.latent is not None:
        _check_latent(asked, asked.latent)
    elif asked.sae is not None:
        raise OptionError(
            f"Expected `sae` beside `latent` alone, got `{asked.sae}`",
            hint="Name the latent with --latent LAYER:INDEX, or leave out --sae",
        )


def request(asked: Asked, service: PatchService) -> PatchSweepRequest:
    """Return the request.

    Raises:
        OptionError: layers, positions or groups are none, or a prompt is no prompt of the model.
    """
    from aegir_adapters.patching.request import (  # noqa: PLC0415 - needs the extra
        PatchSweepRequest,
        convert_request,
    )

    layers = asked.layers or (_ALL if asked.latent is None else str(asked.latent.layer))
    fields: dict[str, Any] = {
        "answer": asked.answer,
        "foil": asked.foil,
        "hooks": _hooks(asked),
        "layers": indices(layers, count=service.model.num_layers, option="layers"),
        "alpha": asked.alpha,
        "method": "attribution" if asked.preview else "exact",
        "source": _source(asked),
    }
    if asked.latent is not None:
        fields["latent"] = {"sae": sae_name(asked.latent.layer), "index": asked.latent.index}
    if len(asked.metrics) > 1:
        fields["metrics"] = asked.metrics
    else:
        fields["metric"] = asked.metrics[0] if asked.metrics else _metric(asked)
    fields |= _prompts(asked, service)
    return convert_request(fields, PatchSweepRequest)


def _prompts(asked: Asked, service: PatchService) -> dict[str, Any]:
    """Return the fields that say what is patched, and where in it."""
    if asked.pairs is None:
        assert asked.prompt is not None  # noqa: S101 - checked before
        places = _places(asked, asked.prompt, service)
        return {"prompt": asked.prompt, "clean_prompt": asked.clean, **places}
    if asked.groups is None:
        return {"pairs": asked.pairs}
    return {
        "pairs": [
            {**_groups_of(index, pair, asked.groups, service), **pair}
            for index, pair in enumerate(asked.pairs)
        ]
    }


def _places(asked: Asked, prompt: Prompt, service: PatchService) -> dict[str, Any]:
    count = _length(prompt, service)
    if asked.groups is not None:
        return {"groups": read_groups(asked.groups).within(count)}
    return {"positions": indices(asked.positions, count=count, option="positions")}


def _groups_of(
    index: int, pair: Mapping[str, Any], groups: str, service: PatchService
) -> dict[str, Any]:
    """Return the groups of a pair that has none of its own; a range depends on its length."""
    if pair.get("groups") is not None or "prompt" not in pair:
        return {}
    count = _length(pair["prompt"], service)
    return {"groups": read_groups(groups).within(count, option=f"pairs[{index}].groups")}


def _length(prompt: Any, service: PatchService) -> int:
    from aegir_adapters.patching.request import (  # noqa: PLC0415 - needs the extra
        TokensRequest,
        convert_request,
    )

    told = service.tokens(convert_request({"prompt": prompt}, TokensRequest))
    return len(told.token_ids)


def _check_prompt(asked: Asked) -> None:
    if asked.prompt is None:
        raise _missing("prompt", "--prompt, --prompt-ids or --pairs")
    if asked.answer is None:
        raise _missing("answer", "--answer or --answer-ids")


def _check_pairs(asked: Asked, pairs: tuple[dict[str, Any], ...]) -> None:
    for option in _BESIDE_PAIRS:
        if (value := getattr(asked, option)) is not None:
            raise _beside(option, value, "pairs")
    if asked.positions != _ALL:
        raise _beside("positions", asked.positions, "pairs")
    has = [_has_clean(pair) for pair in pairs]
    if any(has) and not all(has):
        raise OptionError(
            "Expected `pairs` to have a `clean_prompt` all of them or none, got one without: "
            f"pair {has.index(False)}",
            hint="Without clean prompts zeros are put in, and a mean over both would mean nothing",
        )
    without = [
        index for index, pair in enumerate(pairs) if asked.answer is None and not _named(pair)
    ]
    if without:
        raise OptionError(
            f"Expected an `answer` of every pair, got none of pair {without[0]}",
            hint="Give it there, or one for all of them with --answer or --answer-ids",
        )


def _check_metrics(asked: Asked) -> None:
    for metric in asked.metrics:
        if metric in _NEED_CLEAN and not asked.has_clean:
            raise OptionError(
                f"Expected `metric` to be another one without a clean prompt, got `{metric}`",
                hint="Give a clean prompt with --clean, or choose logprob, logit_diff, kl or rank",
            )
        if metric in _NEED_FOIL and not asked.has_foil:
            raise OptionError(
                f"Expected a `foil`, which {metric} compares the answer with, got nothing",
                hint="Give it with --foil or --foil-ids, or choose recovered or logprob",
            )


def _check_latent(asked: Asked, latent: LatentPlace) -> None:
    reads = f"the SAE of layer {latent.layer} reads what that layer puts out"
    if asked.hooks not in (None, HOOK_OF_LATENTS):
        raise OptionError(
            f"Expected `hooks` to be {HOOK_OF_LATENTS} with --latent, for {reads}, got "
            f"`{asked.hooks}`",
            hint="Leave out --hooks",
        )
    if asked.layers is not None and asked.layers.strip() != str(latent.layer):
        raise OptionError(
            f"Expected `layers` to be {latent.layer} with --latent, for {reads}, got "
            f"`{asked.layers}`",
            hint="Leave out --layers",
        )


def _hooks(asked: Asked) -> tuple[str, ...]:
    usual = HOOKS if asked.latent is None else HOOK_OF_LATENTS
    hooks = usual if asked.hooks is None else asked.hooks
    return tuple(hook.strip() for hook in hooks.split(","))


def _source(asked: Asked) -> str:
    if asked.latent is not None:
        return "latent"
    return "run" if asked.has_clean else "zero"


def _metric(asked: Asked) -> str:
    """Return what is brought back of what the prompts differ in, where there are two of them."""
    if not asked.has_clean:
        return "logit_diff" if asked.has_foil else "logprob"
    return "recovered_logit_diff" if asked.has_foil else "recovered"


def _has_clean(pair: Mapping[str, Any]) -> bool:
    return any(pair.get(field) is not None for field in ("clean_prompt", "source_run"))


def _named(pair: Mapping[str, Any], kind: str = "answer") -> bool:
    return any(pair.get(field) is not None for field in (kind, f"{kind}_token", f"{kind}_token_id"))


def _missing(option: str, choices: str) -> OptionError:
    return OptionError(f"Expected `{option}`, got nothing", hint=f"Give {choices}")


def _beside(option: str, value: Any, other: str) -> OptionError:
    return OptionError(
        f"Expected no `{option}` beside `{other}`, got `{value}`",
        hint=f"Leave out --{option}, or --{other}",
    )
