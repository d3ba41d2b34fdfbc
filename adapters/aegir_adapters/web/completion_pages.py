"""The pages of a run's completions: those of a step, and each with what its tokens activated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from aegir_adapters.web import drawing
from aegir_adapters.web.ablation import (
    NO_IDS,
    AblationError,
    layers_with_sae,
    order_of,
    read_ablation,
)
from aegir_adapters.web.amounts import number
from aegir_adapters.web.completion_rows import Spell, groups_of, listed, numbers
from aegir_adapters.web.completion_shelf import CompletionShelf, SeenCompletion
from aegir_adapters.web.form_body import read_body
from aegir_adapters.web.live import LookLive
from aegir_adapters.web.lookout import shown
from aegir_adapters.web.microscope import Look, Microscope, look_of
from aegir_adapters.web.microscope_view import View
from aegir_adapters.web.page import Page
from aegir_adapters.web.security import NEVER_STORED
from aegir_adapters.web.spelling import shown_token
from aegir_adapters.web.sweep_gate import SweepGate
from aegir_adapters.web.token_shades import STYLE
from aegir_adapters.web.token_texts import TokenTexts
from aegir_stream.events import Completion
from aegir_stream.layout import RunDirectory

__all__ = ["CompletionPages"]

_NAME = re.compile(r"(\d{1,9})-(\d{1,9})")
_NUMBER = re.compile(r"\d{1,9}")
_MOST_PROMPT = 4000
_LONGEST_TEXT = 100_000
_NO_TEXT = "Neither text nor token ids were recorded: SidecarCallback(..., record_text=True) does."


class CompletionPages:
    """Shows the completions of one run.

    Args:
        run: the run directory; it need not exist yet.
        look_live: tells of the live viewer of the run.
        gate: starts sweeps.
    """

    def __init__(self, run: RunDirectory, *, look_live: LookLive, gate: SweepGate) -> None:
        self._run = run
        self._look_live = look_live
        self._gate = gate
        self._shelf = CompletionShelf(run)
        self._texts = TokenTexts(run)

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/completions", self._step),
            Route("/completions/{name}", self._one, methods=["GET"]),
            Route("/completions/{name}", self._ablate, methods=["POST"]),
        ]

    # -- a step ------------------------------------------------------------------------------------

    async def _step(self, request: Request) -> Response:
        wanted = _number(request.query_params.get("step", ""))
        part = _number(request.query_params.get("page", "")) or 1
        seen = await self._look_live()
        try:
            step = await anyio.to_thread.run_sync(lambda: self._listed(wanted, part))
        except OSError as error:
            return _unreadable(error)
        page = Page.of(
            "completions.html",
            **self._heading(root=""),
            viewer_address=seen.address if seen else None,
            wanted=wanted,
            step=step,
        )
        return drawing.answer(request, page)

    def _listed(self, wanted: int | None, part: int) -> dict[str, Any] | None:
        found = self._shelf.step(wanted, page=part)
        if found is None:
            return None
        return {
            "step": found.step,
            "around": found.around,
            "count": found.count,
            "page": found.page,
            "pages": found.pages,
            "groups": groups_of(found.completions, self._spell(), root="completions/"),
            "without_text": not any(one.text or one.token_ids for one in found.completions),
        }

    # -- one of them -------------------------------------------------------------------------------

    async def _one(self, request: Request) -> Response:
        return await self._answer(request, look_of(request.query_params))

    async def _ablate(self, request: Request) -> Response:
        """Start the sweep that a button asks for."""
        refused = await self._gate.refused(request)
        if refused is not None:
            return refused
        body = await read_body(request)
        if isinstance(body, Response):
            return body
        look = look_of(request.query_params)
        ablation = read_ablation(body)
        if ablation is None:
            trouble: str | None = "The form could not be read."
        else:
            look = msgspec.structs.replace(look, token=ablation.token)
            found = await self._find(request, look)
            if isinstance(found, Response):
                return found
            try:
                checkpoints = await anyio.to_thread.run_sync(self._checkpoints)
                order = order_of(ablation, found.completion, checkpoints)
                trouble = await anyio.to_thread.run_sync(self._gate.start, order)
            except AblationError as error:
                trouble = str(error)
        if trouble is None:
            return self._gate.go_on("../sweeps#making")
        return await self._answer(request, look, trouble=trouble)

    async def _find(self, request: Request, look: Look) -> SeenCompletion | Response:
        named = _NAME.fullmatch(request.path_params["name"])
        if named is None:
            return _unknown(request)
        step, completion = map(int, named.groups())
        evaluated = look.pass_ == "eval"
        try:
            found = await anyio.to_thread.run_sync(
                lambda: self._shelf.completion(step, completion, evaluated=evaluated)
            )
        except OSError as error:
            return _unreadable(error)
        return found or _unknown(request)

    async def _answer(
        self, request: Request, look: Look, *, trouble: str | None = None
    ) -> Response:
        found = await self._find(request, look)
        if isinstance(found, Response):
            return found
        page = await anyio.to_thread.run_sync(lambda: self._page(found, look, trouble))
        return drawing.answer(request, page, status_code=422 if trouble else 200)

    def _page(self, found: SeenCompletion, look: Look, trouble: str | None) -> Page:
        completion = found.completion
        closed = self._gate.closed()
        checkpoints = self._checkpoints()
        testable = self._testable(completion, checkpoints) if closed is None else frozenset()
        spell = self._spell()
        texts = _tokens(completion, spell)
        view = Microscope(texts, found.records, look, testable=testable).view()
        return Page.of(
            "completion.html",
            **self._heading(root="../"),
            completion=listed(completion, spell),
            step=completion.step,
            facts=_facts(completion),
            group=[listed(one, spell, chosen=one is completion) for one in found.group],
            prompt=_prompt(completion, spell),
            text=_whole_text(completion),
            view=view,
            checkpoints=checkpoints,
            notes=_notes(found, view),
            refusals=_refusals(completion, view, closed, checkpoints, testable),
            can_test=bool(testable & set(view.layers)),
            trouble=trouble,
            style=STYLE,
        )

    def _testable(self, completion: Completion, checkpoints: Sequence[str]) -> frozenset[int]:
        """Return the layers whose latents can be tested, by what was recorded."""
        if completion.prompt_ids is None or completion.token_ids is None or not checkpoints:
            return frozenset()
        for read in (partial(self._run.read_metadata, checkpoints[0]), self._run.read_manifest):
            try:
                if layers := layers_with_sae(read()):
                    return layers
            except (OSError, msgspec.DecodeError, UnicodeDecodeError):
                continue
        return frozenset()

    def _spell(self) -> Spell:
        return self._texts.look() or numbers

    def _checkpoints(self) -> list[str]:
        try:
            return [checkpoint.name for checkpoint in reversed(self._run.checkpoints())]
        except OSError:
            return []

    def _heading(self, *, root: str) -> dict[str, str]:
        path = shown(str(self._run.root))
        return {"root": root, "name": shown(self._run.root.name) or path, "path": path}


def _facts(completion: Completion) -> tuple[tuple[str, str], ...]:
    rewards = completion.rewards.items() if len(completion.rewards) > 1 else ()
    return (
        ("Reward", number(completion.reward)),
        *((f"of {shown_token(name)}", number(value)) for name, value in rewards),
        ("Advantage", number(completion.advantage)),
        ("Tokens", f"{completion.length:,}"),
        ("Ended", "by itself" if completion.terminated else "at the limit"),
        ("Step", f"{completion.step:,}"),
        ("Group", f"{completion.group:,}"),
    )


def _tokens(completion: Completion, spell: Spell) -> list[str]:
    if completion.token_ids is None:
        return [f"#{at}" for at in range(completion.length)]
    return spell(completion.token_ids)


def _prompt(completion: Completion, spell: Spell) -> dict[str, Any] | None:
    if completion.prompt_ids is None:
        return None
    ids = completion.prompt_ids[-_MOST_PROMPT:]
    tokens = [shown_token(text) for text in spell(ids)]
    return {"tokens": tokens, "left_out": len(completion.prompt_ids) - len(ids)}


def _whole_text(completion: Completion) -> str | None:
    """Return the text, where there are no tokens to read it from."""
    if completion.token_ids is not None or completion.text is None:
        return None
    lines = (shown_token(line) for line in completion.text[:_LONGEST_TEXT].split("\n"))
    return "\n".join(lines)


def _notes(found: SeenCompletion, view: View) -> list[str]:
    notes = []
    completion = found.completion
    if completion.token_ids is None:
        notes.append(f"Tokens are shown by their numbers. {NO_IDS}")
    if completion.token_ids is None and completion.text is None:
        notes.append(_NO_TEXT)
    if found.is_cut:
        notes.append("Not all SAE records of this completion were read, for there are too many.")
    elif not view.layers:
        notes.append("There are no SAE records of this completion in this step.")
    return notes


def _refusals(
    completion: Completion,
    view: View,
    closed: str | None,
    checkpoints: Sequence[str],
    testable: frozenset[int],
) -> list[str]:
    """Return why latents cannot be tested, all of them or those of some layers."""
    if closed is not None:
        return [f"Latents cannot be tested from here. {closed}"]
    if completion.token_ids is None or completion.prompt_ids is None:
        return [f"Latents cannot be tested here. {NO_IDS}"]
    if not checkpoints:
        return ["Latents cannot be tested yet: the run has no checkpoint."]
    return [
        f"Latents of layer {layer} cannot be tested from here: the run does not say where "
        f"their SAE lies. Use: aegir sweep --latent {layer}:INDEX --sae PATH"
        for layer in view.layers
        if layer not in testable
    ]


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _unknown(request: Request) -> Response:
    error = f"There is no completion `{request.path_params['name']}` in this run."
    return JSONResponse({"error": error}, status_code=404, headers=NEVER_STORED)


def _unreadable(error: OSError) -> Response:
    message = f"The completions cannot be read: {error.strerror or error}"
    return JSONResponse({"error": message}, status_code=503, headers=NEVER_STORED)
