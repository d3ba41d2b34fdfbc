"""The `cfg.json` of SAELens, of version 6 and of those before it: what it says of an SAE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from aegir_stream.errors import SAEFormatError

FORMAT_VERSION = "6.0.0"
"""What readers compare with 6 to tell this format from its predecessors."""

TRANSCODERS = (
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", *TRANSCODERS)

_ROW_WISE = ("constant_norm_rescale", "layer_norm")
NORMALISATIONS = ("none", "expected_average_only_in", *_ROW_WISE)

_TRAINED = ("batchtopk", "matryoshka_batchtopk")
_RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_HOOK = re.compile(r"blocks\.(?P<block>\d+)\.(?P<place>.+)")


class Metadata(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Facts about an SAE that do not change what it computes; `repository` and on are ours."""

    sae_lens_version: str | None = None
    model_name: str | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    repository: str | None = None
    revision: str | None = None


class Config(Struct, frozen=True, kw_only=True):
    """What defines an SAE beside its tensors, by the names and defaults of SAELens.

    `k` and `rescale_acts_by_decoder_norm` belong to the architecture `topk` only, `d_out` to
    transcoders.
    """

    architecture: str
    d_in: int
    d_sae: int
    dtype: str = "float32"
    device: str = "cpu"
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    metadata: Metadata = field(default_factory=Metadata)
    k: int | UnsetType = UNSET
    rescale_acts_by_decoder_norm: bool | UnsetType = UNSET
    d_out: int | UnsetType = UNSET

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts another place than it reads."""
        return self.architecture in TRANSCODERS

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that must stand beside it."""
        width = self.d_out if isinstance(self.d_out, int) else self.d_in
        biases = ("b_gate", "b_mag", "r_mag") if self.architecture == "gated" else ("b_enc",)
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (self.d_in, self.d_sae),
            **dict.fromkeys(biases, (self.d_sae,)),
            "W_dec": (self.d_sae, width),
            "b_dec": (width,),
        }
        if self.architecture.startswith("jumprelu"):
            shapes["threshold"] = (self.d_sae,)
        if self.architecture.endswith("skip_transcoder"):
            shapes["W_skip"] = (width, self.d_in)
        return shapes


def read_config(path: Path) -> Config:
    """Read a `cfg.json` of any version, and make sure that it asks for nothing not built here.

    Raises:
        SAEFormatError: it does not parse, lacks a key, or asks for more.
    """
    try:
        stated = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        config = msgspec.convert(_current(stated, path), Config)
    except msgspec.DecodeError as error:
        raise SAEFormatError(
            f"{error} - in {path}", hint="It is no configuration of SAELens"
        ) from error
    _check_architecture(config, path)
    _check_inputs(config, path)
    return config


def layer_of(hook_name: str | None) -> int | None:
    """Return the layer that a hook belongs to: the one whose output it is, if it is one.

    What TransformerLens calls `blocks.12.hook_resid_pre` is the output of layer 11.
    """
    hook = _HOOK.fullmatch(hook_name or "")
    if hook is None:
        return None
    block = int(hook["block"])
    before = hook["place"] == "hook_resid_pre"
    return block - 1 if before and block else None if before else block


def output_layer_of(hook_name: str | None) -> int | None:
    """Return the layer whose output a hook is; `None` for any other place in the model."""
    residual = (hook_name or "").endswith((".hook_resid_post", ".hook_resid_pre"))
    return layer_of(hook_name) if residual else None


def one_of(names: Iterable[str], *, joint: str = "or") -> str:
    """Return names as prose: `a`, `b` or `c`."""
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} {joint} {last}" if first else last


def _current(stated: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a configuration in the terms of version 6.

    One without a version is older than those that state it, as SAELens takes it.
    """
    metadata = stated.get("metadata")
    nested = metadata if isinstance(metadata, dict) else {}
    version = stated.get("sae_lens_version") or nested.get("sae_lens_version")
    major = re.match(r"\d+", str(version or ""))
    if major is not None and int(major[0]) >= 6:  # noqa: PLR2004
        return stated
    return _before_6({_RENAMED.get(key, key): value for key, value in stated.items()}, nested, path)


def _before_6(stated: dict[str, Any], nested: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a flat configuration of an older version in the terms of version 6."""
    hook_name = stated.get("hook_name")
    normalisation = stated.get("normalize_activations")
    if not isinstance(normalisation, str):
        normalisation = "expected_average_only_in" if normalisation else "none"
    reshape = "hook_z" if "hook_z" in str(hook_name) else "none"
    current = {
        "architecture": "standard",
        "reshape_activations": reshape,
        **stated,
        "normalize_activations": normalisation,
        "metadata": {**{key: stated.get(key) for key in Metadata.__struct_fields__}, **nested},
    }
    return current | _activation_before_6(stated, path)


def _activation_before_6(stated: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what the function of an older configuration stands for: TopK was no architecture."""
    function = stated.get("activation_fn") or "relu"
    if function == "relu":
        return {}
    if function == "topk":
        k = (stated.get("activation_fn_kwargs") or {}).get("k", stated.get("k", UNSET))
        return {"architecture": "topk"} | ({} if k is UNSET else {"k": k})
    raise SAEFormatError(
        f"Expected activation function `relu` or `topk`, got `{function}`"
        f" - at `$.activation_fn` ({path})",
        hint="SAELens 6 reads the file as if it were relu, which its training was not; choose"
        " another SAE",
    )


def _check_architecture(config: Config, path: Path) -> None:
    if config.architecture not in ARCHITECTURES:
        trained = config.architecture in _TRAINED
        raise SAEFormatError(
            f"Expected architecture {one_of(ARCHITECTURES)}, got `{config.architecture}`"
            f" - at `$.architecture` ({path})",
            hint="It is the state of a training; save it with save_inference_model, as a JumpReLU"
            " SAE"
            if trained
            else "Choose an SAE of one of these",
        )
    if config.architecture == "topk" and config.k is UNSET:
        raise SAEFormatError(
            f"Expected an integer, got nothing - at `$.k` ({path})",
            hint="Add the `k` that it was trained with",
        )
    if config.is_transcoder and config.d_out is UNSET:
        raise SAEFormatError(
            f"Expected an integer, got nothing - at `$.d_out` ({path})",
            hint="Add the width of what the transcoder predicts",
        )


def _check_inputs(config: Config, path: Path) -> None:
    if config.normalize_activations not in NORMALISATIONS:
        raise SAEFormatError(
            f"Expected {one_of(NORMALISATIONS)}, got `{config.normalize_activations}`"
            f" - at `$.normalize_activations` ({path})",
            hint="What it needs beside the SAE is not in its files; choose another SAE",
        )
    if config.reshape_activations != "none":
        raise SAEFormatError(
            f"Expected `none`, got `{config.reshape_activations}`"
            f" - at `$.reshape_activations` ({path})",
            hint="An SAE on attention heads cannot read a residual stream; choose another",
        )
