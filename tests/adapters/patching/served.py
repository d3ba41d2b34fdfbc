"""A tiny model with a tokenizer, and services that sweep it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adapters.patching.decoders import ANSWER, CLEAN, CORRUPT, FOIL, VOCABULARY, decoder
from aegir_adapters.patching.capture import capture
from aegir_adapters.patching.model import PatchableModel
from aegir_adapters.patching.request import PatchSweepRequest, convert_request
from aegir_adapters.patching.response import CellEvent, PatchSweepResponse
from aegir_adapters.patching.service import PatchService
from aegir_adapters.patching.sources import SourceRun
from aegir_adapters.patching.store import RunStore

BOS = 1


def words() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one word, one token: `w7` is token 7; `<bos>` is put before."""
    vocabulary = {"<unk>": 0, "<bos>": BOS, **{f"w{n}": n for n in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>"
    )


@cache
def patchable(family: str = "llama", *, tokenizer: bool = True) -> PatchableModel:
    """Return a model of a family, the same one each time."""
    return PatchableModel(decoder(family), words() if tokenizer else None)


def service_of(**options: Any) -> PatchService:
    """Return a service with an empty store."""
    return PatchService(options.pop("model", None) or patchable(), **options)


def fields_of(**fields: Any) -> dict[str, Any]:
    """Return the fields of a request for all layers, with a clean prompt."""
    defaults = {
        "prompt": list(CORRUPT),
        "clean_prompt": list(CLEAN),
        "layers": "all",
        "hook": "resid_post",
        "answer_token_id": ANSWER,
        "foil_token_id": FOIL,
    }
    merged = {**defaults, **fields}
    return {name: value for name, value in merged.items() if value is not None}


def request_of(**fields: Any) -> PatchSweepRequest:
    """Return such a request; `None` leaves a field out."""
    return convert_request(fields_of(**fields), PatchSweepRequest)


def swept(service: PatchService, **fields: Any) -> PatchSweepResponse:
    """Return the answer to such a request."""
    return swept_with_cells(service, **fields)[0]


def swept_with_cells(
    service: PatchService, **fields: Any
) -> tuple[PatchSweepResponse, list[CellEvent]]:
    """Return the answer to such a request, and its cells in the order in which they came."""
    with service.sweep(request_of(**fields)) as running:
        cells = [cell for batch in running.batches() for cell in batch]
        return running.summary(), cells


def forwards_of(service: PatchService, **fields: Any) -> tuple[PatchSweepResponse, list[int]]:
    """Return the answer to such a request, and the lengths of the model's whole forwards."""
    lengths: list[int] = []

    def note(_: Any, __: Any, output: Any) -> None:
        lengths.append(output.shape[1])

    embedding: Any = service.model.module.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(note)
    try:
        return swept(service, **fields), lengths
    finally:
        handle.remove()


def pairs_of(*pairs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the fields of a request for prompt pairs."""
    own: dict[str, Any] = {"prompt": None, "clean_prompt": None, "pairs": list(pairs)}
    return {**own, **fields}


class Halves:
    """An SAE whose latents are the coordinates of what it reads, twice as large."""

    def encode(self, x: Tensor) -> Tensor:
        """Return the code."""
        return 2 * x

    def decode(self, latents: Tensor, x: Tensor) -> Tensor:
        """Return the reconstruction."""
        del x
        return latents / 2


def footprint(store: RunStore) -> tuple[int, int, int, int]:
    """Return what a store holds: runs, leases, and bytes of both kinds."""
    now = store.statistics()
    return now.runs, now.leases, now.listed_bytes, now.lingering_bytes


def put(service: PatchService, name: str, tokens: tuple[int, ...], **options: Any) -> None:
    """List a run in the service's store."""
    service.store.put(name, capture(service.model, tokens, **options)).release()


def measured(response: PatchSweepResponse) -> tuple[Any, ...]:
    """Return what does not depend on when a sweep ran."""
    return response.grid, response.clean, response.corrupt, response.argmax, response.noise_floor


def run_of(size: int, *, tokens: tuple[int, ...] = (1, 2, 3)) -> SourceRun:
    """Return a run of so many bytes."""
    return SourceRun(
        token_ids=tokens,
        model_id="a model",
        layers=(0,),
        positions=(0,),
        activations={"resid_post": torch.zeros(1, 1, size, dtype=torch.uint8)},
    )


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Serve an application on a free port; give its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
