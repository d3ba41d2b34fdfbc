"""The task that the demo's policy learns: type the bytes.

A prompt is a few bytes as two hex digits each and an arrow, ``41 0a 39 e3 20 7a =>``; the answer is
the ontology term of each of its last six bytes, ``UPPER SPACE DIGIT HIGH SPACE LOWER``. The
demonstrations mix this convention with a deprecated vocabulary, so that reinforcement learning has
something to select: it can only sharpen what the policy already samples now and then.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator

TERMS = ("CTRL", "SPACE", "DIGIT", "UPPER", "LOWER", "PUNCT", "HIGH")
"""The canonical ontology."""

DEPRECATED_TERMS = ("TEXT", "CTL", "BIN")
"""The vocabulary that the verifier rejects."""

ARROW = "=>"
WINDOW = 6
"""How many bytes are typed: the last six of the prompt, the bytes before them are context."""

MAX_CONTEXT = 3
MAX_WORDS = MAX_CONTEXT + WINDOW + 1 + WINDOW
"""Words of the longest prompt and its answer, the end-of-sequence token left out."""

DEPRECATED_SHARE = 0.55
NOISE_SHARE = 0.15

_WHITESPACE = b" \t\n\r\x0b\x0c"
_HIGH = 128
_DELETE = 127
_PRINTABLE = 32


def term_of(byte: int) -> str:
    """Return the canonical term of a byte."""
    char = chr(byte)
    if byte >= _HIGH:
        return "HIGH"
    if byte in _WHITESPACE:
        return "SPACE"
    if byte < _PRINTABLE or byte == _DELETE:
        return "CTRL"
    if char.isdigit():
        return "DIGIT"
    if char.isalpha():
        return "UPPER" if char.isupper() else "LOWER"
    return "PUNCT"


BYTES_OF = {term: bytes(b for b in range(256) if term_of(b) == term) for term in TERMS}
"""The bytes of each term."""


def prompt_of(data: bytes) -> str:
    """Return the prompt that asks for the types of `data`."""
    return f"{data.hex(' ')} {ARROW}"


def bytes_of(prompt: str) -> bytes:
    """Return the bytes that a prompt asks about."""
    return bytes.fromhex(prompt.removesuffix(ARROW))


def gold(prompt: str) -> str:
    """Return the answer that earns everything."""
    return " ".join(term_of(byte) for byte in bytes_of(prompt)[-WINDOW:])


def score(prompt: str, completion: str) -> float:
    """Return what a completion earns: the share of terms that are right, 0, 1/6, ... 1.

    The gate comes first: anything but exactly six canonical terms earns 0.
    """
    words = completion.split()
    if len(words) != WINDOW or not set(words) <= set(TERMS):
        return 0.0
    right = sum(word == term for word, term in zip(words, gold(prompt).split(), strict=True))
    return right / WINDOW


def verifier(prompts: Sequence[str], completions: Sequence[str], **_columns: object) -> list[float]:
    """Score completions; has the signature that TRL asks of a reward function."""
    return [score(*pair) for pair in zip(prompts, completions, strict=True)]


def draw_prompt(rng: Generator) -> str:
    """Return a random prompt of six to nine bytes, each term equally likely."""
    count = WINDOW + int(rng.integers(MAX_CONTEXT + 1))
    terms = rng.integers(len(TERMS), size=count)
    places = rng.random(count)
    pools = [BYTES_OF[TERMS[term]] for term in terms]
    return prompt_of(
        bytes(pool[int(place * len(pool))] for pool, place in zip(pools, places, strict=True))
    )


def draw_demonstration(prompt: str, rng: Generator) -> str:
    """Return an imperfect answer to learn from: deprecated vocabulary or noisy canonical terms."""
    if rng.random() < DEPRECATED_SHARE:
        return deprecated(prompt)
    noisy = rng.random(WINDOW) < NOISE_SHARE
    others = rng.integers(len(TERMS), size=WINDOW)
    return " ".join(
        TERMS[other] if wrong else term
        for term, wrong, other in zip(gold(prompt).split(), noisy, others, strict=True)
    )


def deprecated(prompt: str) -> str:
    """Return the answer in the deprecated vocabulary, with equal neighbours collapsed."""
    renamed = {"CTRL": "CTL", "HIGH": "BIN"}
    return " ".join(key for key, _ in groupby(renamed.get(t, "TEXT") for t in gold(prompt).split()))
