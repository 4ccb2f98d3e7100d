"""Run a sweep on a real Slurm of one node, started for it, and compare it with a sweep here.

    PYTHONPATH=. python tests/slurm_cluster.py

The command that waits is interrupted, and given again, which must start no job twice; a task is
killed midway, which must be reported; and given once more it must end with the bytes of a sweep in
one process. Slurm and munge are Debian's packages slurm-wlm and munge, which root gets installed;
both are stopped at the end. `nox -s cluster` does all of it.
"""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import yaml
from daemons import daemon, free_ports, install, until

from shared.features.sweep import JOBS, LOGS, Run, Settings, runs
from shared.files import read_json
from shared.saes.weights import TENSORS

PACKAGES = ("munge", "slurm-wlm")
COMMANDS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
RECIPE = {
    "model": "one_layer_a",
    "hook": "blocks.0.resid_post",
    "length": 64,
    "architecture": "topk",
    "sae": {"d_sae": 64, "k": 4},
    "batch": 256,
    "steps": 30,
    "lr": 0.003,
}
VARY = {"sae.k": [2, 4, 8], "lr": [0.002, 0.004]}
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def answers(*command: str) -> bool:
    """Whether a command ends well."""
    return subprocess.run(command, capture_output=True).returncode == 0


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Run Slurm on this machine alone, its state in a folder; SLURM_CONF points to it."""
    host = socket.gethostname().split(".")[0]
    given = {"user": getpass.getuser(), "host": host, "cpus": os.cpu_count()}
    text = CONFIGURATION.format(folder=folder, ports=free_ports(2), **given)
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    subprocess.run(["mungekey", "--create", f"--keyfile={folder}/munge.key"], check=True)
    key = f"--key-file={folder}/munge.key"
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")]
    with ExitStack() as daemons:
        sock = folder / "munge.socket"
        munged = ("munged", "--foreground", "--force", f"--socket={sock}", key, *files)
        daemons.enter_context(daemon(folder, *munged))
        until("munge", lambda: answers("munge", "--no-input", f"--socket={sock}"), 30)
        daemons.enter_context(daemon(folder, "slurmctld", "-D"))
        until("slurmctld", lambda: answers("scontrol", "ping"), 60)
        daemons.enter_context(daemon(folder, "slurmd", "-D", "-N", host))
        idle = ("sinfo", "--noheader", "--format=%t")
        until("node", lambda: subprocess.check_output(idle, text=True).strip() == "idle", 60)
        try:
            yield
        finally:
            subprocess.run(["scancel", "--me"], check=False)


def process(job: str) -> psutil.Process:
    """Return the process that computes a job of an array."""
    for one in psutil.process_iter(["cmdline"]):
        words = one.info["cmdline"] or []
        if words[:1] == [sys.executable] and "submitit.core._submit" in words:
            found = one.environ()
            if f"{found['SLURM_ARRAY_JOB_ID']}_{found['SLURM_ARRAY_TASK_ID']}" == job:
                return one
    sys.exit(f"job {job} has no process")


def heed_ctrl_c() -> None:
    """Take what Ctrl-C sends; processes that a shell starts in the background would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Sweep:
    """The sweep as a person runs it, into a folder of its own."""

    def __init__(self, folder: Path, name: str, *options: str):
        self.into = folder / name
        recipe = folder / "recipe.yaml"
        vary = [f"{field}={','.join(map(str, values))}" for field, values in VARY.items()]
        words = [word for one in vary for word in ("--vary", one)]
        self.command = [sys.executable, "-m", "shared.cli", "sweep", str(recipe), *words]
        self.command += ["--into", str(self.into), "--threads", "1", *options]
        self.runs: list[Run] = runs(recipe, VARY, self.into, Settings())

    def start(self) -> subprocess.Popen[bytes]:
        """Give the command."""
        print("$ sae", *self.command[3:], flush=True)
        return subprocess.Popen(self.command, preexec_fn=heed_ctrl_c)

    def finish(self, process: subprocess.Popen[bytes], code: int) -> list[str]:
        """Wait for a command, and return the statuses. Exits unless it ends with this code."""
        if (left := process.wait()) != code:
            sys.exit(f"exit code {left}, not {code}")
        return [run["status"] for run in read_json(self.into / "sweep.json")["runs"]]

    def jobs(self) -> dict[str, str]:
        """Return the jobs that Slurm was given last, by run."""
        path = self.into / LOGS / JOBS
        return read_json(path) if path.exists() else {}


def main() -> None:
    """Do it all. Exits with a line where something is not as it should be."""
    install(COMMANDS, PACKAGES)
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, slurm(Path(name)):
        folder = Path(name)
        texts = [path.read_text(encoding="utf-8") for path in sorted(Path("papers").glob("*/*.md"))]
        (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
        recipe = {**RECIPE, "text": str(folder / "text.txt")}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

        # A checkpoint after every step, so that there is one before the kill.
        sweep = Sweep(folder, "cluster", "--on", "slurm", "--at-most", "2", "--every", "0")
        first = sweep.start()
        until("jobs", lambda: bool(sweep.jobs()))
        first.send_signal(signal.SIGINT)
        if (left := first.wait()) != 130:
            sys.exit(f"exit code {left} after Ctrl-C")
        jobs = sweep.jobs()
        print(f"interrupted; jobs: {json.dumps(jobs)}")

        second = sweep.start()
        *others, killed = sweep.runs
        until("checkpoint", lambda: killed.steps() >= 2)
        process(jobs[killed.name]).kill()  # scancel would give it half a minute to end
        statuses = sweep.finish(second, 1)
        print(f"killed {killed.name}, which stands at step {killed.steps()}")
        if statuses.index("failed") != len(others) or sweep.jobs() != jobs:
            sys.exit(f"{statuses} with jobs {sweep.jobs()}: one should have failed, none be new")

        statuses = sweep.finish(sweep.start(), 0)
        if statuses != [*("adopted" for _ in others), "trained"]:
            sys.exit(f"{statuses}: all but the killed one should be adopted")

        alone = Sweep(folder, "alone")
        alone.finish(alone.start(), 0)
        for one, other in zip(sweep.runs, alone.runs, strict=True):
            same = (one.folder / TENSORS).read_bytes() == (other.folder / TENSORS).read_bytes()
            print(f"{one.name}: {'the same bytes' if same else 'OTHER BYTES'}")
            if not same:
                sys.exit(f"{one.name} differs from the run in one process")


if __name__ == "__main__":
    main()
