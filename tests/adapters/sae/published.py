"""SAEs on disk as their publishers lay them out, each with the formula of what it computes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from adapters.sae.formulas import (
    WEIGHTS,
    D,
    Decode,
    Encode,
    K,
    N,
    Published,
    draw,
    formula,
    jump,
    keep,
    largest_of_groups,
    unit,
    weights,
)


def qwen_scope(root: Path, *, name: str = "SAE-Res-Qwen3-1.7B-Base-W1K-L0_5") -> Published:
    """Write two layers of a Qwen-Scope repository; the formula is that of layer 3."""
    folder = root / name
    folder.mkdir(parents=True)
    for layer in (0, 3):
        held = weights(1024, seed=10 + layer)
        stored = {
            "W_enc": held["w_enc"].T.contiguous(),
            "W_dec": held["w_dec"].T.contiguous(),
            "b_enc": held["b_enc"],
            "b_dec": held["b_dec"],
        }
        torch.save(stored, folder / f"layer{layer}.sae.pt")
    return Published(folder, *formula(weights(1024, seed=13), keep(5)))


def gemma_scope(
    root: Path,
    *,
    repository: str = "gemma-scope-2b-pt-res",
    folder: str = "layer_20/width_16k/average_l0_71",
    prefix: str = "W",
    seed: int = 1,
) -> Published:
    """Write one SAE of Gemma Scope below a folder named as its repository."""
    held, threshold = weights(seed=seed), draw(N, seed=9).abs()
    place = root / repository / folder
    place.mkdir(parents=True)
    arrays = {name.replace("w_", f"{prefix}_"): held[name].numpy() for name in WEIGHTS}
    np.savez(place / "params.npz", allow_pickle=False, **arrays, threshold=threshold.numpy())
    if folder.startswith("embedding"):
        size = math.sqrt(D)
        inner, outer = formula(held, jump(threshold))
        return Published(place, lambda x: inner(x / size), lambda code, x: outer(code, x) * size)
    return Published(place, *formula(held, jump(threshold)))


def gemma_scope_2(
    root: Path,
    *,
    place: str = "resid_post",
    name: str = "layer_17_width_16k_l0_small",
    hook: str | None = "model.layers.17.output",
    skip: bool = False,
    **config: Any,
) -> Published:
    """Write one SAE of Gemma Scope 2 below a folder named as its repository."""
    folder = root / "gemma-scope-2-4b-pt" / place / name
    folder.mkdir(parents=True)
    held, threshold = weights(), draw(N, seed=9).abs()
    stored = {**held, "threshold": threshold}
    if skip:
        stored["affine_skip_connection"] = held["skip"] = draw(D, D, seed=8)
    safetensors.torch.save_file(stored, folder / "params.safetensors")
    if hook is not None:
        described = {
            "architecture": "jump_relu",
            "hf_hook_point_in": hook,
            "model_name": "google/gemma-3-4b-pt",
            "width": N,
            "affine_connection": skip,
            "l0": 20,
            **config,
        }
        (folder / "config.json").write_text(json.dumps(described))
    return Published(folder, *formula(held, jump(threshold)))


def sparsify(
    root: Path, *, module: str = "layers.3", linear: bool = False, **config: Any
) -> Published:
    """Write a sparse coder as `SparseCoder.save_to_disk` does; the formula is that of `forward`."""
    folder = root / "sae-llama" / module
    folder.mkdir(parents=True)
    described = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": N,
        "k": 4,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
        **config,
    }
    held = weights()
    stored = {
        "encoder.weight": held["w_enc"].T.contiguous(),
        "encoder.bias": held["b_enc"],
        "b_dec": held["b_dec"],
    }
    if linear:
        stored["decoder.weight"] = held["w_dec"].T.contiguous()
    else:
        stored["W_dec"] = held["w_dec"]
    if described["skip_connection"]:
        stored["W_skip"] = draw(D, D, seed=8)
        held["skip"] = stored["W_skip"].T
    safetensors.torch.save_file(stored, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(described))
    k = described["k"]
    activation = largest_of_groups(k) if described["activation"] == "groupmax" else keep(k)
    return Published(folder, *formula(held, activation, centred=not described["transcode"]))


def dictionary_learning(
    root: Path,
    dict_class: str,
    *,
    unit_norm: bool = True,
    threshold: float = 0.7,
    tensors: Mapping[str, Tensor] | None = None,
    **trainer: Any,
) -> Published:
    """Write a dictionary as `trainSAE` does; the formula is that of its class at inference."""
    folder = root / "resid_post_layer_8" / "trainer_0"
    folder.mkdir(parents=True)
    held = weights()
    if unit_norm:
        held["w_dec"] = unit(held["w_dec"])
    stored, computed = _dictionary(dict_class, held, threshold)
    torch.save({**stored, **(tensors or {})}, folder / "ae.pt")
    described = {
        "trainer_class": f"{dict_class}Trainer",
        "dict_class": dict_class,
        "activation_dim": D,
        "dict_size": N,
        "layer": 8,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_8",
        **({"k": K} if "TopK" in dict_class else {}),
        **trainer,
    }
    config = {"trainer": described, "buffer": {"ctx_len": 128, "d_submodule": D}}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    return Published(folder, *computed)


def _dictionary(
    dict_class: str, held: dict[str, Tensor], threshold: float
) -> tuple[dict[str, Tensor], tuple[Encode, Decode]]:
    """Return the tensors of a dictionary by the names of its class, and what it computes."""
    encoder = {"encoder.weight": held["w_enc"].T.contiguous(), "encoder.bias": held["b_enc"]}
    decoder = {"decoder.weight": held["w_dec"].T.contiguous()}
    choice = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}
    matrices = {name.replace("w_", "W_"): held[name] for name in WEIGHTS}
    scalar = formula(held, jump(torch.tensor(threshold)), centred=True)
    each = draw(N, seed=9).abs()
    norm = held["w_dec"].norm(dim=1)
    brought_to_1 = {
        "w_enc": held["w_enc"] * norm,
        "b_enc": held["b_enc"] * norm,
        "w_dec": unit(held["w_dec"]),
        "b_dec": held["b_dec"],
    }
    groups = torch.tensor([N // 4, N - N // 4])
    chosen = {"b_dec": held["b_dec"], **encoder, **decoder, **choice}
    return {
        "AutoEncoder": (
            {"bias": held["b_dec"], **encoder, **decoder},
            formula(brought_to_1, torch.relu, centred=True),
        ),
        "AutoEncoderNew": (
            {**encoder, **decoder, "decoder.bias": held["b_dec"]},
            formula(held, torch.relu),
        ),
        "AutoEncoderTopK": (chosen, formula(held, keep(K), centred=True)),
        "BatchTopKSAE": (chosen, scalar),
        "MatryoshkaBatchTopKSAE": ({**matrices, **choice, "group_sizes": groups}, scalar),
        "JumpReluAutoEncoder": ({**matrices, "threshold": each}, formula(held, jump(each))),
        "GatedAutoEncoder": _gated({**encoder, **decoder}, held),
    }[dict_class]


def _gated(
    layers: dict[str, Tensor], held: dict[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[Encode, Decode]]:
    gate, magnitude, ratio = held["b_enc"], draw(N, seed=7), draw(N, seed=6)
    stored = {
        "decoder_bias": held["b_dec"],
        "r_mag": ratio,
        "gate_bias": gate,
        "mag_bias": magnitude,
        **{name: tensor for name, tensor in layers.items() if name.endswith("weight")},
    }

    def gated(pre: Tensor) -> Tensor:
        shared = pre - gate.double()
        size = (shared * ratio.double().exp() + magnitude.double()).relu()
        return torch.where(pre > 0, size, 0.0)

    return stored, formula(held, gated, centred=True)


def llama_scope(
    root: Path, *, layer: int = 5, unit_norm: bool = True, place: str = "R", **config: Any
) -> Published:
    """Write an SAE of Llama Scope; the formula is what its authors' `from_config` makes of it.

    Their codes are those of residuals as they are; here they are multiplied by the factor that
    inputs are normalised by, as SAELens has them.
    """
    folder = root / "Llama3_1-8B-Base-LXR-8x" / f"Llama3_1-8B-Base-L{layer}{place}-8x"
    (folder / "checkpoints").mkdir(parents=True)
    hook = f"blocks.{layer}.hook_resid_post"
    described: dict[str, Any] = {
        "hook_point_in": hook,
        "hook_point_out": hook,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "expansion_factor": 8,
        "d_model": D,
        "d_sae": N,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.6,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 7.25, "out": 7.25},
        "decoder_exactly_fixed_norm": False,
        "sparsity_include_decoder_norm": True,
        "use_glu_encoder": False,
        "top_k": 50,
        **config,
    }
    held = weights()
    if unit_norm:
        held["w_dec"] = unit(held["w_dec"])
    safetensors.torch.save_file(_linear(held), folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(described, indent=4))
    return Published(folder, *_llama_scope_formula(held, described))


def _linear(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        "encoder.weight": held["w_enc"].T.contiguous(),
        "encoder.bias": held["b_enc"],
        "decoder.weight": held["w_dec"].T.contiguous(),
        "decoder.bias": held["b_dec"],
    }


def _llama_scope_formula(
    held: Mapping[str, Tensor], described: Mapping[str, Any]
) -> tuple[Encode, Decode]:
    norms = described["dataset_average_activation_norm"]
    folded = described["norm_activation"] == "inference"
    read, written = (1.0 if folded else math.sqrt(D) / norms[key] for key in ("in", "out"))
    w_enc, b_enc, w_dec, b_dec = (held[name].double() for name in WEIGHTS)
    b_enc, b_dec, w_dec = b_enc / read, b_dec / written, w_dec * read / written
    if described["sparsity_include_decoder_norm"]:
        norm = w_dec.norm(dim=1)
        w_enc, b_enc, w_dec = w_enc * norm, b_enc * norm, w_dec / norm[:, None]
    threshold = torch.tensor(described["jump_relu_threshold"])
    return (
        lambda x: jump(threshold)(x @ w_enc + b_enc) * read,
        lambda code, _: (code / read) @ w_dec + b_dec,
    )


def llama_scope_r1(
    root: Path,
    *,
    layer: int = 15,
    unit_norm: bool = True,
    tensors: Mapping[str, Tensor] | None = None,
    **config: Any,
) -> Published:
    """Write an SAE of Llama Scope R1; the formula is that of its authors' `encode`."""
    folder = (
        root / "Llama-Scope-R1-Distill" / "400M-Slimpajama-400M-OpenR1-Math-220k" / f"L{layer}R"
    )
    folder.mkdir(parents=True)
    hook = f"blocks.{layer}.hook_resid_post"
    described: dict[str, Any] = {
        "sae_type": "sae",
        "hook_point_in": hook,
        "hook_point_out": hook,
        "d_model": D,
        "expansion_factor": 4,
        "use_decoder_bias": True,
        "use_glu_encoder": False,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.0,
        "apply_decoder_bias_to_pre_encoder": False,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": 50,
        **config,
    }
    n = 4 * D
    held = weights(n)
    if unit_norm:
        held["w_dec"] = unit(held["w_dec"])
    log_threshold = draw(n, seed=9)
    mean = torch.tensor(7.25)
    stored = {
        **_linear(held),
        "log_jumprelu_threshold": log_threshold,
        f"dataset_average_activation_norm.{hook}": mean,
    }
    stored.update(tensors or {})
    safetensors.torch.save_file(stored, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(described, indent=4))
    factor = math.sqrt(D) / mean.item()
    include = described["sparsity_include_decoder_norm"]
    norm = held["w_dec"].double().norm(dim=1) if include else torch.ones(n)

    def activation(pre: Tensor) -> Tensor:
        return torch.where(pre * norm > log_threshold.double().exp(), pre.relu(), 0.0)

    encode, decode = formula(held, activation)
    return Published(folder, lambda x: encode(x * factor), lambda c, x: decode(c, x) / factor)


def goodfire(
    root: Path,
    *,
    name: str = "Llama-3.1-8B-Instruct-SAE-l19",
    suffix: str = ".pth",
    linear: str = "_linear",
) -> Published:
    """Write Goodfire's one file, or with `linear` empty the one of qresearch."""
    folder = root / name
    folder.mkdir(parents=True)
    held = weights()
    stored = {
        f"{layer}{linear}.{kind}": tensor
        for layer_kind, tensor in _linear(held).items()
        for layer, kind in [layer_kind.split(".")]
    }
    torch.save(stored, folder / f"{name}{suffix}")
    return Published(folder, *formula(held, torch.relu))


def circuit_tracer(
    root: Path,
    *,
    turned: bool = False,
    skip: bool = False,
    config: str = "model_name: Qwen/Qwen3-4B\nfeature_input_hook: mlp.hook_in\n",
) -> Published:
    """Write two layers of a set of transcoders; the formula is that of layer 1."""
    folder = root / "qwen3-4b-transcoders"
    folder.mkdir(parents=True)
    held = weights()
    for layer in (0, 1):
        held = weights(seed=20 + layer)
        stored = {
            "W_enc": held["w_enc"].T.contiguous(),
            "W_dec": held["w_dec"].T.contiguous() if turned else held["w_dec"],
            "b_enc": held["b_enc"],
            "b_dec": held["b_dec"],
        }
        if skip:
            stored["W_skip"] = draw(D, D, seed=8)
            held["skip"] = stored["W_skip"].T
        safetensors.torch.save_file(stored, folder / f"layer_{layer}.safetensors")
    (folder / "config.yaml").write_text(config)
    wandb = f"d_model:\n  value: {D}\nd_feature:\n  value: {N}\nbatch_size:\n  value: 8\n"
    (folder / "wandb-config.yaml").write_text(wandb)
    return Published(folder, *formula(held, torch.relu))
