import numpy as np

from papers.topk_scaling import contexts
from papers.topk_scaling.contexts import load_split
from shared.corpus.shards import pack, save_contexts, shortened


def test_a_split_is_read_from_the_corpus_of_the_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(contexts, "corpus_folder", lambda profile: tmp_path / profile)
    whole = pack([list(range(1, 19))], [0], length=10)
    save_contexts(tmp_path / "smoke" / "score.safetensors", whole, {})
    found = load_split(tmp_path / "anywhere" / "smoke", "score", 4)
    np.testing.assert_array_equal(found.tokens, shortened(whole, 4).tokens)
