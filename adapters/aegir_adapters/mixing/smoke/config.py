"""What a smoke run does: those that come along by name, a user's own as a TOML file."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import msgspec

from aegir_adapters.mixing.formulas import SCALARS, Targets
from aegir_adapters.mixing.reader import Reader, _modality_for_reader
from aegir_adapters.mixing.smoke.streams import SyntheticStreams
from aegir_adapters.mixing.store import LEDGER_METRICS, StoreLimits
from aegir_stream.errors import OptionError

__all__ = ["LedgerConfig", "ReaderConfig", "SmokeConfig", "config_names", "load_config"]

_SUFFIX = ".toml"
_JUDGED = (*SCALARS, *LEDGER_METRICS)


class ReaderConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One of the readers that are mixed.

    Attributes:
        name: name of the reader; what stands before `/` is its modality.
        weight: its share of the picks, relative to the others.
        target: the share that it should have; its weight where absent.
        streams: how many streams it has over all shards, before it begins anew.
    """

    name: str
    weight: float
    target: float | None = None
    streams: int = 1_000_000


class LedgerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each rank's part of the ledger keeps; see `StoreLimits`."""

    capacity: int
    ring: int | None = None


class SmokeConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A run of a few seconds.

    Attributes:
        summary: what it shows, in a sentence.
        readers: what is mixed.
        ledger: where the recurrent states are kept.
        alarms: names of the metrics that have to leave their healthy band; all others must not.
        seed: of the mix, the weights and the tokens.
        steps: optimizer steps.
        log_every: steps in a window, which is what is judged.
        shards: logical shards of the mix; each gives one chunk to each step.
        stream_chunks: chunks of each stream.
        chunk_tokens: tokens that are predicted in each chunk.
        false_alarm: probability with which a healthy window may leave one of its bands.
    """

    summary: str
    readers: list[ReaderConfig]
    ledger: LedgerConfig
    alarms: list[str] = []
    seed: int = 0
    steps: int = 320
    log_every: int = 20
    shards: int = 16
    stream_chunks: int = 8
    chunk_tokens: int = 16
    false_alarm: float = 1e-9

    def __post_init__(self) -> None:
        """Refuse alarms that nobody could raise, and a run without a window."""
        unknown = [name for name in self.alarms if name not in _JUDGED]
        if unknown:
            raise ValueError(f"Expected `alarms` among {', '.join(_JUDGED)}, got {unknown}")
        if not 0 < self.log_every <= self.steps:
            raise ValueError(f"Expected `log_every` from 1 to `steps`, got `{self.log_every}`")
        if min(self.shards, self.stream_chunks, self.chunk_tokens) < 1:
            raise ValueError("Expected `shards`, `stream_chunks`, `chunk_tokens` of at least 1")

    @property
    def limits(self) -> StoreLimits:
        """What each rank keeps."""
        return StoreLimits(capacity=self.ledger.capacity, ring=self.ledger.ring)

    @property
    def mixed(self) -> list[Reader]:
        """The readers, over streams that are made as they are read."""
        return [
            Reader(
                name=reader.name,
                weight=reader.weight,
                open=SyntheticStreams(
                    reader.name,
                    streams=reader.streams,
                    chunks=self.stream_chunks,
                    tokens=self.chunk_tokens,
                ),
            )
            for reader in self.readers
        ]

    @property
    def targets(self) -> Targets:
        """What the mix should be, which may not be what is drawn."""
        wanted = {r.name: r.weight if r.target is None else r.target for r in self.readers}
        modalities = {reader.name: _modality_for_reader(reader) for reader in self.mixed}
        return Targets.of(wanted, modalities)

    def batch(self, ranks: int) -> int:
        """Return how many chunks a rank has in each step: one of each of its shards.

        Raises:
            OptionError: the shards cannot be dealt evenly to so many ranks.
        """
        if ranks < 1 or self.shards % ranks:
            raise OptionError(
                f"Expected a number of ranks that divides {self.shards} shards, got `{ranks}`",
                hint="Try --ranks 2",
            )
        return self.shards // ranks


def config_names() -> list[str]:
    """Return the names of the configurations that come along, the healthy one first."""
    files = resources.files("aegir_adapters.mixing.smoke") / "configs"
    names = [file.name.removesuffix(_SUFFIX) for file in files.iterdir()]
    return sorted(names, key=lambda name: (name != "healthy", name))


def load_config(name: str) -> SmokeConfig:
    """Return the configuration of a name, or that of a TOML file.

    Raises:
        OptionError: there is no such configuration or file, it is no TOML, or it says what a
            configuration cannot say.
    """
    try:
        config = msgspec.convert(tomllib.loads(_text(name)), SmokeConfig)
        # What the readers and the ledger refuse is refused here, not on every rank.
        _ = config.limits, config.targets
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise OptionError(f"{error} - in `{name}`", hint="Correct the configuration") from error
    return config


def _text(name: str) -> str:
    if not name.endswith(_SUFFIX):
        if name not in config_names():
            raise OptionError(
                f"Expected a configuration ({', '.join(config_names())}) or a path that ends with"
                f" `{_SUFFIX}`, got `{name}`",
                hint="Name one of them",
            )
        files = resources.files("aegir_adapters.mixing.smoke") / "configs"
        return (files / f"{name}{_SUFFIX}").read_text("utf-8")
    try:
        return Path(name).read_text("utf-8")
    except OSError as error:
        raise OptionError(
            f"The configuration `{name}` cannot be read: {error.strerror}",
            hint=f"Name a TOML file, or one of {', '.join(config_names())}",
        ) from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{error} - in `{name}`", hint="Write it in UTF-8") from error
