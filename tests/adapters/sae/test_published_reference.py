"""What SAELens' own loaders make of the files of others is what is made of them here."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open

from adapters.sae import published
from adapters.sae.formulas import D, N, Published, assert_agrees, residuals
from aegir_adapters.sae import load_sae

FACTOR = math.sqrt(D) / 7.25
"""What inputs of Llama Scope are multiplied by here, which SAELens keeps in a list of its own."""


class Case(NamedTuple):
    """One SAE, and how SAELens is asked for it.

    Attributes:
        write: writes it below a folder.
        loader: name of the loader of SAELens.
        repository: repository that SAELens takes it to come from.
        inside: its path in that repository, where it is not the folder that was written.
        layer: the layer asked for.
        config: what SAELens would take from its list of published models.
        factor: what it folds into the weights afterwards.
    """

    write: Callable[[Path], Published]
    loader: str
    repository: str
    inside: str | None = None
    layer: int | None = None
    config: dict[str, Any] = {}  # noqa: RUF012 - a default of a tuple, never changed
    factor: float | None = None


def dictionaries() -> Iterator[tuple[str, Case]]:
    """Yield the classes of dictionary_learning that SAELens reads."""
    for dict_class in (
        "AutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder",
        "GatedAutoEncoder",
    ):

        def write(root: Path, dict_class: str = dict_class) -> Published:
            return published.dictionary_learning(root, dict_class)

        yield dict_class, Case(write, "dictionary_learning_sae_huggingface_loader_1", "a/b")


GEMMA = {"d_in": D, "d_sae": N}

CASES: dict[str, Case] = {
    "Qwen-Scope": Case(
        published.qwen_scope,
        "qwen_scope_sae_huggingface_loader",
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W1K-L0_5",
        inside="layer3.sae.pt",
        layer=3,
        config={"d_in": D},
    ),
    "Gemma Scope": Case(
        published.gemma_scope,
        "gemma_2_sae_huggingface_loader",
        "google/gemma-scope-2b-pt-res",
        config={**GEMMA, "normalize_activations": "none"},
    ),
    "Gemma Scope, transcoder": Case(
        lambda root: published.gemma_scope(root, repository="gemma-scope-2b-pt-transcoders"),
        "gemma_2_transcoder_huggingface_loader",
        "google/gemma-scope-2b-pt-transcoders",
        config={**GEMMA, "d_out": D},
    ),
    "Gemma Scope 2": Case(
        published.gemma_scope_2, "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-4b-pt"
    ),
    "Gemma Scope 2, bare": Case(
        lambda root: published.gemma_scope_2(root, hook=None),
        "gemma_3_sae_huggingface_loader",
        "google/gemma-scope-2-4b-pt",
    ),
    "Gemma Scope 2, affine transcoder": Case(
        lambda root: published.gemma_scope_2(
            root,
            place="transcoder_all",
            name="layer_17_width_16k_l0_small_affine",
            hook="model.layers.17.pre_feedforward_layernorm.output",
            skip=True,
        ),
        "gemma_3_sae_huggingface_loader",
        "google/gemma-scope-2-4b-pt",
    ),
    "Llama Scope": Case(
        published.llama_scope,
        "llama_scope_sae_huggingface_loader",
        "fnlp/Llama3_1-8B-Base-LXR-8x",
        factor=FACTOR,
    ),
    "Llama Scope R1": Case(
        published.llama_scope_r1,
        "llama_scope_r1_distill_sae_huggingface_loader",
        "fnlp/Llama-Scope-R1-Distill",
        factor=FACTOR,
    ),
    "Goodfire": Case(
        published.goodfire,
        "get_goodfire_huggingface_loader",
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
        inside="Llama-3.1-8B-Instruct-SAE-l19.pth",
        config=GEMMA,
    ),
    "qresearch": Case(
        lambda root: published.goodfire(
            root, name="DeepSeek-R1-Distill-Llama-8B-SAE-l19", suffix=".pt", linear=""
        ),
        "deepseek_r1_sae_huggingface_loader",
        "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
        inside="DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
        config=GEMMA,
    ),
    "circuit-tracer": Case(
        published.circuit_tracer,
        "mwhanna_transcoder_huggingface_loader",
        "mwhanna/qwen3-4b-transcoders",
        inside="layer_1.safetensors",
        layer=1,
    ),
    **dict(dictionaries()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_file_computes_the_same(
    sae_lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Codes, the hardest latents, reconstructions and errors agree, of the very same bytes."""
    case = CASES[name]
    folder = case.write(tmp_path).path
    x = residuals()
    reference = theirs(sae_lens, case, folder, monkeypatch)
    with torch.no_grad():
        code, rebuilt = reference.encode(x), reference(x)
    ours = load_sae(folder, layer=case.layer)
    assert ours.architecture == reference.cfg.architecture()
    assert_agrees(ours, x, code, rebuilt)
    if ours.origin.layer is not None:
        assert ours.origin.hook_name == reference.cfg.metadata.hook_name


def test_sparsify_is_followed_where_saelens_departs_from_it(
    sae_lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAELens turns `W_dec`, so only files with a linear decoder load there; these agree."""
    folder = published.sparsify(tmp_path, linear=True, normalize_decoder=False).path
    case = Case(published.sparsify, "sparsify_huggingface_loader", "EleutherAI/sae-llama")
    reference = theirs(sae_lens, case, folder, monkeypatch)
    x = residuals()
    with torch.no_grad():
        code, rebuilt = reference.encode(x), reference(x)
    assert_agrees(load_sae(folder), x, code, rebuilt)


def test_embeddings_are_encoded_as_saelens_encodes_them(
    sae_lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes agree; of the reconstruction, SAELens leaves `b_dec` in the units of the training."""
    folder = published.gemma_scope(tmp_path, folder="embedding/width_4k/average_l0_6").path
    case = CASES["Gemma Scope"]
    reference = theirs(sae_lens, case, folder, monkeypatch)
    x = residuals()
    ours = load_sae(folder)
    with torch.no_grad():
        missing = reference.b_dec * (math.sqrt(D) - 1)
        assert_agrees(ours, x, reference.encode(x), reference(x) + missing)


def theirs(sae_lens: Any, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what SAELens loads, the hub replaced by the folder that was written.

    Its loaders ask `hf_hub_download` for each file, and the hub for the shapes of tensors.
    """
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")
    name = case.repository.partition("/")[2]
    root = next((above for above in folder.parents if above.name == name), folder)
    inside = case.inside or str(folder.relative_to(root))

    def fetched(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        assert repo_id == case.repository
        path = root / subfolder / filename
        if not path.exists():
            raise loaders.EntryNotFoundError(filename)
        return str(path)

    def shapes(_: str, filename: str) -> dict[str, list[int]]:
        with safe_open(root / filename, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "hf_hub_download", fetched)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)

    def convert(**asked: Any) -> Any:
        asked["cfg_overrides"] = {**asked["cfg_overrides"], **case.config}
        return getattr(loaders, case.loader)(**asked)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = sae_lens.SAE.from_pretrained(case.repository, inside, converter=convert)
    if case.factor is not None:
        sae.fold_activation_norm_scaling_factor(case.factor)
    return sae
