"""What the files of a model say about it, without loading it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from msgspec import Struct

__all__ = ["ModelFiles", "WeightFile", "read_model_files", "tensors_in", "weight_files"]

_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian."""

_LONGEST_HEADER = 100 << 20
"""What the format allows."""


class WeightFile(Struct, frozen=True, kw_only=True):
    """The tensors of a safetensors file.

    Attributes:
        shapes: shape of each tensor by name.
        is_whole: whether the file is as long as its header says.
    """

    shapes: dict[str, tuple[int, ...]]
    is_whole: bool


class ModelFiles(Struct, frozen=True, kw_only=True):
    """A model directory in the format of `save_pretrained`.

    Attributes:
        directory: where it lies.
        missing: what a model needs and is not there, or is damaged.
        layers: decoder layers.
        width: of the residual stream.
        vocabulary: rows of the output layer.
        cache_width: width of keys and values together, of all heads.
        parameters: their number, tied ones once; `None` if the weights cannot be read.
        tensors: how many tensors they are in.
        linear: (inputs, outputs) of each weight matrix inside the decoder layers.
    """

    directory: Path
    missing: tuple[str, ...] = ()
    layers: int | None = None
    width: int | None = None
    vocabulary: int | None = None
    cache_width: int | None = None
    parameters: int | None = None
    tensors: int | None = None
    linear: tuple[tuple[int, int], ...] = ()


def read_model_files(directory: Path) -> ModelFiles:
    """Return what the files in a directory say; what is absent is listed, nothing raises."""
    config = _json(directory / "config.json")
    text = config.get("text_config") or config
    missing = [] if config else ["config.json"]
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        missing.append("tokenizer.json")
    weights, absent = weight_files(directory)
    shapes = {name: shape for file in weights for name, shape in file.shapes.items()}
    return ModelFiles(
        directory=directory,
        missing=(*missing, *absent),
        layers=_integer(text, "num_hidden_layers"),
        width=_integer(text, "hidden_size"),
        vocabulary=_integer(text, "vocab_size"),
        cache_width=_cache_width(text),
        parameters=sum(map(math.prod, shapes.values())) if shapes and not absent else None,
        tensors=len(shapes) if shapes and not absent else None,
        linear=tuple(
            (shape[1], shape[0])
            for name, shape in shapes.items()
            if ".layers." in name and len(shape) == 2  # noqa: PLR2004 - a matrix
        ),
    )


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def weight_files(directory: Path) -> tuple[list[WeightFile], list[str]]:
    """Return the safetensors files of a model, and the names of those missing or damaged."""
    index = _json(directory / "model.safetensors.index.json").get("weight_map")
    names = sorted(set(index.values())) if isinstance(index, dict) else ["model.safetensors"]
    found: list[WeightFile] = []
    absent: list[str] = []
    for name in names:
        file = tensors_in(directory / name)
        if file is None:
            absent.append(name)
        elif not file.is_whole:
            absent.append(f"{name} (cut short)")
        else:
            found.append(file)
    return found, absent


def tensors_in(path: Path) -> WeightFile | None:
    """Return what the header of a safetensors file says, `None` if there is no readable one."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length)) if 0 < length <= _LONGEST_HEADER else None
        size = path.stat().st_size
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict):
        return None
    header.pop("__metadata__", None)
    try:
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (KeyError, TypeError, IndexError):
        return None
    return WeightFile(shapes=shapes, is_whole=size == _LENGTH_BYTES + length + end)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _integer(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) else None


def _cache_width(config: dict[str, Any]) -> int | None:
    heads, width = _integer(config, "num_attention_heads"), _integer(config, "hidden_size")
    key_heads = _integer(config, "num_key_value_heads") or heads
    size = _integer(config, "head_dim") or (width // heads if width and heads else None)
    return 2 * key_heads * size if key_heads and size else None
