"""What is asked for on a page: a sweep, as it was typed. Pure."""

from __future__ import annotations

import msgspec

__all__ = ["SweepOrder"]


class SweepOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep as it was asked for on a page; every text is as it was typed.

    Attributes:
        checkpoint: name of a checkpoint of the run, or `latest`.
        prompt: what is patched.
        clean_prompt: where the activations come from; zeros are put in if it is empty.
        answer: what is measured.
        foil: what it is compared with, or nothing.
        hooks: names of hooks.
        layers: `all`, or indices and ranges.
        positions: likewise.
        metric: what a cell holds; empty for the usual one.
        latent: `LAYER:INDEX` of a latent whose contribution is patched; then `hooks` and `layers`
            are those that its SAE reads, or empty.
        prompt_ids: token ids with commas between them, in the place of `prompt`.
        clean_ids: likewise of `clean_prompt`.
        answer_ids: likewise of `answer`.
        foil_ids: likewise of `foil`.
        preview: whether the cells are estimated, and not computed.
        groups: `NAME=POSITIONS;...`, in the place of `positions`.
    """

    checkpoint: str = "latest"
    prompt: str = ""
    clean_prompt: str = ""
    answer: str = ""
    foil: str = ""
    hooks: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out")
    layers: str = "all"
    positions: str = "all"
    metric: str = ""
    latent: str = ""
    prompt_ids: str = ""
    clean_ids: str = ""
    answer_ids: str = ""
    foil_ids: str = ""
    preview: bool = False
    groups: str = ""
