"""What is said above and below a sweep's grids in a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.style import Style
from rich.text import Text

from aegir_stream.sweep_events import SweepPair, SweepStarted, SweptLatent
from aegir_stream.views import SweepGrids, baselines_of

__all__ = ["BOLD", "QUIET", "figures", "heading", "legible", "number", "progress"]

QUIET = Style(dim=True)
BOLD = Style(bold=True)

_SHOWN_SKIPPED = 5
_SHOWN_ANSWERS = 3
_SHOWN_FIRING = 5
_MOST_TOKENS = 64
_LEFT_OUT = "[...]"
_BESIDE_DECIMALS = 4
_ESTIMATED = "estimated from one gradient, to first order: what saturates is missed"


def heading(started: SweepStarted, *, pair: int | None = None, decimals: int = 2) -> Iterator[Text]:
    """Yield what a sweep is about.

    Args:
        started: the sweep; if one pair of it is shown, as if it were alone.
        pair: number of that pair.
        decimals: of the baselines.
    """
    name = f"sweep {started.sweep} of {started.model}" if started.sweep else started.model
    if started.study is not None:
        name += f", study {legible(started.study)}"
    yield Text.assemble((name, BOLD), f"  {started.metric} of {_measured(started)}")
    if started.method != "exact":
        yield Text(_ESTIMATED, BOLD)
    if pair is not None:
        yield Text(f"pair {pair} alone", BOLD)
    elif len(started.pairs) > 1:
        yield Text.assemble((f"mean of {len(started.pairs)} pairs", BOLD), ", of which the first:")
    yield from _patched(started)
    yield _baselines(started, decimals)
    for warning in started.warnings:
        yield Text(f"note: {legible(warning)}")
    yield from _skipped(started)


def progress(grids: SweepGrids, started: SweepStarted) -> Text:
    """Return how far it is, and what its cells cost."""
    done = f"{len(grids.cells):,} of {started.cells:,} cells"
    if not started.computed + started.estimated + started.free:
        return Text(done)
    parts = [f"{started.free:,} free"]
    if started.estimated:
        parts.append(f"{started.estimated:,} estimated")
    else:
        parts.append(f"{started.deduplicated:,} equal others")
        parts.append(f"{started.computed:,} computed by {started.engine}")
    return Text(f"{done}: {', '.join(parts)}")


def figures(grids: SweepGrids) -> Iterator[Text]:
    """Yield how a sweep ended, and what that took; nothing while it goes on."""
    ended, started = grids.ended, grids.started
    if ended is None:
        return
    parts = []
    if ended.elapsed_s is not None:
        parts.append(f" in {ended.elapsed_s:.2f} s of computing")
    if ended.noise_floor is not None:
        parts.append(f", noise floor {ended.noise_floor:.1e}")
    if ended.token_layers and started and started.token_layers_naive:
        share = ended.token_layers / started.token_layers_naive
        parts.append(f", {share:.1%} of the work of one forward for each cell")
    if ended.reason:
        parts.append(f": {legible(ended.reason)}")
    yield Text.assemble((ended.status, BOLD), "".join(parts))


def legible(text: str) -> str:
    """Return the text of a token on one line, with nothing in it that a terminal would obey."""
    shown = "".join(char if char.isprintable() else _escaped(char) for char in text)
    return shown or "''"


def number(value: float | None, *, decimals: int = 2) -> str:
    """Return a value in at most four characters more than it has decimals."""
    if value is None:
        return "none"
    shown = f"{value:.{decimals}f}"
    zero = f"{0.0:.{decimals}f}"
    shown = zero if shown == f"-{zero}" else shown
    return shown if len(shown) <= decimals + _BESIDE_DECIMALS else f"{value:.0e}"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def _measured(started: SweepStarted) -> str:
    """Return what is measured; of several pairs what all of them measure, or the first ones."""
    told: Sequence[SweepPair | SweepStarted] = started.pairs or (started,)
    texts = list(dict.fromkeys(map(_answer, told)))
    more = f" and {len(texts) - _SHOWN_ANSWERS} more" if len(texts) > _SHOWN_ANSWERS else ""
    return f"{', '.join(texts[:_SHOWN_ANSWERS])}{more}"


def _answer(told: SweepPair | SweepStarted) -> str:
    foil = f" against {legible(told.foil)}" if told.foil is not None else ""
    return f"{legible(told.answer or '?')}{foil}"


def _patched(started: SweepStarted) -> Iterator[Text]:
    if started.clean_tokens is not None:
        yield Text(f"clean   {_prompt(started.clean_tokens)}", QUIET)
    elif started.latent is None:
        yield Text(f"put in  {started.source}", QUIET)
    yield Text(f"patched {_prompt(started.tokens)}", QUIET)
    if started.latent is not None:
        yield from _latent(started, started.latent)


def _latent(started: SweepStarted, latent: SweptLatent) -> Iterator[Text]:
    has_clean = started.clean_tokens is not None
    done = "as active as in the clean prompt" if has_clean else "ablated"
    yield Text.assemble(
        (f"latent {latent.layer}:{latent.index} {done}", BOLD),
        (f"  of the SAE {legible(latent.sae)}", QUIET),
    )
    prompts = (
        ("clean", latent.clean_activations, started.clean_tokens),
        ("patched", latent.activations, started.tokens),
    )
    for name, activations, tokens in prompts:
        if activations:
            yield Text(f"in the {name} prompt it {_firing(activations, tokens or ())}")


def _firing(activations: Sequence[float], tokens: Sequence[str]) -> str:
    """Return where a latent fires hardest."""
    places = [place for place, value in enumerate(activations) if value]
    places.sort(key=lambda place: -activations[place])
    shown = ", ".join(
        f"{number(activations[place])} at {place}"
        f"{f' ({legible(tokens[place])})' if place < len(tokens) else ''}"
        for place in places[:_SHOWN_FIRING]
    )
    more = f" and {len(places) - _SHOWN_FIRING} more" if len(places) > _SHOWN_FIRING else ""
    return f"fires {shown}{more}" if places else "does not fire"


def _baselines(started: SweepStarted, decimals: int) -> Text:
    baselines = baselines_of(started)
    shown = f"unpatched {number(baselines.corrupt, decimals=decimals)}"
    if started.clean_tokens is not None:
        shown += f", clean {number(baselines.clean, decimals=decimals)}"
    alpha = f", alpha {started.alpha:g}" if started.alpha != 1 else ""
    return Text(f"{shown}{alpha}", QUIET)


def _skipped(started: SweepStarted) -> Iterator[Text]:
    for skipped in started.skipped[:_SHOWN_SKIPPED]:
        pair = f" of pair {skipped.pair}" if len(started.pairs) > 1 else ""
        yield Text(
            f"position {skipped.position}{pair} is not swept: {legible(skipped.reason)}", QUIET
        )
    more = len(started.skipped) - _SHOWN_SKIPPED
    if more > 0:
        yield Text(f"and {more} more positions", QUIET)


def _prompt(tokens: tuple[str, ...]) -> str:
    """Return a prompt; of a long one the beginning and the end."""
    if len(tokens) > _MOST_TOKENS:
        tokens = (*tokens[: _MOST_TOKENS // 2], _LEFT_OUT, *tokens[-_MOST_TOKENS // 2 :])
    return " ".join(map(legible, tokens))
