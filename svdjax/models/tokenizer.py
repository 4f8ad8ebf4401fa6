"""CLIP's byte-pair encoding: prompts become the token ids that the text tower was trained on.

The rules are those of open_clip's tokenizer, written without its dependencies. Rows are padded with 0 after
the end token, as open_clip and the diffusers folder of SD 2.1 do (there 0 is called "!").
"""

import gzip
import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import resources
from itertools import pairwise

import numpy as np

from svdjax.errors import UserError
from svdjax.typing import Int, ndarray

START, END, PAD = 49406, 49407, 0
_SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}
_FIXED_WORD = re.compile("|".join([*_SPECIAL, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]), re.IGNORECASE)
_KIND_RUN = re.compile(r"L+|N|o+| ")  # over the string of kinds: letters, one digit, other signs, a space
# What ftfy, which open_clip cleans with, does to well-encoded text: compatibility forms are spelled out,
# quotes made straight, control signs dropped.
_COMPATIBLE = "ĲĳǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬆ" + "".join(map(chr, range(0xFF01, 0xFFF0)))
_CONTROLS = [
    *range(0x09),
    0x0B,
    *range(0x0E, 0x20),
    0x7F,
    *range(0x206A, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFD),
]
_CLEANED = str.maketrans(
    {sign: unicodedata.normalize("NFKC", sign) for sign in _COMPATIBLE}
    | {"ŉ": "'n", "\ufb05": "\u017ft"}
    | dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
    | dict.fromkeys(_CONTROLS)
)


def tokenize(prompts: Sequence[str], *, context_length: int = 77) -> Int[ndarray, "b s"]:
    """Encode prompts for the text tower.

    Args:
        prompts: any text; HTML entities, typographic quotes, ligatures, full-width letters, upper case and
            runs of white space are normalised first. Text in a wrong encoding is not repaired.
        context_length: length of every row; a longer prompt is cut, keeping the end token.

    Returns:
        int32 ids: start token, words, end token, zeros.

    Raises:
        UserError: ``prompts`` is a single string, or a row could not hold the two end tokens.
    """
    if isinstance(prompts, str):
        raise UserError("tokenize takes a list of prompts: write [prompt] for one")
    if context_length < 2:
        raise UserError(f"context_length is {context_length}: at least 2 tokens are needed, start and end")
    ids = np.full((len(prompts), context_length), PAD, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        tokens = [START, *encode(prompt)[: context_length - 2], END]
        row[: len(tokens)] = tokens
    return ids


def encode(prompt: str) -> list[int]:
    """The ids of a prompt's words, without start and end tokens and of any length."""
    return [token for word in _words(_clean(prompt)) for token in _encode_word(word)]


def _clean(prompt: str) -> str:
    # Twice, because captions scraped from the web are often escaped twice.
    prompt = html.unescape(html.unescape(prompt))
    return " ".join(unicodedata.normalize("NFC", prompt.translate(_CLEANED)).split()).lower()


def _kind(character: str) -> str:
    category = unicodedata.category(character)[0]
    return category if category in "LN" else " " if character.isspace() else "o"


def _words(text: str) -> Iterator[str]:
    """Split into English suffixes, runs of letters, single digits and runs of other signs."""
    kinds = "".join(map(_kind, text))
    position = 0
    while position < len(text):
        match = _FIXED_WORD.match(text, position) or _KIND_RUN.match(kinds, position)
        if kinds[position] != " ":
            yield text[position : match.end()]
        position = match.end()


@lru_cache(maxsize=65536)
def _encode_word(word: str) -> tuple[int, ...]:
    """Merge neighbouring symbols, the most frequent pair of the training text first (arXiv 1508.07909)."""
    if word in _SPECIAL:
        return (_SPECIAL[word],)
    ids, ranks = _vocabulary()
    letters = _byte_letters()
    symbols = [letters[byte] for byte in word.encode()]
    symbols[-1] += "</w>"
    while len(symbols) > 1:
        best = min(pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        symbols = _merged(symbols, best)
    return tuple(ids[symbol] for symbol in symbols)


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        # The left half must be a whole symbol of the input: a fresh merge is longer, so it cannot equal it.
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


@lru_cache(maxsize=1)
def _byte_letters() -> list[str]:
    """One printable letter per byte: itself, or the next free one from U+0100 if it is unprintable."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    free = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(free)) for byte in range(256)]


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Symbols to ids and pairs to ranks: 256 letters, the same at a word's end, then the merges."""
    packed = resources.files("svdjax").joinpath("assets/clip_bpe_merges.txt.gz").read_bytes()
    pairs = [tuple(line.split(" ")) for line in gzip.decompress(packed).decode().splitlines()]
    # The first letters are ordered with the printable bytes leading.
    letters = sorted(_byte_letters(), key=lambda letter: (ord(letter) > 255, letter))
    symbols = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in pairs)]
    return {symbol: i for i, symbol in enumerate(symbols)}, {pair: i for i, pair in enumerate(pairs)}
