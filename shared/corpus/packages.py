"""Documents from the text that installed packages bring along: docstrings, prose and source.

The lock pins the packages, so the same lock gives the same text on any machine, without a
download.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path

from shared.corpus.documents import Document
from shared.errors import UserError

PROSE = (".md", ".rst", ".txt", "METADATA")
# A regular expression finds in seconds what parsing every module finds in minutes; the few strings
# in triple quotes that document nothing do no harm.
_TRIPLE_QUOTED = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)


def _files(package: str) -> list[PackagePath]:
    """Return a package's files in alphabetical order. Raises UserError when it is missing."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise UserError(
            f"the corpus needs the package {package!r}: "
            "install with pip install -e '.[repro]' -c constraints.txt"
        ) from None
    # Files outside site-packages (scripts) depend on the machine.
    return sorted((file for file in files if ".." not in file.parts), key=str)


def _read(file: PackagePath) -> str:
    """Return a file's text, or nothing for a file that is not UTF-8 or not there."""
    try:
        return Path(file.locate()).read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):
        return ""


def docstrings(package: str, minimum: int = 60) -> Iterator[Document]:
    """Yield a package's docstrings of at least `minimum` characters, one document each."""
    for file in _files(package):
        if file.suffix != ".py":
            continue
        for match in _TRIPLE_QUOTED.finditer(_read(file)):
            text = inspect.cleandoc(match[1] or match[2] or "")
            if len(text) >= minimum:
                yield Document(text, "text", f"{package}/{file}")


def prose(package: str) -> Iterator[Document]:
    """Yield a package's readmes, notes and descriptions, without what metadata has before them."""
    for file in _files(package):
        if not str(file).endswith(PROSE):
            continue
        text = _read(file)
        if file.name == "METADATA":
            text = text.partition("\n\n")[2]
        if len(text) >= 200:
            yield Document(text, "text", f"{package}/{file}")


def source(package: str) -> Iterator[Document]:
    """Yield a package's Python modules, one document each."""
    for file in _files(package):
        if file.suffix == ".py":
            text = _read(file)
            if len(text) >= 200:
                yield Document(text, "code", f"{package}/{file}")
