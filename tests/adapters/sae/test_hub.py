"""SAEs out of repositories on the Hugging Face hub, from its cache or over the wire."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from aegir_adapters.sae import load_sae
from aegir_adapters.sae.files import open_files
from aegir_stream.errors import MissingExtraError, SAEFormatError

REPOSITORY = "someone/tiny-saes"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"


def publish(root: Path, *layers: int) -> Path:
    """Write an SAE for each layer, as a repository holds them."""
    for layer in layers:
        hook = f"blocks.{layer}.hook_resid_post"
        (folder := root / "gpt" / hook).mkdir(parents=True)
        shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
        tensors = {name: torch.full(shape, float(layer)) for name, shape in shapes.items()}
        save_file(tensors, folder / "sae_weights.safetensors")
        metadata = {"sae_lens_version": "6.54.12", "hook_name": hook}
        config = {"architecture": "standard", "d_in": 4, "d_sae": 6, "metadata": metadata}
        (folder / "cfg.json").write_text(json.dumps(config))
    (root / "README.md").write_text("Some SAEs.\n")
    return root


def cached(cache: Path, files: Path, *, commit: str = COMMIT, branch: str = "main") -> Path:
    """Put files into a cache as the hub's client does: blobs, and links to them by name."""
    folder = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    snapshot = folder / "snapshots" / commit
    for path in (path for path in files.rglob("*") if path.is_file()):
        blob = folder / "blobs" / f"{commit[:4]}-{abs(hash(path))}"
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the hub's client an empty cache, offline."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_a_cached_repository_is_read_offline(cache: Path, tmp_path: Path) -> None:
    """The layer is found, and the SAE knows the repository, its commit and the folder in it."""
    cached(cache, publish(tmp_path / "files", 1, 2))
    sae = load_sae(REPOSITORY, layer=2)
    assert (sae.w_enc == 2).all()
    assert (sae.origin.repository, sae.origin.revision) == (REPOSITORY, COMMIT)
    assert sae.origin.path == "gpt/blocks.2.hook_resid_post"


def test_the_variable_alone_keeps_a_process_off_the_network(cache: Path, tmp_path: Path) -> None:
    """Under HF_HUB_OFFLINE=1 a fresh process loads by repository, with no hub to ask."""
    cached(cache, publish(tmp_path / "files", 2))
    program = (
        "from aegir_adapters.sae import load_sae;"
        f"print(load_sae({REPOSITORY!r}, layer=2).identity()['revision'])"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(cache),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == (COMMIT, 0), done.stderr


@pytest.mark.parametrize("below", ["", "/cfg.json", "/sae_weights.safetensors"])
def test_a_folder_or_file_of_a_repository_can_be_named(
    cache: Path, tmp_path: Path, below: str
) -> None:
    """As in a local directory, that is how one of several is meant."""
    cached(cache, publish(tmp_path / "files", 1, 2))
    sae = load_sae(f"{REPOSITORY}/gpt/blocks.1.hook_resid_post{below}")
    assert (sae.w_enc == 1).all()
    assert sae.origin.path == "gpt/blocks.1.hook_resid_post"


def test_what_is_ambiguous_in_a_repository_is_named(cache: Path, tmp_path: Path) -> None:
    """The remedy in the message loads one of them."""
    cached(cache, publish(tmp_path / "files", 1, 2))
    with pytest.raises(SAEFormatError, match="one SAE, got 2") as caught:
        load_sae(REPOSITORY)
    named = str(caught.value.hint).split("'")[1]
    assert load_sae(named).origin.layer == 1


def test_a_revision_is_a_branch_or_a_commit(cache: Path, tmp_path: Path) -> None:
    """Two revisions of one repository are two sets of files."""
    cached(cache, publish(tmp_path / "old", 1))
    cached(cache, publish(tmp_path / "new", 2), commit=OTHER, branch="v2")
    assert load_sae(REPOSITORY).origin.layer == 1
    assert load_sae(REPOSITORY, revision="v2").origin.revision == OTHER
    assert load_sae(REPOSITORY, revision=OTHER).origin.layer == 2


def test_what_is_not_in_the_cache_is_said_to_be_missing(cache: Path, tmp_path: Path) -> None:
    """Offline, the message names repository, revision and the command that fetches it."""
    with pytest.raises(SAEFormatError, match=rf"{REPOSITORY} in the hub's cache.*`hf download"):
        load_sae(REPOSITORY)
    cached(cache, publish(tmp_path / "files", 1))
    with pytest.raises(SAEFormatError, match=r"at `v9` in the hub's cache, got nothing"):
        load_sae(REPOSITORY, revision="v9")
    with pytest.raises(SAEFormatError, match=r"at .*saes/other, got none.*holds `README\.md`"):
        load_sae(f"{REPOSITORY}/other")


def test_a_half_fetched_sae_is_refused(cache: Path, tmp_path: Path) -> None:
    """Where the weights were never fetched, they are what is missing."""
    snapshot = cached(cache, publish(tmp_path / "files", 1))
    next(snapshot.rglob("sae_weights.safetensors")).unlink()
    with pytest.raises(SAEFormatError, match=r"known format|no sae_weights"):
        load_sae(REPOSITORY)


def test_a_directory_of_that_name_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What exists on this disk is never asked of the hub."""
    cached(cache, publish(tmp_path / "files", 1))
    publish(tmp_path / REPOSITORY, 2)
    monkeypatch.chdir(tmp_path)
    assert load_sae(REPOSITORY).origin.layer == 2


def test_a_missing_client_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Local files need no client; a repository says which extra brings it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert load_sae(publish(tmp_path / "files", 1)).origin.layer == 1
    with pytest.raises(MissingExtraError, match=r"huggingface_hub.*aegir-stream\[sae\]"):
        load_sae(REPOSITORY)


Hub = Callable[..., list[str]]


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Give a hub on this machine that serves a directory as the repository, and its requests.

    `moved` is what the main branch holds by the time that files are fetched.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        root: Path
        moved: Path | None

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            """Answer as to a GET, without the content."""
            self.answer(with_content=False)

        def do_GET(self) -> None:
            """Answer what a repository holds, or a file of it."""
            self.answer(with_content=True)

        def answer(self, *, with_content: bool) -> None:
            path = urlsplit(self.path).path
            asked.append(f"{self.command} {path}")
            found = self.found(path)
            self.send_response(200 if found is not None else 404)
            if found is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            content = found or b""
            self.send_header("Content-Length", str(len(content)))
            was_moved = self.moved is not None and "/resolve/main/" in path
            self.send_header("X-Repo-Commit", OTHER if was_moved else COMMIT)
            self.send_header("ETag", f'"{len(content)}-{abs(hash(path))}"')
            self.end_headers()
            if with_content:
                self.wfile.write(content)

        def found(self, path: str) -> bytes | None:
            if path.startswith(f"/api/models/{REPOSITORY}") and self.root.exists():
                files = [path for path in self.root.rglob("*") if path.is_file()]
                names = [{"rfilename": str(path.relative_to(self.root))} for path in files]
                return json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": names}).encode()
            revision, _, name = path.partition("/resolve/")[2].partition("/")
            root = self.moved if self.moved is not None and revision == "main" else self.root
            file = root / name
            return file.read_bytes() if file.is_file() else None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

        def serve(root: Path, *, moved: Path | None = None) -> list[str]:
            Handler.root, Handler.moved = root, moved
            return asked

        yield serve
        server.shutdown()
        thread.join()


def test_only_the_files_of_one_sae_are_fetched(hub: Hub, tmp_path: Path) -> None:
    """Of a repository with many layers, one list and two files go over the wire."""
    asked = hub(publish(tmp_path / "files", 1, 2, 3, 12))
    sae = load_sae(REPOSITORY, layer=12)
    assert (sae.origin.layer, sae.origin.revision) == (12, COMMIT)
    fetched = {line.rpartition("/")[2] for line in asked if line.startswith("GET")}
    assert fetched == {"tiny-saes", "cfg.json", "sae_weights.safetensors"}
    assert all("blocks.12." in line for line in asked if "/resolve/" in line)


def test_a_branch_that_moves_meanwhile_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    """The files are those of the commit that was listed, whatever the branch holds by then."""
    listed, moved = publish(tmp_path / "files", 1), publish(tmp_path / "moved", 1)
    name = "gpt/blocks.1.hook_resid_post/sae_weights.safetensors"
    save_file({"w": torch.zeros(1)}, moved / name)
    hub(listed, moved=moved)
    sae = load_sae(REPOSITORY)
    assert (sae.w_enc == 1).all()
    assert sae.origin.revision == COMMIT


def test_the_cache_stands_in_for_a_hub_that_does_not_answer(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched once loads again when the hub has lost it, and offline."""
    hub(publish(tmp_path / "files", 1))
    before = load_sae(REPOSITORY).identity()
    shutil.rmtree(tmp_path / "files")
    assert load_sae(REPOSITORY).identity() == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_sae(REPOSITORY).identity() == before


def test_a_repository_that_does_not_exist_is_named(hub: Hub, tmp_path: Path) -> None:
    """The hub's own word for it is passed on, with what can be done."""
    hub(publish(tmp_path / "files", 1))
    with pytest.raises(SAEFormatError, match=r"nobody/none on the .* hub, got Repository.*login"):
        open_files("nobody/none")
