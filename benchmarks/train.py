"""Train every script on its environments, and keep what comes of it in results.csv: a row for each run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/train.py                       # all runs that have no row yet, two at a time
    python benchmarks/train.py ppo CartPole          # only those with both words in their command
    python benchmarks/train.py --dry-run             # say which these are

Interrupt it as you like: finished runs have their row, and one that was cut off begins anew. Each script runs as a user
would run it, with nothing but an environment, a budget and a seed. The baselines are in sb3.py.
"""

import csv
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results.csv"
FOLDER = ROOT / "runs/benchmark"

TASKS = [  # environment, seeds, steps of each script
    ("CartPole-v1", 20, {"vpg": 100_000, "a2c": 300_000, "trpo": 100_000, "ppo": 100_000, "dqn": 50_000}),
    ("Acrobot-v1", 10, {"vpg": 200_000, "a2c": 200_000, "trpo": 100_000, "ppo": 100_000, "dqn": 100_000}),
    ("Pendulum-v1", 10, {"vpg": 300_000, "a2c": 300_000, "trpo": 150_000, "ppo": 100_000}),
    ("MountainCarContinuous-v0", 10, {"vpg": 100_000, "a2c": 100_000, "trpo": 100_000, "ppo": 100_000}),
    ("InvertedPendulum-v5", 10, {"vpg": 100_000, "a2c": 100_000, "trpo": 100_000, "ppo": 100_000}),
    ("MountainCar-v0", 5, {"vpg": 120_000, "a2c": 120_000, "trpo": 120_000, "ppo": 120_000, "dqn": 120_000}),
    ("LunarLander-v3", 5, {"ppo": 1_000_000, "trpo": 1_000_000, "a2c": 1_000_000, "vpg": 1_000_000, "dqn": 300_000}),
    ("HalfCheetah-v5", 5, {"ppo": 1_000_000, "trpo": 1_000_000, "a2c": 1_000_000, "vpg": 1_000_000}),
]
BASELINES = {"ppo": (10, 100_000), "trpo": (10, 100_000), "a2c": (10, 500_000), "dqn": (10, 50_000)}  # seeds, steps
ABLATION = {  # of dqn.py on CartPole-v1, 10 seeds
    "no replay": "--buffer-size 64 --learning-starts 64",
    "no target network": "--tau 1",
    "online": "--num-envs 1 --num-steps 1 --gradient-steps 1 --buffer-size 1 --batch-size 1 --learning-starts 1"
    " --tau 1",
}
COLUMNS = "script env_id seed steps variant command commit versions machine seconds mean worst solved_step".split()
COLUMNS += "solved_seconds curve_step curve_seconds curve_return".split()


@dataclass(frozen=True)
class Job:
    """One run; variant names what differs from the script's defaults."""

    script: str
    env_id: str
    seed: int
    steps: int
    variant: str = ""
    flags: str = ""

    @property
    def command(self):
        budget = f"--total-timesteps {self.steps} --seed {self.seed}"
        if self.script.startswith("sb3-"):
            return f"python benchmarks/sb3.py --algorithm {self.script[4:]} {budget}"
        return f"python {self.script}.py --env-id {self.env_id} {budget} {self.flags}".strip()

    @property
    def folder(self):
        return FOLDER / "__".join([self.env_id, self.script + self.variant.replace(" ", "-"), str(self.seed), "x"])


def jobs():
    """All runs, in an order that fills the tables early."""
    for env_id, seeds, steps in TASKS:
        yield from (Job(script, env_id, seed, steps[script]) for script in steps for seed in range(1, seeds + 1))
        if env_id == "CartPole-v1":
            for variant, flags in ABLATION.items():
                yield from (Job("dqn", env_id, seed, steps["dqn"], variant, flags) for seed in range(1, 11))
            for name, (seeds, budget) in BASELINES.items():
                yield from (Job(f"sb3-{name}", env_id, seed, budget) for seed in range(1, seeds + 1))


def run(job):
    """Run a job in a folder of its own. Raises CalledProcessError."""
    shutil.rmtree(job.folder, ignore_errors=True)  # what an interrupted run left
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, *job.command.split()[1:], "--run-dir", str(job.folder)]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(argv, cwd=ROOT, env=os.environ | one_thread, check=True, capture_output=True, text=True)


def row(job, where):
    """The row of a finished run."""
    result = json.loads((job.folder / "eval.json").read_text())
    with open(job.folder / "metrics.csv", newline="") as file:
        names = "global_step", "seconds", "episodic_return"
        curve = [[float(line[name]) for name in names] for line in csv.DictReader(file) if line["episodic_return"]]
    threshold = gym.spec(job.env_id).reward_threshold
    solved = next((line for line in curve if threshold is not None and line[2] >= threshold), ["", "", ""])
    thin = np.array(curve)[np.unique(np.linspace(0, len(curve) - 1, 100).round().astype(int))].T  # 100 points of it
    found = [job.script, job.env_id, job.seed, job.steps, job.variant, job.command, *where, round(result["seconds"], 2)]
    found += [round(result["mean"], 2), round(min(result["returns"]), 2), *solved[:2]]
    return [*found, *(" ".join(f"{x:.6g}" for x in column) for column in thin)]


def here():
    """Commit, versions and machine, as they go into every row."""
    commit = subprocess.run(["git", "describe", "--always"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "*.py"], cwd=ROOT).returncode:
        commit += "-dirty"
    packages = "torch", "gymnasium", "numpy", "mujoco", "stable_baselines3", "sb3_contrib"
    versions = [f"python {platform.python_version()}"]
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    return (
        commit,
        ", ".join(versions),
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    )


def main(
    words: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    workers: int = 2,
    dry_run: bool = False,
):
    """Train what has no row in results.csv yet.

    Args:
        words: only runs whose command contains all of these
        workers: runs at a time
        dry_run: print the commands only
    """
    if not RESULTS.exists():
        RESULTS.write_text(",".join(COLUMNS) + "\n")
    with open(RESULTS, newline="") as file:
        done = {line["command"] for line in csv.DictReader(file)}
    missing = [job for job in jobs() if job.command not in done and all(word in job.command for word in words)]
    if dry_run:
        print(*(job.command for job in missing), sep="\n")
        return
    where, lock, failures = here(), threading.Lock(), []

    def work(job):
        try:
            run(job)
        except subprocess.CalledProcessError as error:
            failures.append(f"{job.command}\n{error.stderr[-500:]}")
            return
        with lock, open(RESULTS, "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row(job, where))

    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(missing), unit="run") as bar:
        for _ in pool.map(work, missing):
            bar.update()
    if failures:
        sys.exit("\n".join(["failed:", *failures]))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
