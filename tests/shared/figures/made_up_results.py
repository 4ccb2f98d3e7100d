"""Made-up results of two papers, with every kind of verdict and text that tries to break a page."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml

from shared.figures.save import save
from shared.figures.style import FULL_WIDTH, HALF_WIDTH, panel_labels, use_style
from shared.files import write_json, write_text

RECORD = {
    "paper": "toy_superposition",
    "commit": "3f2c1b0a9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f40",
    "dirty": False,
    "params": {"features": 20, "hidden": 5, "densities": [1.0, 0.3, 0.1], "optimizer": None},
    "params_hash": "9c1e02b7d4aa31f0",
    "seed": 0,
    "device": "Imaginary CPU @ 2.10GHz, 2 cores",
    "wall_seconds": 41.7,
    "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
    "inputs": "d41d8cd98f00b204e9800998ecf8427e",
}
LONG_CAPTION = (
    "A caption of some length, as a careful author writes it: what each axis holds, what each "
    "colour means, how many models stand behind a point and how they were chosen. "
) * 7 + "And at last, the reason <why> it is \"so\" long & so 'quoted'."
HOSTILE = (
    "<script>document.title = 'broken'</script> & \"quotes\" 'n' 100% of $x_i$ \\ {braces} ~^#"
)

CLAIMS = {
    "toy_superposition": [
        ("dense", "phase_diagram", "paper", {"value": 0.5, "abs": 0.02}, None),
        ("boundary", "phase_diagram", "derived", {"value": 0.4444, "abs": 0.001}, None),
        ("plateau", "dimensionality", "paper", {"value": 0.5, "abs": 0.02}, None),
        ("sums", "dimensionality", "reference_code", {"value": 20, "rel": 0.01}, None),
        ("ratio", "dimensionality", "paper", {"value": 2.5, "abs": 0.3}, "The exact loss crosses "
         "at 3.7 times, for any number of restarts; the paper's recipe, run as printed, agrees."),
        ("hexagon", "geometry", "recalled", {"min": 0.9}, None),
        ("lists", "geometry", "paper", {"monotone": "increasing"}, None),
        ("orphan", "not_drawn", "paper", {"max": 1}, None),
    ],
    "gated_sae": [
        ("broken", "pareto", "paper", {"min": 0.9, "max": 1}, None),
        ("above", "pareto", "paper", {"above": "a_rather_long_path.of.some_metric.in_the_file",
         "by": 0.1, "confidence": 0.95}, None),
        ("absent", "shrinkage", "paper", {"value": 1, "abs": 0.1}, None),
    ],
}  # fmt: skip
METRICS = {
    "toy_superposition": {
        "dense": 0.5031, "boundary": 0.4444, "plateau": 0.4981, "sums": 19.97, "ratio": 3.7,
        "hexagon": 0.42, "lists": [5, 7, 9, 10, 11, 13, 14], "orphan": 0.25,
    },
    "gated_sae": {
        "broken": 0.71, "above": [0.9, 0.91, 0.92, 0.93],
        "a_rather_long_path": {"of": {"some_metric": {"in_the_file": [0.6, 0.61, 0.6, 0.62]}}},
    },
}  # fmt: skip
FIGURES = {
    "toy_superposition": [
        ("phase_diagram", "Phase diagram of two features in one dimension", "short"),
        ("dimensionality", "Feature dimensionality against sparsity", "long"),
        ("geometry", HOSTILE, HOSTILE),
        ("unclaimed", "A figure without claims", "Nothing of this is stated as a number."),
    ],
    "gated_sae": [
        ("pareto", "Loss recovered against L0", "Gated lies above standard at every L0."),
        ("shrinkage", "Relative reconstruction bias", "The bias γ, best at 1."),
    ],
}
CAPTIONS = {
    "short": "Norm of the second feature (left) and interference (right) by density and relative "
    "importance. Theory in lines, trained models in colour; ten restarts a cell, the best shown.",
    "long": LONG_CAPTION,
}


def _draw(name: str):
    random = np.random.default_rng(len(name))
    with use_style():
        if name == "phase_diagram":
            fig, axes = plt.subplots(1, 2, figsize=(FULL_WIDTH, 2.4))
            for axis in axes:
                axis.pcolormesh(random.random((12, 12)).cumsum(0))
                axis.set(xlabel="1 / density", ylabel="relative importance")
            panel_labels(axes)
        else:
            width = FULL_WIDTH if name in ("dimensionality", "pareto") else HALF_WIDTH
            fig, axis = plt.subplots(figsize=(width, 2.5))
            for label in ("standard", "gated", "topk"):
                axis.plot(random.random(20).cumsum(), marker="o", label=label)
            axis.set(xlabel="sparsity", ylabel="dimensions per feature")
            axis.legend()
    return fig


def write_paper(root: Path, paper: str, year: int) -> None:
    folder = root / "papers" / paper
    about = {
        "title": f"The {paper.replace('_', ' ')} paper",
        "short": paper.replace("_", " "),
        "authors": ["Ada Example", "Bo Sample"],
        "year": year,
        "url": f"https://example.org/{paper}",
        "arxiv": "2209.10652" if year == 2022 else None,
        "bibtex": f"@article{{{paper}{year},\n  title = {{On {paper.replace('_', ' ')}}}\n}}\n",
    }
    claims = [
        {
            "id": name,
            "figure": figure,
            "statement": f"The {name} number is what the text says it is, <b>within</b> tolerance.",
            "source": {"place": f"section '{figure}'", "kind": kind},
            "metric": name,
            "expect": expect,
            "profiles": ["embedded"],
        }
        | ({"known_gap": gap} if gap else {})
        for name, figure, kind, expect, gap in CLAIMS[paper]
    ]
    write_text(folder / "paper.yaml", yaml.safe_dump(about))
    write_text(folder / "claims.yaml", yaml.safe_dump(claims))
    write_text(folder / "params.yaml", "profile: embedded\nembedded: {}\nsmoke: {}\n")


def write_results(root: Path, paper: str, profile: str) -> None:
    folder = root / "results" / paper / profile
    write_json(folder / "metrics.json", METRICS[paper])
    for name, title, caption in FIGURES[paper]:
        save(
            _draw(name),
            name,
            {"x": np.arange(3)},
            directory=folder / "figures",
            title=title,
            caption=CAPTIONS.get(caption, caption),
            original=f"Figure 7, section '{name.replace('_', ' ')}'",
            record=RECORD | {"profile": profile},
        )
