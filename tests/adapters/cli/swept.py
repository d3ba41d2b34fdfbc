"""What is swept in the tests of `aegir sweep`: little models of random weights, and their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner, Result

from aegir_adapters.cli.app import app
from aegir_adapters.demo.tokenizer import build_tokenizer
from aegir_adapters.sae import SparseAutoencoder, StandardSAE, Weights, save_sae
from aegir_stream.layout import RunDirectory
from aegir_stream.sweep_events import SweepCell

PAIR = ("--prompt", "41 0a 62 7a =>", "--clean", "41 0a 20 7a =>", "--answer", "SPACE")
WIDTH = 32


def save_model(path: Path, *, layers: int = 2) -> None:
    """Save a model of random weights, with its tokenizer."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def make_run(root: Path, model: Path) -> Path:
    """Make a run with a checkpoint that is whole, and a later one that is not."""
    for name in ("checkpoint-4", "checkpoint-20"):
        (root / name).mkdir(parents=True)
        for file in model.iterdir():
            if name == "checkpoint-4" or "safetensors" not in file.name:
                (root / name / file.name).symlink_to(file)
    return root


def make_sae(*, seed: int = 1, latents: int = 24, width: int = WIDTH) -> SparseAutoencoder:
    """Make an SAE of random weights, of which some latents never fire."""
    draw = torch.Generator().manual_seed(seed)
    bias = torch.zeros(latents)
    bias[-4:] = -1e6
    return StandardSAE(
        Weights(
            w_enc=torch.randn(width, latents, generator=draw) / width**0.5,
            b_enc=bias,
            w_dec=torch.randn(latents, width, generator=draw) / latents**0.5,
            b_dec=torch.zeros(width),
        )
    )


def record_saes(run: Path, saes: dict[int, SparseAutoencoder]) -> None:
    """Save SAEs in a run, and say in its checkpoint that it was recorded with them."""
    identities = {}
    for layer, sae in saes.items():
        place = save_sae(sae, run / "sae" / f"layer-{layer}")
        identities[str(layer)] = {**sae.identity(), "path": str(place)}
    RunDirectory.at(run).write_metadata("checkpoint-4", {"sae": identities})


def aegir(*arguments: str | Path, **options: Any) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)), **options)


def lines_of(result: Result) -> list[dict[str, Any]]:
    """Return what was printed, decoded."""
    assert result.exit_code == 0, (result.output, result.exception)
    return [json.loads(line) for line in result.stdout.splitlines()]


def values_of(cells: list[dict[str, Any]], *, pair: int = 0) -> dict[tuple[str, int, int], float]:
    """Return the values of a pair's cells, by hook, layer and position."""
    return {
        (cell["hook"], cell["layer"], cell["position"]): cell["value"]
        for cell in cells
        if cell.get("pair", 0) == pair
    }


def cell(hook: str, layer: int, position: int, value: float, **flags: Any) -> SweepCell:
    """Return a cell."""
    return SweepCell(hook=hook, layer=layer, position=position, value=value, **flags)
