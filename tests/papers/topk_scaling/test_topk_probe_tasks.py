import re

import numpy as np
import pytest

from papers.topk_scaling.probe_tasks import (
    EARLY,
    NEXT,
    PREVIOUS,
    TASKS,
    TOKEN_CLASSES,
    Text,
    labels,
    measured,
    since,
    usable,
)
from shared.corpus.documents import LABELS
from shared.corpus.shards import Contexts

LENGTH = 12


def text(*rows, kinds=None, documents=None):
    """Contexts that spell some pieces each; END_OF_TEXT comes first, and is "" elsewhere."""
    rows = [["", *row, *["."] * (LENGTH - 1 - len(row))] for row in rows]
    table = sorted({piece for row in rows for piece in row})
    tokens = np.array([[table.index(piece) for piece in row] for row in rows], dtype=np.uint16)
    kinds = np.zeros(len(rows)) if kinds is None else np.array([LABELS.index(k) for k in kinds])
    numbers = np.zeros(tokens.shape) if documents is None else np.array(documents)
    numbers = np.where(tokens == table.index(""), -1, numbers).astype(np.int32)
    label = np.broadcast_to(kinds[:, None], tokens.shape).astype(np.uint8)
    return Text([piece.encode() for piece in table], Contexts(tokens, label, numbers))


def true(name, *rows, **options):
    """The places, from 1 on, at which a task is true in the first row."""
    return np.flatnonzero(TASKS[name](text(*rows, **options))[0]).tolist()


def test_there_are_many_tasks_and_each_has_a_group():
    assert len(TASKS) >= 20
    groups = {name.split(": ")[0] for name in TASKS}
    assert groups == {"kind", "token", "next", "previous", "position", "context"}
    assert {f"kind: {kind}" for kind in LABELS} <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_pure_function_of_the_text(name):
    made = text(["def", " f", "(", "x", "_y", ")", "\n", "  ", "#", " 12"])
    before = made.contexts.tokens.copy()
    first, second = TASKS[name](made), TASKS[name](made)
    assert first.shape == (1, LENGTH)
    assert first.dtype == bool
    assert (first == second).all()
    assert (made.contexts.tokens == before).all()


EXAMPLES = {
    "digits": ("7", " 2024", "3a"),
    "punctuation": ("]]:", " ==", "a."),
    "opening bracket": ("foo(", " [", "()"),
    "closing bracket": (")", "],", "("),
    "quotation mark": ('"', " '", "a"),
    "comma": (",", " ,", ", a"),
    "end of sentence": (".", "?", ".."),
    "equals sign": ("=", " ==", "a"),
    "line break": ("\n", ":\n   ", "n"),
    "only spaces": (" ", "\t  ", " \n"),
    "word after space": (" the", " A", "the"),
    "piece without space": ("the", "A", " the"),
    "capitalised": (" The", "The", "THE"),
    "upper case": ("ID", " HTTP", "I"),
    "one letter": ("x", " I", "ab"),
    "long word": ("transform", " Returns", " return"),
    "with underscore": ("_", "a_b", "a-b"),
    "ends in s": ("cats", " this", "is"),
    "ends in ed or ing": ("used", " using", "use"),
    "function word": ("the", " of", "often"),
    "Python keyword": ("def", " None", "none"),
    "not ASCII": ("é", " Я", "e"),
}


@pytest.mark.parametrize("name", TOKEN_CLASSES)
def test_token_classes(name):
    *inside, outside = EXAMPLES[name]
    pattern = re.compile(TOKEN_CLASSES[name], re.DOTALL)
    for piece in inside:
        assert pattern.fullmatch(piece.encode()), piece
    assert not pattern.fullmatch(outside.encode())
    assert not pattern.fullmatch(b"")


def test_part_of_a_character_is_not_ascii():
    made = Text([b"", b"\xd0"], Contexts(*(np.array([[0, 1, 0]], t) for t in ("u2", "u1", "i4"))))
    assert TASKS["token: not ASCII"](made).tolist() == [[False, True, False]]


@pytest.mark.parametrize("name", NEXT)
def test_the_next_token_is_looked_at(name):
    row = ["7", " a", ")", "The", "\n", " word", "-"]
    here = TASKS[f"token: {name}"](text(row))[0]
    assert (TASKS[f"next: {name}"](text(row))[0, :-1] == here[1:]).all()


@pytest.mark.parametrize("name", PREVIOUS)
def test_the_previous_token_is_looked_at(name):
    row = ["(", "a_b", "\n", "_", " ["]
    here = TASKS[f"token: {name}"](text(row))[0]
    found = TASKS[f"previous: {name}"](text(row))[0]
    assert (found[1:] == here[:-1]).all()
    assert not found[0]


def test_kinds_are_those_of_the_documents():
    made = text(["a", "b"], ["", "c"], kinds=["hex", "base64_ascii"])
    assert TASKS["kind: hex"](made).tolist() == [[False] + [True] * 11, [False] * 12]
    assert not TASKS["kind: base64"](made).any()
    assert TASKS["kind: any base64"](made)[1].tolist() == [False, False] + [True] * 10
    assert TASKS["kind: any encoding"](made)[:, 2].all()
    assert not TASKS["kind: any script"](made).any()


def test_scripts_are_together():
    made = text(["a"], ["a"], kinds=["arabic", "armenian"])
    assert TASKS["kind: any script"](made)[:, 1].all()


def test_positions_are_shares_of_the_context():
    assert true("position: first eighth", ["a"]) == [0, 1]
    assert true("position: second half", ["a"]) == list(range(6, 12))


def test_a_young_document_begins_within_the_context():
    assert true("position: young document", ["a", "", "b"]) == list(range(2, 2 + EARLY + 1))
    assert true("position: young document", ["a", "b"]) == []


def test_repeated_tokens_have_come_before():
    row = ["a", "b", "a", "c", "b", "a", "d", "e", "f", "g", "h"]
    assert true("context: repeated token", row) == [3, 5, 6]


def test_brackets_close():
    row = ["f", "(", "x", "(", ")", "y", ")", "z", "w", "v", "u"]
    assert true("context: in brackets", row) == [2, 3, 4, 5, 6]


def test_a_bracket_that_the_context_did_not_open_does_not_count():
    row = [")", ")", "(", "x", ")", "y", "z", "w", "v", "u", "t"]
    assert true("context: in brackets", row) == [3, 4]


def test_comments_end_with_their_line():
    row = ["a", "#", " b", "\n", "c", " #!", "d", "\n#", "e", "f", "g"]
    assert true("context: after # on the line", row) == [2, 3, 6, 7]


def test_since_counts_tokens():
    marks = np.array([[False, True, False, False, True]])
    assert since(marks)[0, 1:].tolist() == [0, 1, 2, 0]
    assert since(marks)[0, 0] >= 5


def test_the_first_and_the_last_position_are_not_measured():
    assert measured(np.arange(8).reshape(2, 4)).tolist() == [1, 2, 5, 6]


def test_labels_have_a_column_for_every_task():
    found = labels(text(["7", "a"], ["b", "7"]))
    assert found.names == tuple(TASKS)
    assert found.y.shape == (2 * (LENGTH - 2), len(TASKS))
    assert found.y[:, found.names.index("token: digits")].sum() == 2


def test_rare_and_frequent_tasks_are_left_out():
    y = np.arange(10)[:, None] < np.array([0, 2, 3, 7, 8, 10])
    assert usable(y, 3).tolist() == [False, False, True, True, False, False]


def test_text_without_planted_kinds_leaves_only_tasks_of_tokens():
    words = ["The", " cats", " (", "7", ")", ",", " sat", "\n", "x_y", "."]
    found = labels(text(*[words[at:] + words[:at] for at in range(10)]))
    used = {n for n, some in zip(found.names, usable(found.y, 3), strict=True) if some}
    assert not {name for name in used if name.startswith("kind: ") and name != "kind: text"}
    assert {"token: comma", "next: digits", "context: in brackets"} <= used
