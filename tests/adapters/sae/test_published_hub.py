"""Families whose files lie in folders of a repository, out of the hub's cache without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from adapters.sae.formulas import assert_same
from adapters.sae.published import gemma_scope, llama_scope, qwen_scope
from aegir_adapters.sae import load_sae
from aegir_stream.errors import SAEFormatError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder that the hub's client keeps its files in, the network being forbidden."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def cached(cache: Path, repository: str, folder: Path) -> None:
    """Put a folder into the cache as a commit of a repository."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


def test_k_is_that_of_the_repository(tmp_path: Path, cache: Path) -> None:
    """The name of a repository is at hand on the hub, where no folder bears it."""
    published = qwen_scope(tmp_path)
    repository = f"Qwen/{published.path.name}"
    cached(cache, repository, published.path)
    sae = load_sae(repository, layer=3)
    assert_same(sae, published)
    assert sae.origin.repository == repository
    assert sae.origin.revision == COMMIT
    assert sae.origin.path == "layer3.sae.pt"


def test_a_folder_of_the_repository_is_the_choice(tmp_path: Path, cache: Path) -> None:
    """One of many widths is named behind the repository, as in the hint."""
    published = gemma_scope(tmp_path)
    gemma_scope(tmp_path, folder="layer_20/width_65k/average_l0_61", seed=40)
    repository = "google/gemma-scope-2b-pt-res"
    cached(cache, repository, tmp_path / "gemma-scope-2b-pt-res")
    sae = load_sae(f"{repository}/layer_20/width_16k/average_l0_71")
    assert_same(sae, published)
    assert sae.origin.layer == 20
    assert sae.origin.model_name == "google/gemma-2-2b"
    assert sae.origin.path == "layer_20/width_16k/average_l0_71/params.npz"
    with pytest.raises(SAEFormatError, match=rf"as in load_sae\('{repository}/layer_20/width_16k/"):
        load_sae(repository, layer=20)


def test_tensors_below_their_description_are_found(tmp_path: Path, cache: Path) -> None:
    """Llama Scope keeps its tensors one folder further down."""
    published = llama_scope(tmp_path)
    repository = "fnlp/Llama3_1-8B-Base-LXR-8x"
    cached(cache, repository, published.path.parent)
    for named in (repository, f"{repository}/{published.path.name}"):
        assert_same(load_sae(named, layer=5), published)
