"""Qwen-Scope: one file for each layer, k in the name of the repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.sae.formulas import D, assert_same
from adapters.sae.published import qwen_scope
from aegir_adapters.sae import Origin, TopKSAE, load_sae
from aegir_stream.errors import SAEFormatError

NAME = "SAE-Res-Qwen3-1.7B-Base-W1K-L0_5"


def test_a_layer_computes_what_the_card_says(tmp_path: Path) -> None:
    """Matrices are turned, nothing is subtracted from the input, and k latents are kept."""
    published = qwen_scope(tmp_path)
    sae = load_sae(published.path, layer=3)
    assert isinstance(sae, TopKSAE)
    assert sae.k == 5
    assert_same(sae, published)


def test_its_identity_is_that_of_the_repository(tmp_path: Path) -> None:
    """Model and k come from the name of the repository, the layer from the name of the file."""
    folder = qwen_scope(tmp_path).path
    sae = load_sae(folder, layer=3, repository=f"Qwen/{NAME}", revision="c0ffee")
    assert sae.origin == Origin(
        layer=3,
        hook_name="blocks.3.hook_resid_post",
        model_name="Qwen/Qwen3-1.7B-Base",
        repository=f"Qwen/{NAME}",
        revision="c0ffee",
        path=str(folder / "layer3.sae.pt"),
    )
    assert sae.identity()["k"] == 5


def test_the_repository_may_be_told_where_the_folder_has_another_name(tmp_path: Path) -> None:
    """`repository` says what the name of the folder does not."""
    published = qwen_scope(tmp_path, name="downloaded")
    assert_same(load_sae(published.path, layer=3, repository=f"Qwen/{NAME}"), published)


def test_without_a_name_k_is_not_known(tmp_path: Path) -> None:
    """An SAE whose k nothing states is refused, not guessed."""
    folder = qwen_scope(tmp_path, name="downloaded").path
    with pytest.raises(SAEFormatError, match=r"SAE-Res-Qwen3-8B-Base-W64K-L0_50, got none.*keep"):
        load_sae(folder, layer=3)


def test_a_layer_must_be_chosen(tmp_path: Path) -> None:
    """Of two layers one is asked for; a layer that is not there is named beside those that are."""
    folder = qwen_scope(tmp_path).path
    with pytest.raises(SAEFormatError, match=r"got 2: `layer0\.sae\.pt`, `layer3\.sae\.pt`"):
        load_sae(folder)
    with pytest.raises(SAEFormatError, match=r"of layer 1, got `layer0\.sae\.pt`, `l"):
        load_sae(folder, layer=1)
    assert load_sae(folder / "layer0.sae.pt").origin.layer == 0


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda held: held.pop("b_dec"), r"`b_dec` and `b_enc`, got .* \(`b_dec` missing\)"),
        (lambda held: held.update(extra=torch.ones(3)), r"got .* \(`extra` unknown\)"),
        (
            lambda held: held.update(W_enc=held["W_enc"].T.contiguous()),
            rf"`W_enc` of shape \(1024, {D}\), got \({D}, 1024\).*transposed",
        ),
        (
            lambda held: held.update(b_enc=held["b_enc"][:1000]),
            r"`b_enc` of shape \(1024,\), got \(1000,\)",
        ),
        (lambda held: held.update(b_dec=held["b_dec"][None]), r"`b_dec` with 1 dim.*\(1, 12\)"),
        (
            lambda held: held.update(W_dec=held["W_dec"].int()),
            r"floating.*`W_dec`, got torch.int32",
        ),
        (
            lambda held: held["b_enc"].fill_(torch.nan),
            r"finite values in `b_enc`, got 1024 of 1024",
        ),
        (lambda held: held.update(W_enc={"a": 1}), r"Expected a tensor, got dict - at `W_enc`"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, edit: Edit, words: str) -> None:
    """What was expected and what is there both stand in the message."""
    file = qwen_scope(tmp_path).path / "layer3.sae.pt"
    held = torch.load(file)
    edit(held)
    torch.save(held, file)
    with pytest.raises(SAEFormatError, match=words):
        load_sae(file)


def test_a_name_of_another_width_is_refused(tmp_path: Path) -> None:
    """The width in the name and the one in the file must agree."""
    folder = qwen_scope(tmp_path, name=NAME.replace("W1K", "W2K")).path
    with pytest.raises(SAEFormatError, match=r"`W_enc` of shape \(2048, 12\), got \(1024, 12\)"):
        load_sae(folder, layer=3)


def test_a_square_matrix_is_refused(tmp_path: Path) -> None:
    """With as many latents as dimensions no one can tell an encoder from its transpose."""
    folder = tmp_path / NAME
    folder.mkdir()
    square, vector = torch.zeros(1024, 1024), torch.zeros(1024)
    held = {"W_enc": square, "W_dec": square, "b_enc": vector, "b_dec": vector}
    torch.save(held, folder / "layer0.sae.pt")
    with pytest.raises(
        SAEFormatError, match=r"orientation, got square ones of shape \(1024, 1024\)"
    ):
        load_sae(folder)


class Attack:
    """What a pickle may hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Ask to print when it is loaded."""
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle that asks to run code is refused, and does not run it."""
    folder = qwen_scope(tmp_path).path
    torch.save({"W_enc": Attack()}, folder / "layer3.sae.pt")
    with pytest.raises(SAEFormatError, match=r"Expected tensors, .*could run code"):
        load_sae(folder, layer=3)
    (folder / "layer3.sae.pt").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(SAEFormatError, match="Expected tensors, got a file that does not parse"):
        load_sae(folder, layer=3)
    assert capsys.readouterr().out == ""


def test_files_of_older_versions_of_torch_are_read(tmp_path: Path) -> None:
    """The layout without a zip archive cannot be mapped, and is read at once."""
    published = qwen_scope(tmp_path)
    file = published.path / "layer3.sae.pt"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    assert_same(load_sae(file), published)
