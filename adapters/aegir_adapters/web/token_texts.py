"""The text of tokens, from the tokenizer that a run saves with its checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aegir_adapters.web.spelling import spell
from aegir_stream.layout import RunDirectory
from aegir_stream.system import Status

__all__ = ["TokenTexts"]

_FILE = "tokenizer.json"
_LARGEST_BYTES = 64 << 20


class TokenTexts:
    """Spells the tokens of one run. Safe to use from several threads.

    Needs the package `tokenizers`, and a checkpoint with a `tokenizer.json`. The file is read when
    it is needed first, and again when it is another one.

    Args:
        run: the run directory; it need not exist yet.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._turn = threading.Lock()
        self._known: tuple[Path, Status] | None = None
        self._tokenizer: Any = None

    def look(self) -> Callable[[Sequence[int]], list[str]] | None:
        """Return what tells the text of each token; `None` if nothing does.

        Reads files; never fails.
        """
        with self._turn:
            tokenizer = self._look()
        if tokenizer is None:
            return None

        def decode(token_ids: Sequence[int]) -> str:
            return str(tokenizer.decode(token_ids, skip_special_tokens=False))

        return lambda token_ids: spell(token_ids, decode, name=tokenizer.id_to_token)

    def _look(self) -> Any:
        found = self._find()
        if found != self._known:
            self._known, self._tokenizer = found, self._load(found)
        return self._tokenizer

    def _find(self) -> tuple[Path, Status] | None:
        """Return the file of the newest checkpoint that has one, and what the system tells of it.

        It is opened only when that has changed: on network file systems a file that is open while
        its checkpoint is removed keeps the directory from being removed.
        """
        try:
            for checkpoint in reversed(self._run.checkpoints()):
                path = checkpoint.path / _FILE
                status = self._run.disk.status(path)
                if status is not None:
                    return path, status
        except OSError:
            pass
        return None

    def _load(self, found: tuple[Path, Status] | None) -> Any:
        if found is None or found[1].size > _LARGEST_BYTES or find_spec("tokenizers") is None:
            return None
        from tokenizers import Tokenizer  # noqa: PLC0415 - comes with other extras, may be absent

        try:
            return Tokenizer.from_buffer(self._run.disk.load(found[0]))
        except (OSError, ValueError):
            return None
