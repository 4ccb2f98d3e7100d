"""Where Neuronpedia shows a feature."""

from __future__ import annotations

from shared.features.dictionary import Dictionary


def link(dictionary: Dictionary, feature: int) -> str | None:
    """Return the address of a feature's page on Neuronpedia, None for SAEs that are not there.

    SAELens' list of releases says which are.
    """
    release, _, identifier = dictionary.name.partition(":")
    if not identifier:
        return None
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    about = get_pretrained_saes_directory().get(release)
    place = about.neuronpedia_id.get(identifier) if about else None
    return f"https://www.neuronpedia.org/{place}/{feature}" if place else None
