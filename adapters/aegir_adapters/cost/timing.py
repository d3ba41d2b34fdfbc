"""How long a recording takes, from a few timings on the machine that will do it.

Reading a token at a layer takes ``a + b n_latents + c n_latents d_model``: whatever does not depend
on the SAE, the choice of the strongest latents, and the encoder's product.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from aegir_adapters.cost.load import CaptureLoad
from aegir_stream.errors import OptionError

__all__ = ["Calibration", "Probe", "TimeCost", "calibrated", "time_cost"]

_PROBES = 3


class Probe(Struct, frozen=True, kw_only=True):
    """One timing: reading tokens at one layer with an SAE of a size.

    Attributes:
        d_model: width of the SAE.
        n_latents: its latents.
        token_s: seconds for each token.
    """

    d_model: int
    n_latents: int
    token_s: float


class Calibration(Struct, frozen=True, kw_only=True):
    """What was measured on a machine.

    Attributes:
        token_s: seconds for each token and layer, whatever the SAE.
        latent_s: further seconds for each latent.
        weight_s: further seconds for each weight of the encoder.
        forward_s: seconds for each forward and layer, however few its tokens.
        record_s: seconds of the recorder's thread for each record.
        probes: the timings that this was made from.
    """

    token_s: float
    latent_s: float
    weight_s: float
    forward_s: float
    record_s: float
    probes: tuple[Probe, ...] = ()


class TimeCost(Struct, frozen=True, kw_only=True):
    """Milliseconds of an optimizer step on one process.

    Attributes:
        training_ms: on the training thread, or on the device that it keeps busy.
        recorder_ms: on the recorder's thread, of processor time.
    """

    training_ms: float
    recorder_ms: float


def time_cost(load: CaptureLoad, calibration: Calibration) -> TimeCost:
    """Return how long a step's recording takes by what was measured."""
    token_s = (
        calibration.token_s
        + calibration.latent_s * load.n_latents
        + calibration.weight_s * load.n_latents * load.d_model
    )
    calls = load.forwards * load.layers * load.passes
    training_s = load.records * token_s + calls * calibration.forward_s
    return TimeCost(
        training_ms=1e3 * training_s, recorder_ms=1e3 * load.records * calibration.record_s
    )


def calibrated(probes: Sequence[Probe], *, forward_s: float, record_s: float) -> Calibration:
    """Return what three timings say: two of one width, two of one number of latents.

    Args:
        probes: a small SAE, one with more latents, and one that is wider beside.
        forward_s: seconds for each forward and layer.
        record_s: seconds for each record.

    Raises:
        OptionError: the three do not tell latents from width.
    """
    if len(probes) != _PROBES or not _differ(probes):
        raise OptionError(
            f"Expected 3 timings that tell latents from width, got {list(probes)}",
            hint="Time a small SAE, one with more latents, and one that is wider beside",
        )
    small, taller, wider = probes
    # The wider one differs from the taller one by weights alone, that from the small one by both.
    weights = wider.n_latents * wider.d_model - taller.n_latents * taller.d_model
    weight_s = max(0.0, (wider.token_s - taller.token_s) / weights)
    more = taller.n_latents - small.n_latents
    latent_s = (taller.token_s - small.token_s) / more - weight_s * small.d_model
    latent_s = max(0.0, latent_s)
    token_s = small.token_s - small.n_latents * (latent_s + weight_s * small.d_model)
    return Calibration(
        token_s=max(0.0, token_s),
        latent_s=latent_s,
        weight_s=weight_s,
        forward_s=forward_s,
        record_s=record_s,
        probes=tuple(probes),
    )


def _differ(probes: Sequence[Probe]) -> bool:
    small, taller, wider = probes
    same = small.d_model == taller.d_model and taller.n_latents == wider.n_latents
    return same and small.n_latents < taller.n_latents and taller.d_model < wider.d_model
