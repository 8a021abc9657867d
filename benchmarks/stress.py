"""Campaigns that take too long for the tests: torchrun's workers, their exits, and memory. Each prints what it finds.

    python benchmarks/stress.py learn   # every deep script with 2 and 4 workers, CartPole-v1
    python benchmarks/stress.py exits   # 200 short runs of two workers
    python benchmarks/stress.py memory  # ppo.py and dqn.py over 2 million steps

The first two need two cores, or they take longer.
"""

import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import psutil
import tyro
from speed import ROOT, environment, flags
from train import TASKS

STEPS = TASKS[0][-1]  # of each script on CartPole-v1
ENVS = {"vpg": 8, "a2c": 8, "trpo": 16, "ppo": 16, "dqn": 8}  # of all workers together: the defaults
MEMORY_STEPS = 2_000_000


def start(script, folder, named, workers=1):
    """Start a script in a folder, with torchrun if there are several workers."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"] if workers > 1 else []
    argv = [sys.executable, *launcher, str(ROOT / f"{script}.py"), *flags(named | {"run_dir": "run"})]
    with open(Path(folder, "output"), "w") as output:
        return subprocess.Popen(argv, cwd=folder, env=environment(), stdout=output, stderr=subprocess.STDOUT)


def learn(seed):
    """Mean return after training with 2 and 4 workers; the environments are divided among the workers."""
    for script, steps in STEPS.items():
        for workers in 2, 4:
            named = {"seed": seed, "total_timesteps": steps, "num_envs": ENVS[script] // workers, "eval_episodes": 100}
            with tempfile.TemporaryDirectory() as folder:
                status = start(script, folder, named, workers).wait()
                result = json.loads(Path(folder, "run/eval.json").read_text())
            print(f"{script}.py, {workers} workers: exit status {status}, {result['mean']:.1f}", end=" ")
            print(f"after {result['global_step']:,} steps", flush=True)


def exits(runs):
    """Exit status of short runs with two workers, two at a time."""

    def status(_):
        with tempfile.TemporaryDirectory() as folder:
            code = start("ppo", folder, {"total_timesteps": 8_192, "eval_episodes": 1}, workers=2).wait()
            return code, Path(folder, "run/eval.json").exists()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(status, range(runs)))
    print(f"{found.count((0, True))} of {runs} runs of two workers ended with exit status 0 and an eval.json")


def memory():
    """MiB in use at parts of a long run, which the seconds of its process tell."""
    for script in "ppo", "dqn":
        with tempfile.TemporaryDirectory() as folder:
            process = start(script, folder, {"total_timesteps": MEMORY_STEPS})
            used = []
            while process.poll() is None:
                used.append(psutil.Process(process.pid).memory_info().rss / 2**20)
                time.sleep(1)
        parts = 0.1, 0.25, 0.5, 0.75, 0.95
        used = ", ".join(f"{used[int(part * len(used))]:.0f} ({part:.0%})" for part in parts)
        print(f"{script}.py, MiB in use over {MEMORY_STEPS:,} steps: {used}; exit status {process.returncode}")


def main(campaign: tyro.conf.Positional[Literal["learn", "exits", "memory"]], /, seed: int = 101, runs: int = 200):
    """Run a campaign.

    Args:
        campaign: what to try
        seed: of learn
        runs: of exits
    """
    {"learn": lambda: learn(seed), "exits": lambda: exits(runs), "memory": memory}[campaign]()


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
