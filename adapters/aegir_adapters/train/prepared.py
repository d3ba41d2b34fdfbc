"""What a preset's preparation makes in the run directory, once, before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec.structs import replace

from aegir_stream.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegir_adapters.train.preset import Preset
    from aegir_adapters.train.reporting import Reporter

__all__ = ["AssetPaths", "Prepare"]


class AssetPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Where a preparation puts what it makes.

    Attributes:
        root: the run directory.
    """

    root: Path

    @property
    def policy(self) -> Path:
        """Directory of model and tokenizer, in the format of `save_pretrained`."""
        return self.root / "policy"

    @property
    def sae(self) -> Path:
        """Directory that holds the SAE of each layer."""
        return self.root / "sae"

    def sae_of(self, layer: int) -> Path:
        """Return the directory of a layer's SAE."""
        return self.sae / f"layer-{layer}"

    @property
    def prompts(self) -> Path:
        """JSONL file of the prompts."""
        return self.root / "prompts.jsonl"

    @property
    def _mark(self) -> Path:
        return self.root / "aegir_prepared.json"

    def placed(self, preset: Preset) -> Preset:
        """Return a preset that looks here for what its preparation makes."""
        return replace(
            preset,
            policy=replace(preset.policy, model=str(self.policy)),
            sae=replace(preset.sae, path=str(self.sae)),
            prompts=replace(preset.prompts, path=str(self.prompts)),
        )

    def facts(self) -> dict[str, Any] | None:
        """Return what the preparation told, `None` unless it came to its end."""
        try:
            return msgspec.json.decode(Disk().load(self._mark), type=dict[str, Any])
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None

    def mark_complete(self, facts: Mapping[str, Any]) -> None:
        """Say that everything is there, so that a resumed run makes nothing again."""
        Disk().write(self._mark, msgspec.json.format(msgspec.json.encode(facts)) + b"\n")

    def taken(self) -> list[str]:
        """Return the names in the run directory that a preparation would write over."""
        paths = (self.policy, self.sae, self.prompts)
        return [path.name for path in paths if path.exists()]


class Prepare(Protocol):
    """The function that a preset's `prepare.function` names."""

    def __call__(
        self,
        assets: AssetPaths,
        *,
        layers: Sequence[int],
        seed: int,
        settings: Mapping[str, Any],
        reporter: Reporter,
    ) -> Mapping[str, Any]:
        """Make policy, tokenizer, the SAE of each layer, and prompts.

        Returns:
            Mapping: facts to keep in the run directory, as plain JSON values.
        """
        ...
