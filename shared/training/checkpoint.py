"""The state of an unfinished run in one file, complete or not there at all."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.errors import UserError
from shared.experiment import Config
from shared.files import atomic


class Checkpoint(Config):
    """Where the state of a run is kept, and how often it is written."""

    path: Path
    every_seconds: float = Field(default=120.0, ge=0)
    every_steps: int | None = Field(default=None, ge=1)
    """Count steps instead of seconds."""


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        digest = zlib.crc32(name.encode(), digest)
        digest = zlib.crc32(tensors[name].contiguous().numpy().reshape(-1).data, digest)
    return f"{digest:08x}"


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], config_hash: str
) -> None:
    """Write a checkpoint atomically; `config_hash` says what run it belongs to."""
    stored = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    everything = {**metadata, "config": config_hash}
    everything["checksum"] = _checksum(stored, everything)
    with atomic(path) as temporary:
        save_file(stored, temporary, metadata=everything)


def load_checkpoint(path: Path, config_hash: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a checkpoint of the run with this hash.

    Raises:
        UserError: the file is damaged or belongs to another run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): delete it to start anew") from error
    if metadata.pop("checksum", None) != _checksum(tensors, metadata):
        raise UserError(f"{path} is damaged (its checksum is wrong): delete it to start anew")
    if metadata.pop("config", None) != config_hash:
        raise UserError(
            f"{path} is of a run with other parameters: delete or rename it to start anew"
        )
    return tensors, metadata
