import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papers.towards_monosemanticity.proxies import (
    ALPHABETS,
    BLOCKS,
    FLOOR,
    WITHOUT_HEX,
    Proxies,
    Text,
    best_spans,
    log_probability,
)
from shared.errors import UserError

EOT = 0
TABLE = [
    b"",  # 0
    "ا".encode(),  # 1: whole
    " ا".encode(),  # 2: whole, with the space of a word
    b"\xd8",  # 3: the first byte of Arabic letters
    b"\xa7",  # 4: the second byte of ا, or part of something else
    b"the",  # 5
    b" ",  # 6
    b"\xe6",  # 7: the first byte of a Chinese character
    b"\x96\x87",  # 8: its other two, 文
    b" \xd8",  # 9
    b"\xa7\xd8",  # 10: end of one letter, start of the next
]


def text(*contexts):
    return Text(TABLE, np.array([[EOT, *row] for row in contexts], dtype=np.uint16))


def brute_force(steps, shortest):
    """The greatest sum of a run of at least `shortest` that ends at each position."""
    return [
        max((sum(steps[s : e + 1]) for s in range(e + 2 - shortest)), default=-np.inf)
        for e in range(len(steps))
    ]


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12), st.integers(1, 3))
def test_the_best_span_is_that_of_brute_force(steps, shortest):
    found = best_spans(np.array([steps, steps]), shortest)
    assert found.tolist() == [brute_force(steps, shortest)] * 2


def test_characters_of_an_alphabet_are_equally_likely_and_others_next_to_impossible():
    found = log_probability(ALPHABETS["dna"], [b"ACG", b"AX", b"a", b""])
    expected = np.log([4.0**-3, FLOOR / 4, FLOOR, 1])
    np.testing.assert_allclose(found, expected)


def test_the_score_of_a_run_is_the_likelihood_ratio_of_its_best_span():
    table = [b"", b"A", b"CG", b"the", b"b"]
    reference = np.array([[0, 1, 2, 3, 3, 3, 3, 4]], dtype=np.uint16)
    proxies = Proxies(Text(table, reference))
    p = (np.array([1, 1, 1, 4, 1]) + 1) / 13  # one is added to every count
    a, cg = np.log(1 / 4 / p[1]), np.log(1 / 16 / p[2])
    scores = proxies.scores("dna", Text(table, np.array([[0, 1, 2, 3, 1]], dtype=np.uint16)))
    the = np.log(FLOOR**3 / p[3])
    np.testing.assert_allclose(scores, [[-np.inf, -np.inf, a + cg, the + max(cg, a + cg), a + the]])
    alone = proxies.token_scores("dna")
    np.testing.assert_allclose(alone[1:4], [a, cg, the])
    assert alone[0] == -np.inf


def test_spans_do_not_reach_across_the_end_of_a_text():
    table = [b"", b"A", b"the"]
    proxies = Proxies(Text(table, np.array([[0, 2, 2, 2, 2, 2, 2, 1]], dtype=np.uint16)))
    scores = proxies.scores("dna", Text(table, np.array([[0, 1, 1, 0, 1, 1]], dtype=np.uint16)))
    assert scores[0, 3] == scores[0, 4] == -np.inf
    assert scores[0, 2] == scores[0, 5] > 0


def test_hex_is_no_base64_where_it_is_excluded():
    table = [b"", b"e", b"Z", b"the"]
    reference = Text(table, np.array([[0, 3, 3, 3, 3, 3, 1, 2] * 30], dtype=np.uint16))
    proxies = Proxies(reference)
    read = Text(table, np.array([[0, 1, 1, 1, 1], [0, 2, 1, 2, 2]], dtype=np.uint16))
    base64, hexadecimal, strict = (
        proxies.scores(name, read) for name in ("base64", "hex", WITHOUT_HEX)
    )
    assert (hexadecimal[0, 1:] > base64[0, 1:]).all()
    assert (strict[0, 1:] < 0).all()
    assert strict[1, 4] == base64[1, 4]


def test_a_token_is_of_a_script_by_the_characters_that_its_bytes_are_part_of():
    member, whole = text([1, 2, 5, 3, 4], [9, 4, 6, 7, 8], [3, 10, 4, 4, 3]).in_script(
        BLOCKS["arabic"]
    )
    assert member[:, 1:].astype(int).tolist() == [
        [1, 1, 0, 1, 1],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # a stray byte, and a first byte with nothing behind it
    ]
    assert whole[:, 1:].astype(int).tolist() == [
        [1, 1, 0, 0, 1],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
    ]
    assert not member[:, 0].any()
    chinese, ends = text([7, 8, 7, 4, 1]).in_script(BLOCKS["chinese"])
    assert chinese.astype(int).tolist() == [[0, 1, 1, 0, 0, 0]]
    assert ends.astype(int).tolist() == [[0, 0, 1, 0, 0, 0]]


def test_characters_are_decoded_as_by_python():
    words = "aé ا文𝄞ж"
    table = [b"", *(bytes([byte]) for byte in sorted(set(words.encode())))]
    ids = [table.index(bytes([byte])) for byte in words.encode()]
    read = Text(table, np.array([[0, *ids]], dtype=np.uint16))
    for character in words.replace(" ", ""):
        block = ((ord(character), ord(character)),)
        assert read.in_script(block)[0].sum() == len(character.encode())
        assert read.in_script(block)[1].sum() == 1


def test_scripts_are_scored_by_bayes():
    # Ten tokens: of two second bytes one is Arabic; ا with and without a space once each.
    reference = text([1, 2, 3, 4, 4, 5, 5, 5, 5])
    proxies = Proxies(reference)
    alone = proxies.token_scores("arabic")
    given = np.array([0, 1, 1, 1, 0.5, FLOOR, FLOOR])
    overall = (1 + 1 + 1 + 2 * 0.5) / 10
    np.testing.assert_allclose(alone[1:7], np.log(given[1:] / overall))
    scores = proxies.scores("arabic", text([3, 4, 5, 4, 1]))
    # \xa7 completes a letter once: P(context|s) = 1; once it stands alone: 1/2.
    np.testing.assert_allclose(scores[0, 1:], np.log(np.array([1, 1, FLOOR, 0.5, 1]) / overall))


def test_a_character_is_certain_even_where_each_of_its_tokens_is_not():
    proxies = Proxies(text([3, 4, 4, 3, 5, 7, 8, 5]))  # half of both bytes are of an ا
    overall = (2 * 0.5 + 2 * 0.5) / 9
    scores = proxies.scores("arabic", text([3, 4]))
    np.testing.assert_allclose(scores[0, 1:], np.log([0.5 / overall, 1 / overall]))
    assert (proxies.scores("thai", text([3, 4]))[0, 1:] <= 0).all()  # occurs nowhere


def test_an_unknown_context_is_refused():
    proxies = Proxies(text([1]))
    with pytest.raises(UserError, match=r"klingon.*arabic"):
        proxies.token_scores("klingon")
    with pytest.raises(UserError, match="klingon"):
        proxies.scores("klingon", text([1]))
