"""Train every script on its environments; each run adds a row to results.csv and one to curves.csv.

    pip install -r benchmarks/requirements.txt
    python benchmarks/train.py                       # all runs that have no row yet, two at a time
    python benchmarks/train.py ppo CartPole          # only those with both words in their command
    python benchmarks/train.py --dry-run             # print their commands only

It can be interrupted at any time: finished runs have their rows, and an interrupted run starts over. Each script is run
as a user would run it, with nothing but an environment, a budget and a seed, except where dqn.py goes without replay or
target network; Atari games also run in their own processes, for speed. Where an episode is cheap, the final evaluation
takes 100 of them. The seeds were not used to choose the defaults. The baselines are in sb3.py.
"""

import contextlib
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
CURVES = ROOT / "benchmarks/curves.csv"
FOLDER = ROOT / "runs/benchmark"

FIRST_SEED = 101  # seeds 1 to 100 are for choosing defaults; later ones are run once, when the choice is made
TIMED = 1101  # first of ten seeds on CartPole-v1 that are timed together
# Where a choice was made again, with the results of earlier seeds known, or a script was rewritten, it is a later seed.
REWRITTEN = 1001  # of vpg.py, a2c.py, trpo.py, ppo.py and dqn.py, in November 2026
FRESH = {("a2c", env): 1101 for env in ("Pendulum-v1", "MountainCarContinuous-v0")}
FRESH |= {("ddpg", "Pendulum-v1"): 501, ("ddpg", "MountainCarContinuous-v0"): 501}
FRESH |= {("ddpg", "HalfCheetah-v5"): 201, ("sac", "HalfCheetah-v5"): 201}
FRESH |= {("sac", "Pendulum-v1"): 301, ("sac", "MountainCarContinuous-v0"): 301}
M = 1_000_000
TASKS = [  # environment, seeds, episodes of the final evaluation, steps of each script
    ("CartPole-v1", 100, 100, {"vpg": 100_000, "a2c": 200_000, "trpo": 100_000, "ppo": 100_000, "dqn": 50_000}),
    ("Acrobot-v1", 10, 100, {"vpg": 200_000, "a2c": 200_000, "trpo": 100_000, "ppo": 100_000, "dqn": 100_000}),
    ("Pendulum-v1", 10, 100, {"vpg": 300_000, "a2c": 500_000, "trpo": 150_000, "ppo": 100_000}),
    ("MountainCarContinuous-v0", 10, 100, {"vpg": 200_000, "a2c": 200_000, "trpo": 100_000, "ppo": 100_000}),
    ("InvertedPendulum-v5", 10, 10, {"vpg": 500_000, "a2c": 500_000, "trpo": 100_000, "ppo": 100_000}),
    ("MountainCar-v0", 5, 100, {"vpg": 120_000, "a2c": 120_000, "trpo": 120_000, "ppo": 120_000, "dqn": 120_000}),
    ("LunarLander-v3", 5, 10, {"vpg": M, "a2c": M, "trpo": M, "ppo": M, "dqn": 300_000}),
    ("HalfCheetah-v5", 5, 10, {"vpg": M, "a2c": M, "trpo": M, "ppo": M}),
    ("Walker2d-v5", 5, 10, {"trpo": M, "ppo": M}),
    ("Reacher-v5", 5, 10, {"trpo": M, "ppo": M}),
    ("Ant-v5", 5, 10, {"trpo": M, "ppo": M}),
    ("ALE/Pong-v5", 1, 10, {"ppo": 700_000}),  # about 2 hours
]
TASKS += [
    ("Pendulum-v1", 20, 100, {"ddpg": 20_000, "sac": 20_000}),
    ("MountainCarContinuous-v0", 10, 100, {"ddpg": 50_000, "sac": 50_000}),
    ("InvertedPendulum-v5", 10, 10, {"ddpg": 50_000, "sac": 50_000}),
    ("LunarLanderContinuous-v3", 3, 10, {"ddpg": 300_000, "sac": 300_000}),
    ("BipedalWalker-v3", 3, 10, {"ddpg": 300_000, "sac": 300_000}),
    ("HalfCheetah-v5", 3, 10, {"ddpg": 300_000, "sac": 300_000}),
    ("Walker2d-v5", 3, 10, {"ddpg": 300_000, "sac": 300_000}),
]
GAMES = ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"]
TASKS += [(f"benchmarks.games:MinAtar/{game}-v1", 3, 100, {"ppo": M, "dqn": M}) for game in GAMES]
FRESH |= {("dqn", f"benchmarks.games:MinAtar/{game}-v1"): 1011 for game in GAMES}
BASELINES = {"ppo": 100_000, "trpo": 100_000, "a2c": 500_000, "dqn": 50_000}  # steps, on CartPole-v1, 10 seeds
PLAIN = "--n-step 1 --no-double-q"  # a short buffer has no long returns; without a target network, both networks agree
ABLATION = {  # of dqn.py on CartPole-v1, 10 seeds
    "replay and target network": PLAIN,
    "no target network": f"{PLAIN} --tau 1",
    "no replay": f"{PLAIN} --buffer-size 64 --learning-starts 64",
    "neither": "--num-envs 1 --num-steps 1 --gradient-steps 1 --buffer-size 1 --batch-size 1 --learning-starts 1"
    " --tau 1",
}
POINTS = 30  # kept of each learning curve


@dataclass(frozen=True)
class Job:
    """One run; variant names the difference from the script's defaults, flags sets it."""

    script: str
    env_id: str
    seed: int
    steps: int
    variant: str = ""
    flags: str = ""
    episodes: int = 10  # of the final evaluation

    @property
    def command(self):
        budget = f"--total-timesteps {self.steps} --seed {self.seed}"
        if self.script.startswith("sb3-"):
            return f"python benchmarks/sb3.py --algorithm {self.script[4:]} {budget}"
        evaluation = "" if self.episodes == 10 else f" --eval-episodes {self.episodes}"
        return f"python {self.script}.py --env-id {self.env_id} {budget}{evaluation} {self.flags}".strip()

    @property
    def folder(self):
        name = self.script + self.variant.replace(" ", "-")
        return FOLDER / f"{self.env_id.replace('/', '-')}__{name}__{self.seed}__x"


def is_atari(env_id):
    return env_id.startswith("ALE/")


def jobs():
    """All runs, environment by environment."""
    for env_id, count, episodes, steps in TASKS:
        for script, budget in steps.items():
            first = FRESH.get((script, env_id), FIRST_SEED if script in ("ddpg", "sac") else REWRITTEN)
            flags = "--async-envs" if is_atari(env_id) else ""  # the same numbers, faster
            yield from (Job(script, env_id, first + i, budget, flags=flags, episodes=episodes) for i in range(count))
    for i in range(10):  # timed together, on CartPole-v1; dqn.py is also what the ablation is compared with
        for script, budget in TASKS[0][3].items():
            yield Job(script, "CartPole-v1", TIMED + i, budget, "timed", episodes=100)
        for variant, flags in ABLATION.items():
            yield Job("dqn", "CartPole-v1", TIMED + i, 50_000, variant, flags)
        for name, budget in BASELINES.items():
            yield Job(f"sb3-{name}", "CartPole-v1", TIMED + i, budget)
    yield Job("sac", "HalfCheetah-v5", 204, M, "1M")  # about an hour


def run(job):
    """Run a job in its own folder. Raises CalledProcessError."""
    shutil.rmtree(job.folder, ignore_errors=True)  # left by an interrupted run
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, *job.command.split()[1:], "--run-dir", str(job.folder)]
    threads = "2" if is_atari(job.env_id) else "1"  # only convolutions are faster with two
    env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    subprocess.run(argv, cwd=ROOT, env=env, check=True, capture_output=True, text=True)


def read_curve(folder):
    """Rows of metrics.csv from the first finished episode on: step, seconds, mean return of the last 20 episodes."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["episodic_return"]]
    return [
        {
            "step": int(float(row["global_step"])),
            "seconds": float(row["seconds"]),
            "return": float(row["episodic_return"]),
        }
        for row in rows
    ]


def threshold_of(env_id):
    """Mean return at which Gymnasium calls an environment solved, or None; games have none."""
    return None if "/" in env_id else gym.spec(env_id).reward_threshold


def result_row(job, curve, origin):
    """The row of results.csv of a finished run; origin: what `here` returns."""
    result = json.loads((job.folder / "eval.json").read_text())
    threshold = threshold_of(job.env_id)
    solved = [] if threshold is None else [point for point in curve if point["return"] >= threshold]
    return {
        "script": job.script,
        "env_id": job.env_id,
        "seed": job.seed,
        "steps": job.steps,
        "variant": job.variant,
        "mean": round(result["mean"], 2),
        "worst_episode": round(min(result["returns"]), 2),
        "seconds": round(result["seconds"], 2),
        "solved_step": solved[0]["step"] if solved else "",
        "solved_seconds": round(solved[0]["seconds"], 3) if solved else "",
        **origin,
        "command": job.command,
    }


def curve_row(job, curve):
    """The row of curves.csv of a finished run: POINTS of its curve, evenly spaced."""
    spaced = np.linspace(0, len(curve) - 1, POINTS).round().astype(int)
    points = [curve[i] for i in np.unique(spaced)]
    return {
        "command": job.command,
        "step": " ".join(str(point["step"]) for point in points),
        "seconds": " ".join(f"{point['seconds']:.4g}" for point in points),
        "return": " ".join(f"{point['return']:.5g}" for point in points),
    }


def append(path, row):
    """Add a row to a table; a new table starts with the names of its columns."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def rows_of(path):
    """Rows of a table, none if it is not there."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def here():
    """Commit, machine and versions, for new rows."""
    found = subprocess.run(["git", "describe", "--always"], cwd=ROOT, capture_output=True, text=True)
    commit = found.stdout.strip()
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "*.py"], cwd=ROOT).returncode:
        commit += "-dirty"
    versions = [f"python {platform.python_version()}"]
    for name in ("torch", "gymnasium", "numpy", "mujoco", "stable_baselines3", "sb3_contrib", "sbx_rl", "jax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {"commit": commit, "machine": machine, "versions": ", ".join(versions)}


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
    done = {row["command"] for row in rows_of(RESULTS)}
    wanted = [job for job in jobs() if all(word in job.command for word in words)]
    missing = [job for job in wanted if job.command not in done]
    if dry_run:
        print(*(job.command for job in missing), sep="\n")
        return
    origin, lock, failures = here(), threading.Lock(), []

    def work(job):
        try:
            run(job)
        except subprocess.CalledProcessError as error:
            failures.append(f"{job.command}\n{error.stderr[-500:]}")
            return
        curve = read_curve(job.folder)
        with lock:  # the curve first: a run without a row in results.csv is repeated
            append(CURVES, curve_row(job, curve))
            append(RESULTS, result_row(job, curve, origin))

    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(missing), unit="run") as bar:
        for _ in pool.map(work, missing):
            bar.update()
    if failures:
        sys.exit("\n".join(["failed:", *failures]))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
