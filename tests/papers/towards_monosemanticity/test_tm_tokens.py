import numpy as np
import pytest

from papers.towards_monosemanticity.tokens import (
    CASES,
    CLASSES,
    case_pattern,
    case_patterns,
    pretty,
    token_class,
    token_classes,
    unigram_counts,
)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" the", "␣the"),
        (b"\n\n   ", "↵↵␣␣␣"),
        ("ع".encode(), "ع"),
        (b"\xd8", "\\xd8"),
        (b" \xd8\xb9\xd9", "␣ع\\xd9"),
        (b"\x00\x7f", "\\x00\\x7f"),
        ("\u2003".encode(), "\\x2003"),
        (b"", "<end of text>"),
    ],
)
def test_tokens_are_shown_as_one_visible_line(token, shown):
    assert pretty(token) == shown
    assert pretty(token).isprintable()


@pytest.mark.parametrize(
    ("token", "drawn"),
    [
        (b" the", "␣the"),
        (b"\n", "↵"),
        (b"\n        ", "↵␣×8"),
        ("ش".encode(), "ش"),
        (b"\xd8", r"\xd8"),
        ("中".encode(), r"\xe4\xb8\xad"),
        (b"", "<end of text>"),
    ],
)
def test_tokens_are_drawn_in_the_typeface_or_as_bytes(token, drawn):
    assert pretty(token, drawable=True) == drawn


@pytest.mark.parametrize(
    ("token", "kind", "case"),
    [
        (b" The", "word_start", "capitalised"),
        (b"ing", "word_continuation", "lower"),
        (b"'s", "word_continuation", "lower"),
        (b"\n    return", "word_start", "lower"),
        (b"HTTP", "word_continuation", "upper"),
        (b"A", "word_continuation", "capitalised"),
        (b"camelCase", "word_continuation", "mixed"),
        (b" 12", "digits", "none"),
        (b" ==", "punctuation", "none"),
        (b"  \n", "whitespace", "none"),
        (b"\xd8", "byte_fragment", "none"),
        (" על".encode(), "word_start", "none"),
        (b"", "end_of_text", "none"),
    ],
)
def test_every_token_has_a_class_and_a_case(token, kind, case):
    assert token_class(token) == kind
    assert case_pattern(token) == case


def test_a_vocabulary_is_classified_at_once():
    table = [b"", b" a", b"\xd8", b"AB"]
    assert [CLASSES[k] for k in token_classes(table)] == list(map(token_class, table))
    assert [CASES[k] for k in case_patterns(table)] == list(map(case_pattern, table))


def test_counts_include_tokens_that_do_not_occur():
    counts = unigram_counts(np.array([[1, 3], [3, 3]], dtype=np.uint16), 5)
    assert counts.tolist() == [0, 1, 0, 3, 0]
