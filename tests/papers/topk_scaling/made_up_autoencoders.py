"""Tables `autoencoders` and `scores` of every group, of autoencoders whose laws are known.

TopK follows the paper's joint law L(n, k); other methods lose more by a factor. Learning goes as
1 + (τ / t)², with τ ∝ n^0.6, the square root of the batch, and a parabola in log learning rate
whose minimum goes as 1/√n.
"""

import json
import zlib

import numpy as np

from shared.experiment import Run
from shared.stages import rounded

SITE, NOISE = "blocks.2.resid_post", "noise"
SIZES, SPARSITIES = (256, 512, 1024, 2048, 4096), (4, 8, 16, 32, 64)
RATES, BATCHES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3), (256, 512, 1024, 2048)
K, FRONT_SIZE = 16, 1024
ALPHA, BETA_K, BETA_N, GAMMA, ZETA, ETA = -0.5, 0.26, -0.017, -0.042, -1.32, -0.085
VECTORS, RECORDS, BATCH = 1_000_000, 40, 512
LOSSES_MORE = {"topk": 1, "batchtopk": 0.97, "multi_topk": 1.02, "gated": 1.02, "prolu": 1.2}
LOSSES_MORE |= {"relu": 1.4}
SHRINKS = {"relu": 0.15}
NOISE_LOSS, NOISE_EXPONENT = 0.8, 0.04
LOSS, ZERO, MEAN = 3.4, 9.0, 7.0


def law(n, k):
    """The loss at convergence."""
    n, k = np.log(n), np.log(k)
    return np.exp(ALPHA + BETA_K * k + BETA_N * n + GAMMA * k * n) + np.exp(ZETA + ETA * k)


def best_rate(n):
    return 2e-4 * (n / 2**14) ** -0.5


def noise(*key, size=1.0):
    return size * np.random.default_rng(zlib.crc32(repr(key).encode())).normal()


def entry(group, n, k, seed=0, method="topk", variant="", site=SITE, jitter=0.0, **changes):
    """An autoencoder, with what both tables say of it. `jitter` is the noise of its log loss."""
    rate, batch = changes.get("lr", best_rate(n)), changes.get("batch", BATCH)
    words = [group, method, variant, site, f"n{n}", f"k{k:g}", f"lr{rate:g}", f"b{batch}"]
    key = (*words, seed)
    final = NOISE_LOSS * n**-NOISE_EXPONENT if site == NOISE else law(n, k)
    final *= LOSSES_MORE[method] * np.exp(0.05 * np.log(rate / best_rate(n)) ** 2)
    final *= np.exp(noise(*key, size=jitter))
    vectors = np.geomspace(VECTORS / 100, VECTORS, RECORDS)
    delay = 5_000 * (n / 256) ** 0.6 * (batch / BATCH) ** 0.5
    spliced = LOSS + 3 * final**1.3
    dead = {"neither": 0.4, "transposed": 0.1, "aux": 0.05}.get(variant, 0.0)
    row = {
        "name": "_".join([word for word in words if word] + [f"s{seed}"]),
        "group": group,
        "method": method,
        "variant": variant,
        "site": site,
        "d_sae": n,
        "penalty": float(k),
        "lr": rate,
        "batch": batch,
        "seed": seed,
        "vectors": VECTORS,
        "nmse": final * (1 + (delay / VECTORS) ** 2),
        "history_vectors": vectors,
        "history_nmse": final * (1 + (delay / vectors) ** 2),
        "history_dead": np.linspace(0, dead, RECORDS),
    }
    row |= {key: value for key, value in changes.items() if key in row}
    return row, {
        "l0": k * np.exp(noise(*key, "l0", size=0.0 if method == "topk" else jitter)),
        "nmse": row["nmse"],
        "gamma": 1 - SHRINKS.get(method, 0),
        "cosine": (1 - min(final, 1)) ** 0.5,
        "alive": 1 - dead,
        "loss": LOSS,
        "zero": ZERO,
        "mean": MEAN,
        "spliced": spliced,
        "kl": (spliced - LOSS) * 0.9,
        "recovered": (ZERO - spliced) / (ZERO - LOSS),
    }


def entries(sizes=SIZES, sparsities=SPARSITIES, seeds=3, jitter=0.0):
    """Every group of the brief's grid, with so many seeds where there are several."""
    large = max(sizes)
    found = [("grid", n, k, {}) for n in sizes for k in sparsities]
    found += [("noise", n, K, {"site": NOISE}) for n in sizes]
    found += [("lr", n, K, {"lr": rate}) for n in sizes for rate in RATES]
    found += [("batch", FRONT_SIZE, K, {"batch": batch}) for batch in BATCHES]
    found += [("layers", FRONT_SIZE, K, {"site": f"blocks.{i}.resid_post"}) for i in range(4)]
    variants = ("paper", "adam_epsilon", "no_ema", "clipped", "zero_bias")
    found += [("recipe", FRONT_SIZE, K, {"variant": variant}) for variant in variants]
    for seed in range(seeds):
        for method in ("topk", "batchtopk", "relu", "prolu", "gated"):
            found += [
                ("fronts", FRONT_SIZE, k, {"method": method, "seed": seed}) for k in sparsities
            ]
        found += [("widths", n, K, {"seed": seed}) for n in sizes]
        found += [
            ("widths", n, k, {"method": "relu", "seed": seed})
            for n in sizes
            for k in (K / 2, K * 0.9, K * 1.4, 2 * K)
        ]
        found += [
            ("dead", large, K, {"variant": variant, "seed": seed})
            for variant in ("both", "aux", "transposed", "neither")
        ]
        found += [
            ("progressive", FRONT_SIZE, K, {"method": method, "seed": seed})
            for method in ("topk", "multi_topk")
        ]
    return [entry(group, n, k, jitter=jitter, **rest) for group, n, k, rest in found]


def columns(rows):
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


DESCRIPTION = ("name", "group", "method", "variant", "site", "d_sae", "penalty", "lr", "batch")


def tables(found):
    """Both tables; those on noise are not in `scores`."""
    scores = [
        {key: row[key] for key in (*DESCRIPTION, "seed")} | score
        for row, score in found
        if row["site"] != NOISE
    ]
    return {"autoencoders": columns([row for row, _ in found]), "scores": columns(scores)}


def smoke():
    """Two n, two k, one seed, three records, two learning rates, two batch sizes."""
    found = []
    for row, score in entries(sizes=(64, 128), sparsities=(4, 8), seeds=1, jitter=0.1):
        if row["lr"] in RATES[2:] or row["batch"] in BATCHES[2:]:
            continue
        few = {key: row[key][::19] for key in row if key.startswith("history")}
        found.append((row | few, score))
    return tables(found)


def evaluated(experiment, found, **parameters):
    """The evaluation of an experiment that only reads tables."""
    config = experiment.config(**parameters)
    arrays = experiment.train(config, Run(0, "cpu", found))
    return experiment.evaluate(config, dict(arrays))


def metrics(experiment, found, **parameters):
    """What metrics.json would hold of it."""
    return json.loads(json.dumps(rounded(evaluated(experiment, found, **parameters).metrics)))


def changed(found, column, change, **conditions):
    """Both tables with a column replaced by `change(rows)` where the conditions hold."""
    result = {}
    for name, table in found.items():
        chosen = np.ones(len(table["name"]), dtype=bool)
        for key, value in conditions.items():
            chosen &= table[key] == value
        result[name] = dict(table)
        if column in table:
            values = table[column].astype(float)
            values[chosen] = change({key: part[chosen] for key, part in table.items()})
            result[name][column] = values
    return result


def without(found, **conditions):
    """Both tables without the rows where the conditions hold; with none, without any row."""
    result = {}
    for name, table in found.items():
        chosen = np.ones(len(table["name"]), dtype=bool)
        for key, value in conditions.items():
            chosen &= table[key] == value
        result[name] = {key: values[~chosen] for key, values in table.items()}
    return result


def leaves(value):
    """All numbers and nulls of nested metrics."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [leaf for item in items for leaf in leaves(item)]
    return [value]
