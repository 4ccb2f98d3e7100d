import json
import sys

import numpy as np
import pytest
import torch

from benchmarks.measuring import Peer
from benchmarks.peers.decoding_protocol import Request, load_work, timed
from benchmarks.sparse_decoding import (
    EXACT,
    OURS,
    SETTINGS,
    WAYS,
    Bench,
    Setting,
    crossing,
    crossover_of,
    decoding_of,
    distance,
    shortened,
    sparse_below,
    sparse_codes,
    step_of,
    table,
    work_of,
)
from shared.saes import codes
from shared.saes.codes import DenseCodes, SparseCodes

SMALL = Setting(d_in=8, d_sae=64, k=3, batch=16)
PEER = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"error": "no decoder"}), flush=True)
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    (tmp_path / "stub_decoder.py").write_text(PEER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peer = Peer("stub_decoder", sys.executable, tmp_path / "log")
    yield Bench("cpu", tmp_path, {"eai-sparsify": peer}, rounds=1)
    peer.close()


def by_autograd(work):
    """The same products from torch's own derivatives, in float64."""
    x, at_output = work.x.double(), work.at_output.double()
    W_enc_T, W_dec = (work.W_dec.double().requires_grad_() for _ in range(2))
    values = (x @ W_enc_T.T).gather(1, work.features)
    values.retain_grad()
    f = torch.zeros(len(x), len(W_dec), dtype=torch.float64).scatter(1, work.features, values)
    output = f @ W_dec
    output.backward(at_output)
    return output.detach(), values.grad, W_dec.grad, W_enc_T.grad


@pytest.mark.parametrize("name", list(WAYS))
def test_every_way_finds_the_products_of_autograd(name):
    work = work_of(SMALL, "cpu")
    found, exact = WAYS[name](work), by_autograd(work)
    limit = EXACT["bfloat16" if "bfloat16" in name else "float32"]
    assert distance(found, exact) < limit
    moved = found._replace(W_dec=found.W_dec * (1 + 2 * limit))
    assert distance(moved, exact) > limit


def test_work_survives_its_file_and_a_request_its_line(tmp_path):
    work = work_of(SMALL, "cpu")
    work.save(tmp_path / "work.npz")
    again = load_work(str(tmp_path / "work.npz"), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(work, again, strict=True))
    request = Request("work", "answer", "cpu", 2)
    assert request.line().endswith("\n")
    assert Request(**json.loads(request.line())) == request


def test_settings_are_those_of_the_target_and_sparse_even_when_short():
    assert (SETTINGS["large"].d_in, SETTINGS["large"].d_sae, SETTINGS["large"].k) == (
        768,
        32768,
        32,
    )
    for setting in SETTINGS.values():
        short = shortened(setting)
        assert short.k / short.d_sae < codes.SPARSE_BELOW
    assert SMALL.flops == 4 * 2 * 16 * 8 * 64


def test_the_clock_leaves_the_first_call_out():
    calls = []
    seconds, result = timed(lambda: calls.append(len(calls)) or len(calls), "cpu")
    assert (calls, result) == ([0, 1], 2)
    assert seconds >= 0


def test_the_form_can_be_forced_for_a_while():
    work = work_of(SMALL, "cpu")
    usual = codes.SPARSE_BELOW, codes.SPARSE_BELOW_CUDA
    with sparse_below(0.0):
        assert isinstance(sparse_codes(work), DenseCodes)
    with sparse_below(1.0):
        assert isinstance(sparse_codes(work), SparseCodes)
    assert usual == (codes.SPARSE_BELOW, codes.SPARSE_BELOW_CUDA)


def test_the_crossover_lies_between_two_ratios():
    assert crossing([(0.01, 4.0), (0.04, 0.25)]) == pytest.approx(0.02)
    assert crossing([(0.01, 4.0), (0.02, 1.0), (0.04, 0.5)]) == pytest.approx(0.02)
    assert crossing([(0.01, 4.0), (0.02, 2.0)]) is None
    assert crossing([(0.01, 0.9), (0.02, 0.5)]) is None


def test_a_run_reports_everyone_and_who_failed(bench):
    setting = SMALL
    decoding = decoding_of(bench, setting)
    assert set(decoding["ways"]) == set(WAYS)
    assert decoding["failed"] == {"eai-sparsify": "no decoder"}
    assert all(way["same"] for way in decoding["ways"].values())
    assert "ratio" not in decoding["ways"][OURS]
    step, crossover = step_of(bench, setting), crossover_of(bench, setting)
    ms = step["milliseconds"]
    expected = ms["encoder"][0] / ms["sparse"][0]
    assert step["share_of_encoder"] == pytest.approx(expected, abs=0.006)
    assert [row["k"] for row in crossover["shares"]] == [1, 2, 4, 8]
    text = table({"decoding": {"s": decoding}, "step": {"s": step}, "crossover": {"s": crossover}})
    assert "| d_in 8, d_sae 64, k 3 | this repository |" in text
    assert "| | eai-sparsify | failed: no decoder | | |" in text
    assert "step of TopK" in text
    assert np.isfinite(step["vectors_per_second"])
