"""How fast a batch is decoded, and its gradients found, from its k active features alone.

Against dense products, the usual other ways, a peer's decoder and the machine's matmul rate; then a
whole training step of TopK, and from which share of active features dense products are faster.
See README.md here for what each number is.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.measuring import (
    Peer,
    Rounds,
    Short,
    Threads,
    compare,
    matmul_rate,
    parse_peers,
    say,
)
from benchmarks.peers.decoding_protocol import Products, Request, Work, timed
from shared.errors import UserError
from shared.files import ROOT, write_json
from shared.provenance import run_record
from shared.saes import codes
from shared.saes.architecture import matmul_precision
from shared.saes.codes import Codes, DenseCodes, codes_at
from shared.saes.selection import top_k
from shared.saes.topk import TopKConfig
from shared.saes.unit_decoder import random_directions
from shared.stages import device_name, guard, pick_device
from shared.training.adam import Adam

OURS = "this repository"
DRIVERS = {"eai-sparsify": "benchmarks.peers.sparsify_decoding"}
SEED = 0
LR = 1e-5
SHARES = tuple(2.0**-power for power in (11, 10, 9, 8, 7, 6, 5, 4, 3))
"""Of active features, from which the crossover is found."""
EXACT = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest distance from the dense float64 products, by the precision of the way."""


@dataclass(frozen=True)
class Setting:
    """A shape."""

    d_in: int
    d_sae: int
    k: int
    batch: int = 4096

    @property
    def title(self) -> str:
        """Return it in words."""
        return f"d_in {self.d_in}, d_sae {self.d_sae}, k {self.k}"

    @property
    def flops(self) -> int:
        """Floating-point operations of the four products, each with the whole matrix."""
        return 8 * self.batch * self.d_in * self.d_sae


SETTINGS = {"large": Setting(768, 32_768, 32), "small": Setting(256, 4096, 16)}


def shortened(setting: Setting) -> Setting:
    """Return a setting that takes a moment, to try the benchmark itself."""
    return replace(setting, d_sae=setting.d_sae // 16, batch=setting.batch // 16)


def config_of(setting: Setting) -> TopKConfig:
    """Return the autoencoder of a setting."""
    return TopKConfig(d_in=setting.d_in, d_sae=setting.d_sae, k=setting.k, seed=SEED)


def inputs_of(setting: Setting, device: str) -> Tensor:
    """Return normal inputs [batch, d_in]."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(setting.batch, setting.d_in, generator=generator).to(device)


def work_of(setting: Setting, device: str) -> Work:
    """Return the work: the k largest of random features, and the error as the gradient."""
    x = inputs_of(setting, device)
    W_dec = random_directions(config_of(setting)).to(device)
    values, features = top_k(x @ W_dec.T, setting.k)
    x_hat = codes_at(values, features, setting.d_sae).times(W_dec)
    return Work(values, features, W_dec, x, (x_hat - x) * (2 / setting.batch))


def products(codes_of: Callable[[Work], Codes], work: Work) -> Products:
    """Return what codes give, the making of them included."""
    f = codes_of(work)
    slope = f.where_active(work.at_output, work.W_dec, plus=0.0)
    entries = slope.entries
    activations = (
        entries.gather(1, work.features)
        if isinstance(slope, DenseCodes)
        else entries.view_as(work.values)
    )
    return Products(
        output=f.times(work.W_dec),
        activations=activations.float(),
        W_dec=f.transposed_times(work.at_output),
        W_enc_T=slope.transposed_times(work.x),
    )


def sparse_codes(work: Work) -> Codes:
    """Return the codes in the form that `codes_at` chooses."""
    return codes_at(work.values, work.features, len(work.W_dec))


def dense_codes(work: Work, dtype: torch.dtype) -> DenseCodes:
    """Return the codes as a matrix."""
    zeros = work.values.new_zeros(len(work.x), len(work.W_dec), dtype=dtype)
    return DenseCodes(zeros.scatter_(1, work.features, work.values.to(dtype)))


def by_index_add(work: Work) -> Products:
    """Gather the rows of W_dec, and add weighted rows to where they belong."""
    rows = work.W_dec[work.features]  # [batch, k, d_in]
    activations = torch.einsum("bd,bkd->bk", work.at_output, rows)
    places = work.features.flatten()

    def added(weights: Tensor, vectors: Tensor) -> Tensor:
        terms = weights[:, :, None] * vectors[:, None]
        return torch.zeros_like(work.W_dec).index_add_(0, places, terms.flatten(0, 1))

    return Products(
        output=torch.einsum("bk,bkd->bd", work.values, rows),
        activations=activations,
        W_dec=added(work.values, work.at_output),
        W_enc_T=added(activations, work.x),
    )


def by_coo(work: Work) -> Products:
    """Decode as SAELens does with `use_sparse_activations`: torch.sparse.mm and its autograd."""
    batch, k = work.values.shape
    rows = torch.arange(batch, device=work.x.device).repeat_interleave(k)
    places = torch.stack([rows, work.features.flatten()])
    shape = (batch, len(work.W_dec))
    values, W_dec = (t.detach().requires_grad_() for t in (work.values, work.W_dec))
    f = torch.sparse_coo_tensor(places, values.flatten(), shape, check_invariants=False)
    output = torch.sparse.mm(f, W_dec)
    activations, at_W_dec = torch.autograd.grad(output, (values, W_dec), work.at_output)
    slope = torch.sparse_coo_tensor(places, activations.flatten(), shape, check_invariants=False)
    at_W_enc_T = torch.sparse.mm(slope.t(), work.x)
    return Products(output.detach(), activations, at_W_dec, at_W_enc_T)


WAYS: dict[str, Callable[[Work], Products]] = {
    OURS: partial(products, sparse_codes),
    "dense, float32": partial(products, partial(dense_codes, dtype=torch.float32)),
    "dense, bfloat16": partial(products, partial(dense_codes, dtype=torch.bfloat16)),
    "index_add": by_index_add,
    "torch.sparse, COO": by_coo,
}


def distance(found: Products, exact: Products) -> float:
    """Return the largest ‖found − exact‖ / ‖exact‖ of the four products."""
    pairs = zip(found, exact, strict=True)
    return max(float((a.cpu() - b).norm() / b.norm()) for a, b in pairs)


def milliseconds(seconds: Sequence[float]) -> list[float]:
    """Return times for the report."""
    return [round(1e3 * value, 3) for value in seconds]


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    device: str
    folder: Path
    peers: dict[str, Peer]
    rounds: int

    def ask(self, peer: str, work: Path) -> tuple[float, Products, str]:
        """Return what a peer took and found, and its version. Raises UserError where it fails."""
        answer = self.folder / "answer.npz"
        request = Request(str(work), str(answer), self.device, torch.get_num_threads())
        reply = self.peers[peer].ask(request.line())
        if "error" in reply:
            raise UserError(reply["error"])
        with np.load(answer) as file:
            found = Products(**{name: torch.from_numpy(file[name]) for name in file.files})
        return reply["seconds"], found, f"{reply['version']}, torch {reply['torch']}"


def decoding_of(bench: Bench, setting: Setting) -> dict[str, Any]:
    """Time everyone's decoding and gradients, in turns."""
    work = work_of(setting, bench.device)
    stored = bench.folder / "work.npz"
    work.save(stored)
    exact = Products(*(t.cpu() for t in products(partial(dense_codes, dtype=torch.float64), work)))
    seconds: dict[str, list[float]] = {name: [] for name in (*WAYS, *bench.peers)}
    found: dict[str, float] = {}
    versions: dict[str, str] = {}
    failed: dict[str, str] = {}
    rates: dict[str, list[float]] = {name: [] for name in EXACT}
    for _ in range(bench.rounds):
        for name, measured in rates.items():
            measured.append(matmul_rate(bench.device, dtype=getattr(torch, name)))
        for name in [name for name in seconds if name not in failed]:
            try:
                if name in WAYS:
                    took, result = timed(partial(WAYS[name], work), bench.device)
                else:
                    took, result, versions[name] = bench.ask(name, stored)
            except (RuntimeError, UserError) as error:  # out of memory, or not on this device
                failed[name] = str(error).splitlines()[0]
                say(f"{setting.title}: {name} failed: {failed[name]}")
                continue
            seconds[name].append(took)
            found[name] = distance(result, exact)
            say(f"{setting.title}: {name}: {1e3 * took:.4g} ms")
    rate = {name: statistics.median(measured) for name, measured in rates.items()}
    report = {}
    for name in [name for name in seconds if name not in failed]:
        precision = "bfloat16" if "bfloat16" in name else "float32"
        report[name] = {
            "milliseconds": milliseconds(seconds[name]),
            "distance": float(f"{found[name]:.3g}"),
            "same": found[name] <= EXACT[precision],
        }
        if name in versions:
            report[name]["version"] = versions[name]
        if name.startswith("dense"):
            each = statistics.median(seconds[name])
            report[name]["share_of_matmul_rate"] = round(setting.flops / each / rate[precision], 3)
        if name != OURS:
            report[name] |= compare(seconds[OURS], seconds[name])
    return {
        "title": setting.title,
        "batch": setting.batch,
        "form": type(sparse_codes(work)).__name__,
        "matmul_gflops": {name: round(value / 1e9, 1) for name, value in rate.items()},
        "ways": report,
        "failed": failed,
    }


@contextmanager
def sparse_below(share: float) -> Iterator[None]:
    """Let `codes_at` be sparse below this share of active features, on every device."""
    names = ("SPARSE_BELOW", "SPARSE_BELOW_CUDA")
    usual = {name: getattr(codes, name) for name in names}
    try:
        for name in names:
            setattr(codes, name, share)
        yield
    finally:
        for name in names:
            setattr(codes, name, usual[name])


def step_of(bench: Bench, setting: Setting) -> dict[str, Any]:
    """Time a training step of TopK with either form of codes, and the encoder's part of it."""
    device, x = bench.device, inputs_of(setting, bench.device)
    matmul = matmul_precision(device)
    sae = config_of(setting).create(device, matmul)
    sae.start(x)
    adam = Adam(sae.parameters, LR)

    def step() -> None:
        adam.step(sae.gradients(x)[0])
        sae.constrain()

    def encode() -> Tensor:
        return (x * sae.scale - sae.b_dec).to(matmul) @ sae.W_enc_T.to(matmul).T

    before = encode()
    seconds: dict[str, list[float]] = {}
    for _ in range(bench.rounds):
        for name, act, share in (
            ("sparse", step, 1.0),
            ("dense", step, 0.0),
            ("encoder", encode, 1.0),
            ("selection", lambda: top_k(before, setting.k), 1.0),
        ):
            with sparse_below(share):
                seconds.setdefault(name, []).append(timed(act, device)[0])
        last = ", ".join(f"{name} {1e3 * times[-1]:.4g} ms" for name, times in seconds.items())
        say(f"step, {setting.title}: {last}")
    parts = {
        f"share_of_{part}": compare(seconds["sparse"], seconds[part])["ratio"]
        for part in ("encoder", "selection")
    }
    return {
        "title": setting.title,
        "batch": setting.batch,
        "precision": str(matmul).removeprefix("torch."),
        "milliseconds": {name: milliseconds(times) for name, times in seconds.items()},
        "vectors_per_second": round(setting.batch / statistics.median(seconds["sparse"])),
        "dense_over_sparse": compare(seconds["sparse"], seconds["dense"]),
        **parts,
    }


def crossing(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the share at which the ratio of dense to sparse falls to 1, between two that did so.

    Points are (share, ratio), shares growing; in between, logarithms are taken as linear. None
    where it does not cross.
    """
    for (low, over), (high, under) in pairwise(points):
        if over >= 1 > under:
            part = math.log(over) / math.log(over / under)
            return float(f"{low * (high / low) ** part:.3g}")
    return None


def crossover_of(bench: Bench, setting: Setting) -> dict[str, Any]:
    """Time sparse against dense products over shares of active features."""
    matmul = matmul_precision(bench.device)
    dense = partial(products, partial(dense_codes, dtype=matmul))
    shares = []
    for k in sorted({max(1, round(share * setting.d_sae)) for share in SHARES}):
        work = work_of(replace(setting, k=k), bench.device)
        mine, theirs = [], []
        with sparse_below(1.0):
            for _ in range(bench.rounds):
                mine.append(timed(partial(WAYS[OURS], work), bench.device)[0])
                theirs.append(timed(partial(dense, work), bench.device)[0])
        shares.append(
            {
                "k": k,
                "share": k / setting.d_sae,
                "milliseconds": milliseconds(mine),
                "milliseconds_dense": milliseconds(theirs),
                **compare(mine, theirs),
            }
        )
        say(f"crossover, {setting.title}: k {k}: dense takes {shares[-1]['ratio']} times as long")
    return {
        "title": f"d_in {setting.d_in}, d_sae {setting.d_sae}",
        "batch": setting.batch,
        "precision": str(matmul).removeprefix("torch."),
        "shares": shares,
        "crossover": crossing([(row["share"], row["ratio"]) for row in shares]),
    }


def table(results: dict[str, Any]) -> str:
    """Lay results out as a Markdown table."""
    rows = ["| work | who | ms | we are faster by | distance |", "|---|---|---:|---:|---:|"]
    for report in results["decoding"].values():
        title = report["title"]
        for name, way in report["ways"].items():
            who = f"{name} ({way['version']})" if "version" in way else name
            ratio = "" if name == OURS else f"{way['ratio']:.1f} ({_range(way)})"
            ms = statistics.median(way["milliseconds"])
            mark = "" if way["same"] else ", too much"
            rows.append(f"| {title} | {who} | {ms:.4g} | {ratio} | {way['distance']:.1g}{mark} |")
            title = ""
        rows.extend(f"| | {name} | failed: {why} | | |" for name, why in report["failed"].items())
    for report in results["step"].values():
        times = {name: statistics.median(ms) for name, ms in report["milliseconds"].items()}
        ratio = report["dense_over_sparse"]
        parts = f"encoder {100 * report['share_of_encoder']:.0f}% of it"
        rows.append(
            f"| step of TopK, {report['title']} | sparse codes, {parts} | {times['sparse']:.4g} "
            f"| {ratio['ratio']:.1f} ({_range(ratio)}) | |"
        )
        rows.append(f"| | dense codes, {report['precision']} | {times['dense']:.4g} | | |")
    for report in results["crossover"].values():
        where = report["crossover"]
        found = "not found" if where is None else f"{100 * where:.2g}% active"
        rows.append(f"| crossover, {report['title']} | {report['precision']} | {found} | | |")
    return "\n".join(rows)


def _range(report: dict[str, Any]) -> str:
    low, high = report["ratio_range"]
    return f"{low:.1f} to {high:.1f}"


def main(
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PYTHON", help=f"A peer ({', '.join(DRIVERS)}) and its Python."),
    ] = None,
    rounds: Rounds = 5,
    threads: Threads = None,
    short: Short = False,
    into: Annotated[Path, typer.Option(help="Where the JSON goes.")] = ROOT
    / "results/benchmarks/sparse_decoding.json",
) -> None:
    """Measure decoding and gradients from the active features alone."""
    pythons = parse_peers(peer or [], DRIVERS)
    if threads is not None:
        torch.set_num_threads(threads)
    device = pick_device()
    start = time.monotonic()
    settings = {k: shortened(s) if short else s for k, s in SETTINGS.items()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = {}
        for name, python in pythons.items():
            peers[name] = Peer(DRIVERS[name], python, folder / f"{name}.log")
            stack.callback(peers[name].close)
        bench = Bench(device, folder, peers, rounds)
        parts = {"decoding": decoding_of, "step": step_of, "crossover": crossover_of}
        results = {
            part: {key: measure(bench, setting) for key, setting in settings.items()}
            for part, measure in parts.items()
        }
    record = run_record(
        params={"rounds": rounds, "short": short, "threads": torch.get_num_threads()},
        seed=SEED,
        device=device_name(device),
        wall_seconds=time.monotonic() - start,
    )
    given = {"record": record, "peers_not_given": sorted(set(DRIVERS) - set(pythons))}
    write_json(into, {**given, **results})
    print(table(results))


if __name__ == "__main__":
    guard(lambda: typer.run(main))
