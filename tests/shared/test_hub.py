"""What comes from the hub: our loading code, as it is, against a hub on this machine.

It runs in a process of its own, whose hub that is from the start, and which reaches nothing else.
"""

import itertools
import json
import multiprocessing
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import Fault, serve, settings
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from shared.corpus.build import SPLITS
from shared.corpus.shards import load_contexts
from shared.corpus.sources import HubText, tokenizer_of
from shared.corpus.tokenizer import save_tokenizer, train_tokenizer
from shared.errors import UserError
from shared.features import known
from shared.features.dictionary import open_dictionary
from shared.files import ROOT
from shared.hub.files import HubError, fetch
from shared.hub.releases import load_release
from shared.language_models.load import FILES, load
from shared.language_models.train import ModelConfig, create, save_model

STANDARD = ("gpt2-small-res-jb", "blocks.1.hook_resid_pre")
STANDARD_AT = "jbloom/GPT2-Small-SAEs-Reformatted/blocks.1.hook_resid_pre"
TOPK = ("gpt2-small-resid-post-v5-32k", "blocks.1.hook_resid_post")
TOPK_AT = "jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs/v5_32k_layer_1.pt"
WIDTH, LATENTS, K = 8, 20, 3
COMMIT = "2b7bfd980d5227806de62ac735f40712a4881273"
VIEWER = "datasets-server.127.0.0.1"
"""Where datasets looks for what is known of a dataset without a revision, and does without it."""
strangers = []
numbers = itertools.count()


def alone():
    """Let this process reach this machine only, note whom it asks for, and not wait to retry."""
    connect, lookup, sleep = socket.socket.connect, socket.getaddrinfo, time.sleep

    def known_host(host):
        if host not in ("127.0.0.1", "::1", "localhost"):
            strangers.append(host)
            raise socket.gaierror(f"{host} is not this machine")

    def connect_here(self, address):
        if self.family != socket.AF_UNIX:
            known_host(address[0])
        return connect(self, address)

    def look_up_here(host, *arguments, **options):
        known_host(host)
        return lookup(host, *arguments, **options)

    socket.socket.connect, socket.getaddrinfo = connect_here, look_up_here
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))


def weights_of(name):
    model = load(name)
    return {key: value.numpy() for key, value in model.network.state_dict().items()}


def vocabulary_of(name):
    return tokenizer_of(name).get_vocab()


def opened(name, x):
    """The features of some activations, and the decoder and densities of an autoencoder."""
    found = open_dictionary(name)
    return found.encode(x), found.directions, known.density(found), found.centred


def released(release, identifier, x):
    sae = load_release(release, identifier)
    return sae.encode(x).detach(), sae.W_dec.detach()


def texts_of(name, field="text", revision=None):
    return [one.text for one in HubText(name, field=field, revision=revision).documents()]


def command(*arguments):
    from shared.corpus.__main__ import app  # takes long to import, and is needed here alone

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def make_model(folder):
    """A tiny GPT-2 with a tokenizer. Made there, so that transformers is imported there alone."""
    settings = {"layers": 2, "d_model": WIDTH, "d_mlp": 24, "heads": 2, "activation": "gelu_new"}
    config = ModelConfig(**settings, tied=True, steps=1, seed=0)
    save_model(create(config, 300, 64).eval(), folder, {})
    save_tokenizer(train_tokenizer(["to be or not to be"], 300), folder / "tokenizer.json")


def fetched(name):
    return (fetch(name, "model.safetensors") / "model.safetensors").read_bytes()


def strangers_asked_for():
    return strangers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(folder):
    with serve(folder) as hub:
        yield hub


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def there(hub, cache):
    """Call a function in the process whose hub is this one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings(hub, cache).items():
            patch.setenv(name, value)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=alone) as process:
            yield lambda function, *arguments: process.submit(function, *arguments).result()


@pytest.fixture(scope="module", autouse=True)
def gpt2(there, folder):
    """A tiny model as "gpt2"."""
    there(make_model, folder / "gpt2")
    return folder / "gpt2"


@pytest.fixture
def model(folder, gpt2):
    """The tiny model under a name that no other test uses."""
    name = f"made/model-{next(numbers)}"
    shutil.copytree(gpt2, folder / name)
    return name


@pytest.fixture
def broken(hub):
    """Let a file go wrong until the test ends, or is told that all is well."""
    yield lambda path, kind, times=float("inf"): hub.faults.update({path: Fault(kind, times)})
    hub.faults.clear()


def write_sae(folder, **config):
    """A random autoencoder as SAELens released them before its version 6."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (WIDTH, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, WIDTH)}
    tensors = {
        name: torch.randn(shape, generator=generator)
        for name, shape in {**shapes, "b_dec": (WIDTH,)}.items()
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    about = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": "torch.float32", "device": "mps"}
    about |= {"model_name": "gpt2-small", "context_size": 64, **config}
    (folder / "cfg.json").write_text(json.dumps(about))
    return tensors


@pytest.fixture(scope="module")
def standard(folder):
    at = {"hook_point": "blocks.1.hook_resid_pre", "hook_point_layer": 1}
    tensors = write_sae(folder / STANDARD_AT, **at)
    tensors["sparsity"] = torch.linspace(-5, -1, LATENTS)
    save_file({"sparsity": tensors["sparsity"]}, folder / STANDARD_AT / "sparsity.safetensors")
    return tensors


@pytest.fixture(scope="module")
def topk(folder):
    at = {"hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "architecture": "standard"}
    function = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    return write_sae(folder / TOPK_AT, **at, **function, normalize_activations="layer_norm")


@pytest.fixture
def x():
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text(folder):
    """A dataset of two Parquet files under a name that no other test uses, and its texts."""
    name = f"made/text-{next(numbers)}"
    rows = [f"to be {number} or not to be" for number in range(400)]
    data = folder / "datasets" / name / "data"
    data.mkdir(parents=True)
    for part in range(2):
        table = pa.table({"text": rows[part::2]})
        pq.write_table(table, data / f"train-0000{part}-of-00002.parquet")
    return name, rows[::2] + rows[1::2]


def one_line(error):
    (line,) = str(error.value).splitlines()
    return line


def test_a_model_is_the_one_that_is_served_and_is_fetched_once(there, hub, folder, model):
    (folder / model / "pytorch_model.bin").write_bytes(b"a pickle")
    served = load_file(folder / model / "model.safetensors")
    found = there(weights_of, model)
    for name, tensor in served.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    asked = f"GET /large/{model}/model.safetensors"
    assert hub.asked.count(asked) == 1
    assert there(weights_of, model).keys() == found.keys()
    assert there(vocabulary_of, model) == tokenizer_of(str(folder / model)).get_vocab()
    assert hub.asked.count(asked) == 1
    assert not any("pytorch_model.bin" in one for one in hub.asked)


def test_a_model_that_changed_on_the_hub_is_fetched_again(there, folder, model):
    there(weights_of, model)
    path = folder / model / "model.safetensors"
    changed = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(changed, path)
    found = there(weights_of, model)
    np.testing.assert_array_equal(
        found["transformer.wpe.weight"], changed["transformer.wpe.weight"]
    )


def test_a_download_that_drops_is_resumed(there, hub, folder, broken):
    """From the last 10 MiB that came whole."""
    path = "made/large/model.safetensors"
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_bytes(np.random.default_rng(0).bytes(24 * 2**20))
    broken(path, "cut", 1)
    assert there(fetched, "made/large") == (folder / path).read_bytes()
    assert [one for one in hub.asked if one.startswith(f"GET /large/{path}")] == [
        f"GET /large/{path}",
        f"GET /large/{path} bytes={10 * 2**20}-",
    ]


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_a_file_that_drops_once_comes_whole(there, folder, model, broken, file):
    broken(f"{model}/{file}", "cut", 1)
    found = there(weights_of, model)
    for name, tensor in load_file(folder / model / "model.safetensors").items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut", "the Hugging Face hub cannot be reached"),
        ("short", r"the download failed \(Consistency check failed: file should be of size"),
        ("changed", "came damaged, and was removed"),
        ("missing", "the Hugging Face hub has no {file} of it"),
        ("down", "the Hugging Face hub cannot be reached"),
    ],
)
def test_a_file_that_goes_wrong_is_one_line_and_leaves_nothing(
    there, hub, cache, folder, model, broken, file, kind, reason
):
    broken(f"{model}/{file}", kind)
    with pytest.raises(UserError, match=reason.format(file=file)) as error:
        there(weights_of, model)
    assert one_line(error).startswith(f"no language model {model!r} here, and ")
    kept = cache / "hub" / ("models--" + model.replace("/", "--"))
    assert not list(kept.glob(f"snapshots/*/{file}"))
    assert not list(kept.rglob("*.incomplete"))
    hub.faults.clear()
    found = there(weights_of, model)
    for name, tensor in load_file(folder / model / "model.safetensors").items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_what_a_killed_run_leaves_is_not_taken(there, hub, cache, folder, model, broken):
    path = f"{model}/model.safetensors"
    broken(path, "stall", 1)
    code = f"from shared.hub.files import fetch; fetch({model!r}, 'model.safetensors')"
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL, env=settings(hub, cache)
    )
    while f"GET /large/{path}" not in hub.asked:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    found = there(weights_of, model)
    for name, tensor in load_file(folder / path).items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("name", ["made/nothing", "gpt3"])
def test_a_model_that_is_not_there(there, name):
    with pytest.raises(UserError, match="the Hugging Face hub has no model of that name") as error:
        there(weights_of, name)
    one_line(error)
    with pytest.raises(UserError, match="the Hugging Face hub has no model of that name") as error:
        there(vocabulary_of, name)
    one_line(error)


@pytest.mark.parametrize("file", FILES)
def test_a_model_that_lacks_a_file(there, folder, model, file):
    (folder / model / file).unlink()
    with pytest.raises(
        UserError, match=r"no tokenizer at|is not a language model: it needs"
    ) as error:
        there(weights_of, model)
    assert file in one_line(error)


def test_a_tokenizer_that_came_damaged_is_one_line_and_comes_again(
    there, hub, folder, model, broken
):
    broken(f"{model}/tokenizer.json", "changed")
    with pytest.raises(UserError, match=r"tokenizer\.json came damaged, and was removed") as error:
        there(vocabulary_of, model)
    assert "--tokenizer PATH" in one_line(error)
    hub.faults.clear()
    assert there(vocabulary_of, model) == tokenizer_of(str(folder / model)).get_vocab()


def test_a_standard_release_is_the_one_that_is_served(there, standard, x):
    f, directions, density, centred = there(opened, ":".join(STANDARD), x)
    inputs = x - x.mean(-1, keepdim=True)  # the list says that the model's weights were centred
    expected = (inputs - standard["b_dec"]) @ standard["W_enc"] + standard["b_enc"]
    torch.testing.assert_close(f, expected.relu())
    torch.testing.assert_close(directions, standard["W_dec"])
    torch.testing.assert_close(density, 10 ** standard["sparsity"], rtol=1e-4, atol=1e-8)
    assert centred


def test_a_topk_release_is_the_one_that_is_served(there, topk, x):
    f, directions = there(released, *TOPK, x)
    torch.testing.assert_close(directions, topk["W_dec"])
    normal = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    before = (normal - topk["b_dec"]) @ topk["W_enc"] + topk["b_enc"]
    values, index = before.relu().topk(K)
    torch.testing.assert_close(f, torch.zeros_like(f).scatter(-1, index, values))


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("cfg.json", "changed"),
        ("sae_weights.safetensors", "cut"),
        ("sae_weights.safetensors", "short"),
        ("sae_weights.safetensors", "changed"),
        ("sae_weights.safetensors", "missing"),
        ("sae_weights.safetensors", "down"),
    ],
)
def test_a_release_that_goes_wrong_is_one_line_and_comes_again(
    there, hub, cache, topk, x, broken, file, kind
):
    shutil.rmtree(cache / "hub" / "models--jbloom--GPT2-Small-OAI-v5-32k-resid-post-SAEs", True)
    broken(f"{TOPK_AT}/{file}", kind)
    with pytest.raises(UserError, match=f"no autoencoder {' '.join(TOPK)} here, and ") as error:
        there(released, *TOPK, x)
    one_line(error)
    hub.faults.clear()
    torch.testing.assert_close(there(released, *TOPK, x)[1], topk["W_dec"])


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_dataset_is_the_one_that_is_served(there, text, revision):
    name, rows = text
    assert there(texts_of, name, "text", revision) == rows


@pytest.mark.parametrize("kind", ["cut", "down"])
def test_a_dataset_whose_file_drops_once_is_read_whole(there, text, broken, kind):
    name, rows = text
    broken(f"datasets/{name}/data/train-00001-of-00002.parquet", kind, 1)
    assert there(texts_of, name, "text", COMMIT) == rows


@pytest.mark.parametrize("kind", ["cut", "short", "changed", "missing", "down"])
def test_a_dataset_whose_file_goes_wrong_is_one_line(there, hub, text, broken, kind):
    name, rows = text
    broken(f"datasets/{name}/data/train-00001-of-00002.parquet", kind)
    with pytest.raises(UserError, match=r"cannot be had \(.+\): use the embedded corpus") as error:
        there(texts_of, name, "text", COMMIT)
    one_line(error)
    hub.faults.clear()
    assert there(texts_of, name, "text", COMMIT) == rows


@pytest.mark.parametrize(
    ("name", "revision"), [("made/nothing", None), ("made/nothing", COMMIT), ("", "no-branch")]
)
def test_a_dataset_or_branch_that_is_not_there_is_one_line(there, text, name, revision):
    with pytest.raises(UserError, match=r"cannot be had \(.+\): use the embedded corpus") as error:
        there(texts_of, name or text[0], "text", revision)
    one_line(error)


def test_tokens_in_place_of_text_are_refused(there, folder):
    data = folder / "datasets/made/tokens/data"
    data.mkdir(parents=True)
    pq.write_table(pa.table({"input_ids": [[1, 2, 3]]}), data / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="no field 'text': name one of input_ids"):
        there(texts_of, "made/tokens", "text", COMMIT)
    with pytest.raises(UserError, match="'input_ids' of made/tokens holds lists, not text"):
        there(texts_of, "made/tokens", "input_ids", COMMIT)


def test_the_command_makes_shards_of_what_is_served(there, hub, text, broken, tmp_path):
    into = tmp_path / "shards"
    name, rows = text
    arguments = ("shards", name, "--revision", COMMIT, "--tokenizer", "gpt2", "--length", 16)
    broken(f"datasets/{name}/data/train-00001-of-00002.parquet", "changed")
    code, output = there(command, *arguments, "--into", into)
    assert code == 2
    assert "cannot be had" in output.strip().splitlines()[-1]
    assert not into.exists()
    hub.faults.clear()
    assert there(command, *arguments, "--into", into)[0] == 0
    found = [load_contexts(into / f"{split}.safetensors") for split in SPLITS]
    assert sum(len(np.unique(one.documents)) - 1 for one in found) > 0.9 * len(rows)


def test_no_one_else_was_asked(there):
    """Last: of all that ran before."""
    assert set(there(strangers_asked_for)) <= {VIEWER}
    with pytest.raises(HubError, match="cannot be reached"):
        there(elsewhere)


def elsewhere():
    """That `alone` keeps this process from others."""
    from huggingface_hub import constants

    constants.ENDPOINT = "http://198.51.100.1"  # of the addresses for documentation
    fetch("made/anything", "*")
