"""The files an SAE is published as: a directory, one file of it, or a repository on the hub."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from aegir_stream.errors import MissingExtraError, SAEFormatError

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".npz", ".bin", ".ckpt")
"""What files with tensors end on; all others are taken for descriptions of them."""

_REPOSITORY = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+(/[^/]+)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEPTH = 6
"""Folders below the one that was named that are looked into; published SAEs lie at most 5 deep."""


class SAEFiles(ABC):
    """Files by name, fetched when they are asked for.

    Attributes:
        name: what error messages call them: a path, or a repository and folder on the hub.
        names: paths below `name` with forward slashes, sorted.
        repository: repository they were published in, where that is known.
        revision: commit of that repository, where that is known.
    """

    name: str
    names: tuple[str, ...]
    repository: str | None
    revision: str | None

    @abstractmethod
    def path(self, name: str) -> Path:
        """Return where a file lies on this disk, after fetching it if need be.

        Raises:
            SAEFormatError: there is no such file, or it cannot be fetched.
        """

    def located(self, name: str) -> str:
        """Return the whole path of a file, the folder or repository that was named in front."""
        return f"{self.name}/{name}"

    def location(self, name: str) -> str:
        """Return what `Origin.path` says of an SAE in a file: path on this disk, or in the hub."""
        return self.located(name)

    def _missing(self, name: str) -> SAEFormatError:
        return SAEFormatError(
            f"Expected a file `{name}`, got none of that name - in {self.name}",
            hint=f"It holds {listed(self.names)}",
        )


class LocalFiles(SAEFiles):
    """Files of a directory on this disk, or one file and the descriptions beside it.

    Args:
        path: a directory; or a file with tensors, beside which other files with tensors are not
            seen; or a description, which stands for its directory.
        repository: repository they were published in.
        revision: commit of that repository.
    """

    def __init__(
        self, path: Path, *, repository: str | None = None, revision: str | None = None
    ) -> None:
        self._root = path if path.is_dir() else path.parent
        self.name = str(self._root)
        self.repository = repository
        self.revision = revision
        self.names = tuple(sorted(_walk(self._root)))
        if path != self._root:
            self.names = tuple(_narrowed(self.names, path.name))

    def path(self, name: str) -> Path:
        """Return where a file lies; errors as in `SAEFiles`."""
        if name not in self.names:
            raise self._missing(name)
        return self._root / name


class HubFiles(SAEFiles):
    """Files of a repository on the Hugging Face hub, or of one folder of it.

    Under `HF_HUB_OFFLINE`, and where the hub does not answer, those in the local cache.

    Args:
        repository: as in `owner/name`, and behind it a folder or file of the repository, if any.
        revision: branch, tag or commit; the main branch if left out.

    Raises:
        MissingExtraError: `huggingface_hub` is not installed.
        SAEFormatError: the hub has no such repository, revision or folder, or neither it nor the
            cache is at hand.
    """

    def __init__(self, repository: str, *, revision: str | None = None) -> None:
        owner, name, *folders = repository.split("/")
        self.repository: str = f"{owner}/{name}"
        self.name = repository
        self._asked = revision
        self.revision, names = _snapshot(self.repository, revision)
        self._folder = "/".join(folders)
        if self._folder in names:
            *above, last = folders
            self._folder = "/".join(above)
            self.name = "/".join([owner, name, *above])
            self.names = tuple(_narrowed(self._below(names), last))
        else:
            self.names = tuple(self._below(names))
        if not self.names:
            raise SAEFormatError(
                f"Expected files at {repository}, got none",
                hint=f"The repository holds {listed(names)}",
            )

    def path(self, name: str) -> Path:
        """Return where a file lies in the cache; errors as in `SAEFiles`."""
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - dear, and not always needed

        if name not in self.names:
            raise self._missing(name)
        inside = f"{self._folder}/{name}" if self._folder else name
        try:
            # As it was asked for, so that the cache remembers which commit a branch was at.
            path = Path(hf_hub_download(self.repository, inside, revision=self._asked))
            if self.revision in path.parts:
                return path
            return Path(hf_hub_download(self.repository, inside, revision=self.revision))
        except _network_errors() as error:
            raise _unreachable(f"the file `{inside}` of {self.repository}", error) from error

    def location(self, name: str) -> str:
        """Return the path of a file inside the repository."""
        return f"{self._folder}/{name}" if self._folder else name

    def _below(self, names: list[str]) -> list[str]:
        prefix = f"{self._folder}/" if self._folder else ""
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def open_files(
    source: str | os.PathLike[str], *, repository: str | None = None, revision: str | None = None
) -> SAEFiles:
    """Return the files at a path of this disk, or else of a repository on the hub.

    Args:
        source: path of a directory or file; or repository `owner/name` on the Hugging Face hub,
            with a folder or file of it behind, as in `owner/name/layer_12`. What exists on this
            disk is taken for a path.
        repository: of files on this disk, where they were published.
        revision: of a repository, branch, tag or commit; of files on this disk, where they are
            known to come from.

    Raises:
        MissingExtraError: as in `HubFiles`.
        SAEFormatError: there is nothing at the path and it names no repository; or as in
            `HubFiles`.
    """
    path = Path(source).expanduser()
    if path.exists():
        return LocalFiles(path, repository=repository, revision=revision)
    text = os.fspath(source)
    if isinstance(source, str) and _REPOSITORY.fullmatch(text):
        return HubFiles(text, revision=revision)
    raise SAEFormatError(
        f"Expected a directory, a file or a repository on the hub, got `{text}`,"
        f" and got no {path.name} - in {path.parent}",
        hint="Name what exists on this disk, or a repository as `owner/name`",
    )


def listed(names: list[str] | tuple[str, ...], *, most: int = 8) -> str:
    """Return names as prose, the first of them if they are many: `a`, `b` and 4 more."""
    if not names:
        return "no files"
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _walk(root: Path) -> Iterator[str]:
    """Yield files below a directory; hidden ones, such as the hub's own bookkeeping, left out."""
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder).relative_to(root)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if len(here.parts) >= _DEPTH:
            below.clear()
        for name in names:
            if not name.startswith("."):
                yield (here / name).as_posix()


def _narrowed(names: Any, chosen: str) -> Iterator[str]:
    """Yield the chosen file and what describes it, or all that a description may describe."""
    alone = chosen.endswith(WEIGHT_SUFFIXES)
    for name in names:
        if "/" not in name and (name == chosen or not alone or not is_weights(name)):
            yield name


def is_weights(name: str) -> bool:
    """Return whether a file holds tensors, as far as its name tells."""
    return PurePosixPath(name).name.endswith(WEIGHT_SUFFIXES)


def _snapshot(repository: str, revision: str | None) -> tuple[str, list[str]]:
    """Return the commit of a revision and the files in it."""
    try:
        from huggingface_hub import HfApi, constants  # noqa: PLC0415 - dear, not always needed
        from huggingface_hub.errors import RevisionNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", extra="sae") from error
    what = f"the repository {repository}" + (f" at `{revision}`" if revision else "")
    if constants.HF_HUB_OFFLINE:
        cached = _cached(repository, revision)
        if cached is None:
            raise SAEFormatError(
                f"Expected {what} in the hub's cache, got nothing there",
                hint="Nor is there a directory of that name. The hub is not to be asked"
                " (HF_HUB_OFFLINE); fetch it where there is a network with"
                f" `hf download {repository}`",
            )
        return cached
    try:
        found = HfApi().model_info(repository, revision=revision)
    except RevisionNotFoundError as error:
        raise _unreachable(what, error) from error
    except _network_errors() as error:
        cached = _cached(repository, revision)
        if cached is None:
            raise _unreachable(what, error) from error
        return cached
    return str(found.sha), sorted(file.rfilename for file in found.siblings or ())


def _cached(repository: str, revision: str | None) -> tuple[str, list[str]] | None:
    """Return the commit of a revision and its files as far as they were fetched.

    `snapshot_download` would not do: it refuses a repository of which not all was fetched.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - dear, and not always needed
    from huggingface_hub.file_download import repo_folder_name  # noqa: PLC0415

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    commit = revision or constants.DEFAULT_REVISION
    if not _COMMIT.fullmatch(commit):
        reference = folder / "refs" / commit
        if not reference.is_file():
            return None
        commit = reference.read_text().strip()
    snapshot = folder / "snapshots" / commit
    return (commit, sorted(_walk(snapshot))) if snapshot.is_dir() else None


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what the client raises where a hub does not answer, or not as it should.

    Its own errors are OSErrors; those of the HTTP library beneath, which changed over its versions,
    are not always.
    """
    from huggingface_hub import errors  # noqa: PLC0415 - dear, and not always needed

    return (OSError, errors.HTTPError)  # type: ignore[attr-defined]  # imported there, not listed


def _unreachable(what: str, error: Exception) -> SAEFormatError:
    reason = str(error).strip().partition("\n")[0]
    return SAEFormatError(
        f"Expected {what} on the Hugging Face hub, got {type(error).__name__}: {reason}",
        hint="Check its name and revision, log in with `hf auth login` where it is gated, or give"
        " the directory that you have fetched it into",
    )
