"""What decides on the cost of a recording."""

from __future__ import annotations

from msgspec import Struct

from aegir_stream.errors import OptionError
from aegir_stream.sampling import SamplingRule

__all__ = ["CaptureLoad"]


class CaptureLoad(Struct, frozen=True, kw_only=True):
    """The tokens of a step on one process, and what is made of them.

    Attributes:
        d_model: width of the residual stream.
        n_latents: of each SAE.
        layers: how many are hooked.
        tokens: completion tokens of an optimizer step.
        completions: among how many completions.
        forwards: in how many forward passes (micro-batches).
        top_k: latents recorded per token and layer.
        steps: optimizer steps of the run.
        passes: how many forward passes over the same tokens are recorded.
        sampling: which of the tokens are recorded.

    Raises:
        OptionError: a number is below 1, or more latents are recorded than there are.
    """

    d_model: int
    n_latents: int
    layers: int
    tokens: int
    completions: int = 1
    forwards: int = 1
    top_k: int = 16
    steps: int = 1
    passes: int = 1
    sampling: SamplingRule = SamplingRule()

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise OptionError(
                    f"Expected `{name}` of at least 1, got {getattr(self, name)}",
                    hint="Give what one optimizer step has on one process",
                )
        if self.top_k > self.n_latents:
            raise OptionError(
                f"Expected `top_k` of at most {self.n_latents}, got {self.top_k}",
                hint="Record no more latents than the SAE has",
            )

    @property
    def recorded_tokens(self) -> float:
        """How many tokens of a step are recorded, on average, by one pass."""
        length = max(1, round(self.tokens / self.completions))
        every = self.sampling.record_every_n_tokens
        # The chance repeats with the position modulo n; a few places stand for all.
        places = range(min(length, every))
        chances = [self.sampling.probability(place, length=length) for place in places]
        return self.tokens * sum(chances) / len(chances)

    @property
    def records(self) -> float:
        """How many records a step gives, on average."""
        return self.recorded_tokens * self.layers * self.passes


_COUNTS = (
    "d_model",
    "n_latents",
    "layers",
    "tokens",
    "completions",
    "forwards",
    "top_k",
    "steps",
    "passes",
)
