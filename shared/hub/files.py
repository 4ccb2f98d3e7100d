"""Files of the Hugging Face hub: whole, with the hash that the hub gives for them, or not at all.

huggingface_hub resumes a download that drops, and refuses one of another size. Of what comes over
plain HTTP it checks no hash, so that this is done here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class HubError(Exception):
    """Why something of the hub cannot be had: a clause for a message, such as "… is damaged"."""


@contextmanager
def reaching() -> Iterator[None]:
    """Raise HubError for what the hub's client raises in the block."""
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the one that it uses

    try:
        yield
    except (HFValidationError, RepositoryNotFoundError):
        raise HubError("the Hugging Face hub has no model of that name") from None
    except RemoteEntryNotFoundError as error:
        name = Path(error.response.url.path).name
        raise HubError(f"the Hugging Face hub has no {name} of it") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError):
        raise HubError("the Hugging Face hub cannot be reached") from None
    except OSError as error:  # the disk is full, or the size is another one
        raise HubError(f"the download failed ({str(error).splitlines()[0]})") from None


def fetch(repository: str, *patterns: str) -> Path:
    """Return the folder with those files of a model of the hub that match, of its newest commit.

    They are downloaded where the cache does not hold them.

    Raises:
        HubError: the hub or the model is out of reach, or a file is damaged, which is then removed,
            so that the next time it is downloaded again.
    """
    from huggingface_hub import snapshot_download

    with reaching():
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns)))
        for pattern in patterns:
            for path in folder.glob(pattern):
                _check(path)
    return folder


def _check(path: Path) -> None:
    """Hold a file of the cache against its hash, which is the name of what it links to."""
    if not path.is_symlink():
        return  # a folder, or a cache on a disk without links, which keeps no hash
    blob = path.parent / path.readlink()
    if not HASH.fullmatch(blob.name):
        return  # of a mirror that names files otherwise
    # Large files have a SHA-256 of 64 digits, others git's hash, which is over the size as well.
    git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
    sha = hashlib.sha256() if len(blob.name) == 64 else git
    with blob.open("rb") as file:
        hashlib.file_digest(file, lambda: sha)
    if sha.hexdigest() != blob.name:
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise HubError(f"{path.name} came damaged, and was removed")
