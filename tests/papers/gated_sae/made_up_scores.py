"""Score tables of autoencoders whose fronts are known: one curve, shifted in L0 by the method."""

import zlib

import numpy as np

NEEDS = {
    "gated": 1.0,
    "baseline": 2.0,
    "baseline_equal": 2.2,
    "rescaled": 1.9,
    "gated_unfrozen": 1.3,
    "gated_no_r_mag": 1.05,
    "gated_untied": 1.02,
    "jumprelu": 0.9,
    "topk": 0.95,
    "sae_lens_gated": 1.5,
    "sae_lens_unit_norm": 1.4,
    "sae_lens_betas": 1.32,
}
"""Times the L0 of "gated" that a method needs for the same recovery."""
SHRINKS = {"baseline": 0.5, "baseline_equal": 0.5}
FREQUENT = {"jumprelu": 0.04, "topk": 0.06}
PENALTIES = (0.1, 0.2, 0.4, 0.8, 1.6)
SITES = [f"{kind}.{layer}" for kind in ("resid_post", "mlp_out", "attn_out") for layer in range(4)]
LOSS, ZERO = 3.2, 5.2


def recovered(l0):
    """What "gated" recovers with so many active features."""
    return 1 - 0.5 / np.asarray(l0, dtype=float) ** 0.6


def noise(*key, size=1.0):
    return size * np.random.default_rng(zlib.crc32(repr(key).encode())).normal()


def entry(model, site, method, seed, penalty, jitter=0.0, **changes):
    """One autoencoder. `jitter` scales the noise of its L0 and its recovery."""
    key = (model, site, method, seed, penalty)
    l0 = 12 / penalty * np.exp(noise(*key, "l0", size=jitter)) * NEEDS[method] ** 0.5
    share = float(recovered(l0 / NEEDS[method])) + noise(*key, "recovered", size=0.05 * jitter)
    row = {
        "name": f"{method}_{penalty:g}_s{seed}",
        "method": method,
        "model": model,
        "site": site,
        "d_sae": 768 if method == "baseline" else 512,
        "penalty": penalty,
        "seed": seed,
        "l0": l0,
        "fvu": 1 - share,
        "mse": (1 - share) / 10,
        "gamma": 1 - SHRINKS.get(method, 0) / l0**0.6,
        "cosine": 0.9,
        "loss": LOSS,
        "zero": ZERO,
        "spliced": ZERO - share * (ZERO - LOSS),
        "recovered": share,
        "alive": 1 / (1 + penalty / 4),
        "frequent": FREQUENT.get(method, 0.001) * l0 / 60,
    }
    return row | changes


def rows(jitter=0.03, seeds=3, penalties=PENALTIES, methods=tuple(NEEDS), sites=tuple(SITES)):
    found = [
        entry("one_layer_a", "mlp_post.0", method, seed, penalty, jitter)
        for method in methods
        for seed in range(1 if method.startswith("sae_lens") else seeds)
        for penalty in penalties
    ]
    found += [
        entry("mini_gpt2", site, method, 0, penalty, jitter)
        for site in sites
        for method in ("baseline", "gated")
        for penalty in penalties
    ]
    return found


def table(found):
    """Rows as arrays, in the order of `scores`, with the record that stages put beside them."""
    order = ("model", "site", "method", "seed", "penalty")
    found = sorted(found, key=lambda row: tuple(row[key] for key in order))
    return {key: np.array([row[key] for row in found]) for key in found[0]}
