from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from adapters.trainer import tiny
from aegir_adapters.train.model_files import read_model_files, tensors_in

if TYPE_CHECKING:
    from pathlib import Path


def test_files_say_what_the_model_is(saved: Path) -> None:
    """Parameters are counted in the headers, tied ones once; widths come from the configuration."""
    model, files = tiny.model(), read_model_files(saved / "model")
    assert files.missing == ()
    assert files.parameters == model.num_parameters()
    assert files.tensors == len(list(model.parameters()))
    assert (files.layers, files.width, files.vocabulary) == (3, tiny.HIDDEN, len(tiny.WORDS))
    assert files.cache_width == 2 * 1 * 16
    assert len(files.linear) == 3 * 7


def test_a_model_in_several_files_is_counted_whole(tmp_path: Path) -> None:
    """The index names the files; one that is not there is missing, and nothing is counted."""
    tiny.model().save_pretrained(tmp_path, max_shard_size="10KB")
    whole = read_model_files(tmp_path)
    assert whole.parameters == tiny.model().num_parameters()
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    lacking = read_model_files(tmp_path)
    assert lacking.missing == ("tokenizer.json", shard.name)
    assert lacking.parameters is None


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_file_that_is_cut_short_is_found(saved: Path, tmp_path: Path, cut: int) -> None:
    """A download that broke off, or a save that was killed, is no model."""
    content = (saved / "model" / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[:cut])
    found = tensors_in(path)
    assert found is None or not found.is_whole


def test_an_empty_directory_lacks_everything(tmp_path: Path) -> None:
    """Each file that a model needs is listed."""
    assert read_model_files(tmp_path).missing == (
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    )
