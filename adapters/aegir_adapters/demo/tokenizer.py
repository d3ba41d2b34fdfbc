"""The demo's tokenizer: one word, one token, built from the task's own words."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from aegir_adapters.demo.task import ARROW, DEPRECATED_TERMS, TERMS

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"


def vocabulary() -> dict[str, int]:
    """Return the token id of every word; special tokens first."""
    hex_bytes = [f"{byte:02x}" for byte in range(256)]
    words = [PAD, BOS, EOS, UNKNOWN, ARROW, *hex_bytes, *TERMS, *DEPRECATED_TERMS]
    return {word: token_id for token_id, word in enumerate(words)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a left-padding tokenizer that adds no special tokens by itself."""
    words = Tokenizer(WordLevel(vocabulary(), unk_token=UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
    )
