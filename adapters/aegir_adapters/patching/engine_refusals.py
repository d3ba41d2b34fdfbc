"""What the engine refuses, as a fault of the request that it was asked by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aegir_adapters.patching.gradients import GradientError
from aegir_adapters.patching.request import PatchSweepRequest, PromptPair, RequestError
from aegir_stream.errors import LayerError, OptionError

__all__ = ["engine_refused"]

_FIELD_OF = {
    "run": "source_run",
    "zero": "prompt",
    "mean": "source_runs",
    "vector": "vectors",
    "latent": "latent",
}
"""The field that a source is made of."""


@contextmanager
def engine_refused(request: PatchSweepRequest) -> Iterator[None]:
    """Tell what the engine refuses in the block as a fault of the request.

    Raises:
        RequestError: it refused something.
    """
    try:
        yield
    except GradientError as error:
        allowed = "exact, for this model has no gradients"
        raise RequestError("method", request.method, allowed=allowed, hint=f"{error}") from error
    except (OptionError, LayerError) as error:
        field = _FIELD_OF[request.source]
        value = getattr(request, field)
        if request.pairs is not None and field in PromptPair.__struct_fields__:
            field, value = "pairs", f"{len(request.pairs)} pairs"
        raise RequestError(
            field,
            value,
            allowed="a source for these hooks, layers and positions",
            hint=f"{error}",
        ) from error
