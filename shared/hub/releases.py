"""Autoencoders that others released, by their names in SAELens' list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.errors import UserError
from shared.hub.files import HubError, fetch, reaching

if TYPE_CHECKING:
    from sae_lens import SAE


def load_release(release: str, identifier: str, device: str = "cpu") -> SAE[Any]:
    """Load an autoencoder of the hub, from the cache or downloaded.

    Args:
        release: a name of SAELens' list, such as "gpt2-small-res-jb", or a repository of the hub.
        identifier: which of them, such as "blocks.8.hook_resid_pre".
        device: where it shall be.

    Raises:
        UserError: there is none of that name, it is damaged, or the hub cannot be reached.
    """
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name

    try:
        repository, folder = get_repo_id_and_folder_name(release, identifier)
        if "/" in repository:
            fetch(repository, folder, f"{folder}/*")  # so that SAELens reads what has been checked
        with reaching():
            return SAE.from_pretrained(release, identifier, device=device)
    except HubError as error:
        raise UserError(
            f"no autoencoder {release} {identifier} here, and {error}: go online, set HF_HOME to a "
            f"cache that holds it, or give a local folder"
        ) from None
    except (ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"SAELens has no {release} {identifier}: {reason}") from None
