"""Token ids of CLIP's byte-pair encoding; the expected ones are open_clip 3.3.0's (with ftfy 6.3.1)."""

import numpy as np
import pytest

from svdjax.errors import UserError
from svdjax.models.tokenizer import END, START, _vocabulary, encode, tokenize

REFERENCE = [
    ("", []),
    ("  \t\n ", []),
    ("a photograph of an astronaut riding a horse", [320, 8853, 539, 550, 18376, 6765, 320, 4558]),
    ("A Dog, RUNNING; 3 times!!", [320, 1929, 267, 2761, 282, 274, 1661, 748]),
    ("\u201cCurly\u201d \u2018quotes\u2019 \u2014 it\u2019s", [257, 20795, 257, 262, 5808, 262, 2005, 585, 568]),
    (
        "it's we'll I'd they've don't I'm you're '90s",
        [585, 568, 649, 1342, 328, 1896, 889, 1200, 847, 713, 328, 880, 592, 982, 262, 280, 271, 338],
    ),
    ("!!!'s", [11194, 262, 338]),
    ("a&amp;amp;b &lt;b&gt; &quot;x&quot;", [320, 261, 321, 283, 321, 285, 257, 343, 257]),
    (
        "\ufb01ne \ufb02ow \uff21\uff22\uff23\uff11\uff12\uff13\u3000\uff58 \u0149 \ufb05",
        [3797, 5608, 5334, 272, 273, 274, 343, 262, 333, 129, 123, 339],
    ),
    (
        "x\xb2 \xbd \u2167 \u4e00\u4e8c\u4e09 \u65e5\u672c\u8a9e",
        [343, 41175, 33613, 158, 227, 371, 19759, 222, 21078, 234, 19759, 487, 39121, 44353, 34002, 508],
    ),
    ("emoji \U0001f642\U0001f44d\U0001f3fd e\u0301", [16327, 32006, 43722, 4166]),
    ("<start_of_text> hi <end_of_text>", [49406, 1883, 49407]),
    ("na\xefve\u2014caf\xe9\u2026", [1097, 35689, 563, 2005, 15304, 959]),
    ("\xa0nbsp\u200bzero\ufeff\x07", [6459, 4393, 9844, 5848]),
    ("\u017f'\u017f \u0130stanbul", [129, 379, 6, 129, 379, 328, 16384, 11231]),
    ("a_b_c 3.14 10,000", [320, 318, 321, 318, 322, 274, 269, 272, 275, 272, 271, 267, 271, 271, 271]),
    (
        "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
        [12986, 10948, 25722, 16378, 22625, 16378, 12973, 18843, 12973, 29945],
    ),
    (
        "antidisestablishmentarianism xkqzjwv aaaaaaaaa",
        [3120, 4262, 7726, 12658, 1585, 44351, 87, 74, 80, 89, 73, 14743, 23126, 320],
    ),
]


@pytest.mark.parametrize(("prompt", "ids"), REFERENCE, ids=lambda x: repr(x) if isinstance(x, str) else "")
def test_words_are_encoded_as_open_clip_does(prompt, ids):
    assert encode(prompt) == ids


def test_vocabulary_has_a_distinct_id_for_every_symbol():
    ids, ranks = _vocabulary()
    assert len(ranks) == 48_894
    assert sorted(ids.values()) == list(range(49_406))
    assert (START, END) == (49_406, 49_407)


def test_rows_are_framed_and_padded_with_zero():
    rows = tokenize(["", "a dog"])
    assert rows.shape == (2, 77) and rows.dtype == np.int32
    assert rows[0].tolist() == [START, END] + [0] * 75
    assert rows[1, :4].tolist() == [START, 320, 1929, END] and not rows[1, 4:].any()


def test_a_long_prompt_is_cut_before_the_end_token():
    (row,) = tokenize(["dog " * 200])
    assert row.tolist() == [START] + [1929] * 75 + [END]
    (exact,) = tokenize(["dog " * 75])
    assert exact.tolist() == row.tolist()
    (short,) = tokenize(["dog " * 74])
    assert short.tolist() == [START] + [1929] * 74 + [END, 0]


def test_other_context_lengths():
    assert tokenize(["a dog runs"], context_length=4).tolist() == [[START, 320, 1929, END]]
    assert tokenize([], context_length=8).shape == (0, 8)
    with pytest.raises(UserError, match="context_length is 1"):
        tokenize(["a dog"], context_length=1)


def test_a_bare_string_is_refused():
    with pytest.raises(UserError, match=r"write \[prompt\]"):
        tokenize("a dog")
