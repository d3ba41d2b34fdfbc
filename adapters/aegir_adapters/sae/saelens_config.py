"""The `cfg.json` of SAELens v6: what it may say, and what of that is built here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from aegir_stream.errors import SAEFormatError

FORMAT_VERSION = "6.0.0"
"""What readers compare with 6 to tell this format from its predecessors."""

ARCHITECTURES = ("standard", "topk", "jumprelu")


class Metadata(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Facts about an SAE that do not change what it computes; `repository` and on are ours."""

    sae_lens_version: str | None = None
    model_name: str | None = None
    hook_name: str | None = None
    repository: str | None = None
    revision: str | None = None


class Config(Struct, frozen=True, kw_only=True):
    """What defines an SAE beside its tensors, by the names and defaults of SAELens.

    `k` and `rescale_acts_by_decoder_norm` belong to the architecture `topk` only.
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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that must stand beside it."""
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (self.d_in, self.d_sae),
            "b_enc": (self.d_sae,),
            "W_dec": (self.d_sae, self.d_in),
            "b_dec": (self.d_in,),
        }
        return {**shapes, "threshold": (self.d_sae,)} if self.architecture == "jumprelu" else shapes


def read_config(path: Path) -> Config:
    """Read a `cfg.json`, and make sure that it asks for nothing that is not built here.

    Raises:
        SAEFormatError: it does not parse, lacks a key, is older than version 6, or asks for more.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=Config)
    except msgspec.DecodeError as error:
        raise SAEFormatError(
            f"{error} - in {path}", hint="It is no configuration of SAELens v6"
        ) from error
    _check_version(config, path)
    _check_architecture(config, path)
    _check_inputs(config, path)
    return config


def check_scale(config: Config, scale: float | None, *, path: Path) -> float:
    """Return what inputs are divided by, 1 where they are taken as they are.

    Raises:
        SAEFormatError: the configuration needs a scale and there is none, or the other way round.
    """
    if config.normalize_activations == "none":
        if scale is None:
            return 1.0
        raise SAEFormatError(
            f"Expected no `scale` for an SAE without normalisation, got {scale} - {path}",
            hint="Leave `scale` out: the weights fit the activations as they are",
        )
    if scale is None:
        raise SAEFormatError(
            "Expected a `scale`: normalisation `expected_average_only_in` needs a factor that is"
            f" not in the file - at `$.normalize_activations` ({path})",
            hint=f"Pass scale=x.norm(dim=1).mean().item() / {config.d_in}**0.5 over activations x"
            " of the model that it was trained on",
        )
    return scale


def one_of(names: Iterable[str], *, joint: str = "or") -> str:
    """Return names as prose: `a`, `b` or `c`."""
    *first, last = (f"`{name}`" for name in names)
    return f"{', '.join(first)} {joint} {last}" if first else last


def _check_version(config: Config, path: Path) -> None:
    version = config.metadata.sae_lens_version
    major = re.match(r"\d+", version or "")
    if major is None or int(major[0]) < 6:  # noqa: PLR2004
        raise SAEFormatError(
            f"Expected SAELens 6 or newer, got {version or 'no version'}"
            f" - at `$.metadata.sae_lens_version` ({path})",
            hint="Save it again with sae-lens 6: SAE.load_from_disk(...).save_model(...)",
        )


def _check_architecture(config: Config, path: Path) -> None:
    if config.architecture not in ARCHITECTURES:
        raise SAEFormatError(
            f"Expected architecture {one_of(ARCHITECTURES)}, got `{config.architecture}`"
            f" - at `$.architecture` ({path})",
            hint="Choose an SAE of one of these",
        )
    if config.architecture == "topk" and config.k is UNSET:
        raise SAEFormatError(
            f"Expected an integer, got nothing - at `$.k` ({path})",
            hint="Add the `k` that it was trained with",
        )


def _check_inputs(config: Config, path: Path) -> None:
    if config.normalize_activations not in {"none", "expected_average_only_in"}:
        raise SAEFormatError(
            "Expected `none` or `expected_average_only_in`, got"
            f" `{config.normalize_activations}` - at `$.normalize_activations` ({path})",
            hint="Only a constant factor can be folded into the weights; choose another SAE",
        )
    if config.reshape_activations != "none":
        raise SAEFormatError(
            f"Expected `none`, got `{config.reshape_activations}`"
            f" - at `$.reshape_activations` ({path})",
            hint="An SAE on attention heads cannot read a residual stream; choose another",
        )
