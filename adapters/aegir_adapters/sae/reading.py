"""What the files of an SAE hold: tensors and JSON, of which nothing is ever executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from aegir_adapters.sae.families import Found
from aegir_adapters.sae.files import SAEFiles
from aegir_adapters.sae.saelens_config import one_of
from aegir_adapters.sae.weights import Weights
from aegir_stream.errors import SAEFormatError

Config = TypeVar("Config")

_DAMAGED = "Fetch it again: it is damaged, incomplete or in another format"


class TensorFile(NamedTuple):
    """The tensors of one file, taken out one by one and checked on the way.

    Attributes:
        path: the file.
        tensors: all that it holds, by name.
    """

    path: Path
    tensors: Mapping[str, Tensor]

    def expect(self, names: Iterable[str], *, optional: Iterable[str] = ()) -> None:
        """Make sure that the file holds these tensors and, the optional ones aside, no others.

        A tensor that no reader knows would be left out of what the SAE computes.

        Raises:
            SAEFormatError: one is missing, or there is one too many.
        """
        required, got = set(names), set(self.tensors)
        missing, unknown = required - got, got - required - set(optional)
        if missing or unknown:
            odd = [f"{_all_of(missing)} missing"] * bool(missing)
            odd += [f"{_all_of(unknown)} unknown"] * bool(unknown)
            raise SAEFormatError(
                f"Expected tensors {_all_of(required)}, got {_all_of(got)} ({', '.join(odd)})"
                f" - {self.path}",
                hint="Its format calls for these; the file is of another format, or of a variant"
                " that is not built here",
            )

    def length(self, name: str) -> int:
        """Return the length of a vector, from which the shapes of the others follow.

        Raises:
            SAEFormatError: it has not one dimension.
        """
        tensor = self.tensors[name]
        if tensor.ndim != 1:
            raise SAEFormatError(
                f"Expected `{name}` with 1 dimension, got shape {tuple(tensor.shape)}"
                f" - {self.path}",
                hint="Its lengths say how wide the SAE is",
            )
        return len(tensor)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor as it is stored.

        Raises:
            SAEFormatError: it has another shape, holds no floating-point numbers, or some that are
                not finite.
        """
        tensor = self.tensors[name]
        self._check_shape(name, tensor, shape)
        if not tensor.is_floating_point():
            raise SAEFormatError(
                f"Expected floating-point numbers in `{name}`, got {tensor.dtype} - {self.path}",
                hint="Quantised weights are not read; choose a file in float32, float16 or"
                " bfloat16",
            )
        self._check_values(name, tensor)
        return tensor

    def check_orientation(self, d_model: int, n_latents: int) -> None:
        """Make sure that an encoder can be told from its transpose by its shape.

        Raises:
            SAEFormatError: there are as many latents as dimensions.
        """
        if d_model == n_latents:
            raise SAEFormatError(
                f"Expected matrices that show their orientation, got square ones of shape"
                f" {(d_model, n_latents)} - {self.path}",
                hint="With as many latents as dimensions, and nothing beside the file that states"
                " them, an encoder cannot be told from its transpose; save it in the format of"
                " SAELens v6",
            )

    def _check_shape(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        got = tuple(tensor.shape)
        if got != shape:
            turned = "This one is transposed. " if got == shape[::-1] and len(got) > 1 else ""
            raise SAEFormatError(
                f"Expected `{name}` of shape {shape}, got {got} - {self.path}",
                hint=f"{turned}Its format, and the configuration or the biases beside it, call for"
                f" {shape}",
            )

    def _check_values(self, name: str, tensor: Tensor) -> None:
        unusable = int((~tensor.isfinite()).sum())
        if unusable:
            raise SAEFormatError(
                f"Expected finite values in `{name}`, got {unusable} of {tensor.numel()}"
                f" that are NaN or infinite - {self.path}",
                hint="Fetch the file again, or choose an SAE whose training did not diverge",
            )


def read_tensors(path: Path, *, device: str | torch.device = "cpu") -> TensorFile:
    """Read a `.safetensors`, `.npz`, `.pt` or `.pth` file that holds tensors by name.

    A `.pt` file is a pickle; only tensors are taken from it, and no code in it runs.

    Raises:
        SAEFormatError: it does not parse, or holds something else than tensors.
    """
    match path.suffix:
        case ".safetensors":
            return TensorFile(path, _safetensors(path, device))
        case ".npz":
            return TensorFile(path, _arrays(path, device))
    return TensorFile(path, _pickled(path, device))


def read_json(path: Path, kind: type[Config]) -> Config:
    """Read a configuration in JSON; keys that its type does not have are left out.

    Raises:
        SAEFormatError: it does not parse, lacks a key, or has a value of another type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise SAEFormatError(
            f"{error} - in {path}", hint="It is no configuration of the format that it stands for"
        ) from error


def description(files: SAEFiles, found: Found) -> Path:
    """Return where the configuration lies that `find` paired with the tensors."""
    if found.config is None:
        raise AssertionError("only families whose `find` names a configuration ask for it")
    return files.path(found.config)


def linear_layers(
    held: TensorFile,
    *,
    encoder: str = "encoder",
    decoder: str = "decoder",
    b_dec: str = "",
    shape: tuple[int, int] | None = None,
) -> Weights:
    """Return the weights of two linear layers of torch, whose matrices are [out, in].

    Args:
        held: the file.
        encoder: name of the first layer.
        decoder: name of the second one.
        b_dec: name of the decoder's bias; its own if left out.
        shape: input width and number of latents, where a configuration states them.

    Raises:
        SAEFormatError: the tensors do not fit together; see `TensorFile.take`.
    """
    bias = b_dec or f"{decoder}.bias"
    d_model, n_latents = shape or (held.length(bias), held.length(f"{encoder}.bias"))
    return Weights(
        w_enc=held.take(f"{encoder}.weight", (n_latents, d_model)).T,
        b_enc=held.take(f"{encoder}.bias", (n_latents,)),
        w_dec=held.take(f"{decoder}.weight", (d_model, n_latents)).T,
        b_dec=held.take(bias, (d_model,)),
    )


def told_by_name(pattern: re.Pattern[str], files: SAEFiles, name: str) -> re.Match[str] | None:
    """Return what the names above a file say, for families that say it nowhere else.

    The repository that it was published in is asked first, then the folders, the nearest first.
    """
    folders = Path(files.located(name)).absolute().as_posix()
    for text in (files.repository or "", folders):
        matches = list(pattern.finditer(text))
        if matches:
            return matches[-1]
    return None


def _all_of(names: set[str]) -> str:
    return one_of(sorted(names), joint="and") if names else "none"


def _safetensors(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise SAEFormatError(
            f"Expected safetensors, got a file that does not parse ({error}) - {path}",
            hint=_DAMAGED,
        ) from error


def _arrays(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]).to(device) for name in arrays.files}
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise SAEFormatError(
            f"Expected arrays of numbers, got a file that does not parse ({error}) - {path}",
            hint=_DAMAGED,
        ) from error


def _pickled(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    # Mapped, so that a dictionary of some gigabytes lies in memory once, not twice, while its
    # matrices are turned. Only the newer of torch's two layouts can be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        held = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise SAEFormatError(
            f"Expected tensors, got a file that does not parse ({_first_line(error)}) - {path}",
            hint=f"{_DAMAGED}. Objects other than tensors are never loaded: they could run code",
        ) from error
    if not isinstance(held, Mapping):
        raise SAEFormatError(
            f"Expected tensors by name, got {type(held).__name__} - {path}", hint=_DAMAGED
        )
    for name, value in held.items():
        if not isinstance(value, Tensor):
            raise SAEFormatError(
                f"Expected a tensor, got {type(value).__name__} - at `{name}` ({path})",
                hint="Give the file of the SAE itself, not the checkpoint of its training",
            )
    return dict(held)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip()
