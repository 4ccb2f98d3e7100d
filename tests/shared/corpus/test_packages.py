import pytest

from shared.corpus.packages import docstrings, prose, source
from shared.errors import UserError


def test_docstrings_are_cleaned_and_in_the_same_order_every_time():
    found = list(docstrings("click"))
    assert found == list(docstrings("click"))
    assert len(found) > 100
    assert all(len(item.text) >= 60 and item.label == "text" for item in found)
    assert all(not item.text.startswith((" ", "\n")) for item in found)


def test_prose_has_no_metadata_headers():
    texts = [item.text for item in prose("click")]
    assert texts
    assert not any(text.startswith("Metadata-Version") for text in texts)


def test_source_is_code():
    modules = list(source("click"))
    assert any(item.origin == "click/click/core.py" for item in modules)
    assert {item.label for item in modules} == {"code"}


def test_a_missing_package_is_named():
    with pytest.raises(UserError, match="'no-such-package': install with"):
        list(docstrings("no-such-package"))
