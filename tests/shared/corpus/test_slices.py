import base64
import re
import unicodedata
from itertools import islice

import pytest

from shared.corpus.documents import LABELS
from shared.corpus.slices import LOCALES, WRITERS, documents

TEXTS = ["Plain English text, long enough to be encoded. " * 30]
SCRIPTS = {
    "arabic": "ARABIC",
    "hebrew": "HEBREW",
    "russian": "CYRILLIC",
    "greek": "GREEK",
    "thai": "THAI",
    "bengali": "BENGALI",
    "armenian": "ARMENIAN",
}


def some(label, count=5, seed=0):
    return [item.text for item in islice(documents(label, seed, TEXTS), count)]


def test_every_slice_has_a_label():
    assert set(WRITERS) <= set(LABELS)
    assert len(LABELS) == len(set(LABELS))


@pytest.mark.parametrize("label", WRITERS)
def test_the_seed_decides(label):
    assert some(label) == some(label)
    assert some(label) != some(label, seed=1)


@pytest.mark.parametrize("label", SCRIPTS)
def test_a_script_is_written_in_its_letters(label):
    assert label in LOCALES
    letters = [character for character in "".join(some(label)) if character.isalpha()]
    own = [item for item in letters if SCRIPTS[label] in unicodedata.name(item)]
    assert len(own) / len(letters) > 0.95


def test_base64_of_text_decodes_to_the_text():
    for text in some("base64_ascii"):
        assert base64.b64decode(text).decode("ascii") in TEXTS[0]


def test_dna_hex_and_base64_keep_to_their_alphabets():
    assert all(re.fullmatch("[ACGT\n]+", text) for text in some("dna"))
    assert all(re.fullmatch("[0-9a-f\n]+|[0-9A-F\n]+", text) for text in some("hex"))
    assert all(base64.b64decode(text) for text in some("base64"))
