"""Where a decoder layer can be patched, and what exactly that means.

With ``pre`` the residual stream that enters layer l, a textbook layer is::

    mid  = pre + attn_out        (attn_out reads norm(pre))
    post = mid + mlp_out         (mlp_out reads norm(mid))

`resid_pre`, `resid_mid`, `resid_post`
    The residual stream is replaced, and everything that reads it afterwards reads the patch: norms,
    branches and the skip connection. `resid_post` of layer l is `resid_pre` of layer l + 1.
`attn_out`, `mlp_out`
    What a branch adds to the residual stream is replaced. In a layer with sandwich norms (Gemma 2
    and 3, OLMo 2) that is the branch after its own output norm, since that is what gets added.
`z`, `z.<head>`
    The attention-weighted values that enter the output projection, of all heads or of one.

The names of the earlier implementation are kept as aliases, with its meaning:

`post_block`
    `resid_post`, under another name.
`pre_attn`
    Replaces `pre` on the skip connection only: ``mid = patched pre + attn_out``, where attn_out
    still reads the unpatched `pre`. The MLP reads the patched `mid`. It is not `resid_pre`.
`post_attn`
    Replaces `mid` on the skip connection only: ``post = patched mid + mlp_out``, where mlp_out
    still reads the unpatched `mid`. It is not `resid_mid`.

In a layer with a parallel residual (``post = pre + attn_out + mlp_out``, both reading `pre`) there
is no `mid`: `resid_mid`, `pre_attn` and `post_attn` are refused.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from aegir_stream.errors import OptionError

__all__ = ["HOOKS", "Hook", "Landing", "Site", "parse_hook"]

Site = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "z"]
"""A place whose activations a source run holds."""

Landing = Literal["pre", "attn", "mlp", "post", "z"]
"""What is overwritten at the patched row: the residual that enters the layer, the output of the
attention branch, of the MLP branch, the residual that leaves the layer, or the input of the
attention's output projection."""


class Hook(msgspec.Struct, frozen=True):
    """A place to patch.

    Attributes:
        name: as the caller named it.
        site: whose activations the source gives, and the unpatched run has.
        landing: what is overwritten. Where it is not `site` itself, the difference that the patch
            makes at the site is added to what the unpatched run has there.
        head: of `z`, the head; `None` for all of them.
    """

    name: str
    site: Site
    landing: Landing
    head: int | None = None

    @property
    def needs_mid(self) -> bool:
        """Whether the layer must have a residual between its attention and its MLP."""
        return self.site == "resid_mid" or self.name == "pre_attn"


HOOKS: Final = {
    hook.name: hook
    for hook in (
        Hook("resid_pre", "resid_pre", "pre"),
        Hook("resid_mid", "resid_mid", "attn"),
        Hook("resid_post", "resid_post", "post"),
        Hook("attn_out", "attn_out", "attn"),
        Hook("mlp_out", "mlp_out", "mlp"),
        Hook("z", "z", "z"),
        Hook("pre_attn", "resid_pre", "attn"),
        Hook("post_attn", "resid_mid", "post"),
        Hook("post_block", "resid_post", "post"),
    )
}


def parse_hook(name: str) -> Hook:
    """Return the hook of this name; `z.3` is head 3 of `z`.

    Raises:
        OptionError: no hook has this name.
    """
    if name in HOOKS:
        return HOOKS[name]
    kind, _, head = name.partition(".")
    if kind == "z" and head.isdecimal():
        return Hook(name, "z", "z", int(head))
    raise OptionError(
        f"Expected `hook` to be one of {', '.join(HOOKS)} or z.<head>, got {name!r}",
        hint="Name a hook as it is written there",
    )
