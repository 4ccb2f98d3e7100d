from shared.corpus.documents import Document
from shared.corpus.near_duplicates import remove_near_duplicates, shingles

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "runs",
    "into",
    "a",
    "deep",
    "dark",
    "wood",
]


def document(text):
    return Document(text, "text", "here")


def test_shingles_are_the_runs_of_words():
    assert shingles("a b c d e f", 5) == {b"a b c d e", b"b c d e f"}
    assert shingles("A b", 5) == {b"a b"}


def test_a_changed_word_is_a_near_duplicate_and_another_text_is_not():
    text = " ".join(f"{word}{number}" for number in range(20) for word in WORDS)
    template = text.replace("fox7", "wolf")
    other = " ".join(f"{word}{number}" for number in range(50, 70) for word in WORDS)
    kept = list(remove_near_duplicates(map(document, [text, template, other])))
    assert [item.text for item in kept] == [text, other]


def test_the_same_text_is_kept_once():
    assert len(list(remove_near_duplicates([document("one two three")] * 3))) == 1
