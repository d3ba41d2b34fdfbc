from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.image import AxesImage

from adapters.patching.decoders import CLEAN, CORRUPT
from adapters.patching.served import pairs_of, patchable, service_of, swept
from aegir_adapters.patching.sweep_result import SweepResult, results_by_hook
from aegir_stream.errors import MissingExtraError


@pytest.fixture(autouse=True)
def _agg() -> Iterator[None]:
    """Draw into memory, and leave no figure open."""
    mpl.use("Agg")
    yield
    plt.close("all")


def result_of(**fields: Any) -> SweepResult:
    """Return the result of a sweep."""
    return next(iter(results_by_hook(swept(service_of(), **fields)).values()))


def drawn(ax: Axes) -> Axes:
    """Return what a grid was drawn on, once all of it is rendered."""
    assert ax.figure.canvas is not None
    ax.figure.canvas.draw()
    return ax


def labels(ax: Axes) -> list[str]:
    """Return what stands at the columns."""
    return [label.get_text() for label in ax.get_xticklabels()]


def share(image: AxesImage, value: float | None) -> float:
    """Return how far along the scale of colours a value is."""
    (found,) = np.asarray(image.norm(np.array([value], dtype=float)), dtype=float)
    return float(found)


def hatched(ax: Axes) -> set[tuple[int, int]]:
    """Return the rows and columns of the hatched cells."""
    (collection,) = [one for one in ax.collections if isinstance(one, PatchCollection)]
    assert collection.get_hatch() == "////"
    boxes = [path.get_extents() for path in collection.get_paths()]
    assert all((box.width, box.height) == (1, 1) for box in boxes)
    return {(int(box.y0 + 0.5), int(box.x0 + 0.5)) for box in boxes}


def test_a_grid_is_drawn_with_its_layers_and_tokens() -> None:
    """A row for each layer and a column for each token, centred on the unpatched value."""
    result = result_of(prompt="w5 w6 w5", clean_prompt="w7 w6 w5", layers=[2, 0])
    ax = drawn(result.heatmap())

    (image,) = ax.images
    assert np.array_equal(np.asarray(image.get_array()), result.to_numpy())
    assert labels(ax) == ["<bos>", "w5", "w6", "w5"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "0"]
    assert ax.get_title() == "resid_post: logprob"
    assert share(image, result.corrupt) == pytest.approx(0.5)
    assert image.cmap(1.0)[0] > image.cmap(1.0)[2], "more is red"
    (colorbar,) = [other for other in ax.figure.axes if other is not ax]
    assert colorbar.get_ylabel() == "logprob"


def test_it_is_drawn_where_it_is_told_to() -> None:
    """On axes of a larger figure, and no other figure is made."""
    figure, (left, right) = plt.subplots(1, 2)

    assert result_of().heatmap(right) is right
    assert (len(left.images), len(right.images)) == (0, 1)
    assert plt.get_fignums() == [figure.number]


def test_what_is_below_the_noise_is_hatched() -> None:
    """And nothing else."""
    result = result_of()
    expected = {
        (row, column)
        for row, flags in enumerate(result.below_noise)
        for column, is_quiet in enumerate(flags)
        if is_quiet
    }

    assert 0 < len(expected) < result.to_numpy().size
    assert hatched(result.heatmap()) == expected


def test_where_less_is_better_less_is_red() -> None:
    """So that red is what brings the clean run back."""
    image = result_of(metric="kl").heatmap().images[0]
    assert image.cmap(0.0)[0] > image.cmap(0.0)[2]


def test_a_recovered_share_is_centred_on_nothing() -> None:
    """Whatever its baselines are, which are of what it is made of."""
    result = result_of(metric="recovered")
    assert result.corrupt != 0.0
    assert share(result.heatmap().images[0], 0.0) == pytest.approx(0.5)


def test_the_title_tells_estimates_and_pairs() -> None:
    """A preview is not to be taken for the exact sweep, nor a mean for one prompt."""
    pair = {"prompt": list(CORRUPT), "clean_prompt": list(CLEAN)}
    result = result_of(**pairs_of(pair, pair, method="attribution"))

    title = "resid_post: logprob, estimated, "
    assert result.heatmap().get_title() == f"{title}mean of 2 pairs"
    assert result.of_pair(1).heatmap().get_title() == f"{title}pair 1"


def test_groups_are_labelled_by_their_names() -> None:
    """However they are spelled: a name is not a formula."""
    ax = drawn(result_of(groups={"$x$": [2], "line\nbreak": [3], "_": [-1], " ": [0]}).heatmap())
    assert labels(ax) == ["$x$", r"line\nbreak", "_", "' '"]
    assert not any(label.get_parse_math() for label in ax.get_xticklabels())


def test_positions_stand_for_tokens_without_a_tokenizer() -> None:
    """And of very many columns only some are labelled."""
    service = service_of(model=patchable(tokenizer=False))
    (result,) = results_by_hook(swept(service, positions=[2, 6])).values()
    assert labels(result.heatmap()) == ["2", "6"]

    wide = SweepResult(
        **{
            **{name: getattr(result, name) for name in result.__struct_fields__},
            "positions": tuple(range(130)),
            "grid": tuple((float(layer),) * 130 for layer in result.layers),
            "below_noise": tuple((False,) * 130 for _ in result.layers),
        }
    )
    assert labels(wide.heatmap()) == [str(position) for position in range(0, 130, 3)]


def test_a_grid_without_values_is_grey() -> None:
    """It is drawn all the same, and nothing is hatched."""
    ax = drawn(result_of(clean_prompt=list(CORRUPT), metric="recovered").heatmap())

    (image,) = ax.images
    assert np.isnan(np.asarray(image.get_array(), dtype=float)).all()
    assert image.cmap.get_bad()[:3] == pytest.approx(mpl.colors.to_rgb("lightgrey"))
    assert hatched(ax) == set()


def test_matplotlib_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the extra that brings it; all else works without."""
    result = result_of()
    monkeypatch.delitem(sys.modules, "aegir_adapters.patching.heatmap", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(MissingExtraError, match=r"aegir-stream\[patching\]") as caught:
        result.heatmap()
    assert caught.value.extra == "patching"
    assert result.argmax_cell() is not None
