"""Measure how ppo.py scales: more environments, environments in processes of their own, more workers.

    python benchmarks/scale.py                       # all cases; each replaces its rows in scale.csv
    python benchmarks/scale.py --only workers        # cases whose name contains a word
    python benchmarks/plot.py --readme               # then the tables and the picture in benchmarks/README.md

The settings of a case are measured in turn, each in a process of its own, as speed.py does: one thread, and steps per
second after the first quarter of the steps. The peak memory is that of the largest process. With more environments,
ppo.py runs on one core, and torchrun's workers on a core each. The case with environments in processes of their own
runs on all cores. `taskset` limits what "all" and "the last core", the one for a single process, are.
"""

import os
import runpy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro
from speed import ROOT, cores, environment, flags, here, read_points, steady_speed, store, use, versions

SCALES = ROOT / "benchmarks/scale.csv"
ROLLOUT = 2_048  # steps, as with the defaults of ppo.py
CHEETAH = {"env_id": "HalfCheetah-v5", "num_envs": 8, "num_steps": 256, "total_timesteps": 20 * ROLLOUT}
SLOW = {"env_id": "slow:Slow-v0", "num_envs": 8, "num_steps": 64, "total_timesteps": 4_096}
CASES = {  # flags of ppo.py, for each case and setting
    "environments": {
        str(n): {"env_id": "CartPole-v1", "num_envs": n, "num_steps": ROLLOUT // n, "total_timesteps": 48 * ROLLOUT}
        for n in (1, 4, 16, 64, 256)
    },
    "HalfCheetah-v5": {"sync": CHEETAH, "async": CHEETAH | {"async_envs": True}},
    "slow:Slow-v0": {"sync": SLOW, "async": SLOW | {"async_envs": True}},
    "workers": {str(n): {"env_id": "CartPole-v1", "total_timesteps": 48 * ROLLOUT * n} for n in (1, 2)},
}


def argv_of(case, setting):
    """The command of a setting."""
    script = [ROOT / "ppo.py", *flags(CASES[case][setting] | {"eval_episodes": 1, "run_dir": "run"})]
    if case != "workers":
        return [sys.executable, *script]
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", setting
    return [sys.executable, *torchrun, __file__, *script]


def worker():
    """One of torchrun's workers: take a core, then do what the rest of the command line says."""
    allowed = cores()
    use([allowed[-1 - int(os.environ["LOCAL_RANK"]) % len(allowed)]])
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


def run(argv, folder):
    """Run a command in a folder; returns the peak memory of its largest process in MiB. Exits if it fails."""
    env = environment(ROOT, ROOT / "benchmarks")
    with open(Path(folder, "output"), "w+") as output:
        process = subprocess.Popen(list(map(str, argv)), cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"failed: {process.args}\n{output.read()[-1_000:]}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def measure(case, setting, allowed):
    """Steps per second and MiB of one run."""
    use(allowed if case != "environments" else allowed[-1:])
    with tempfile.TemporaryDirectory() as folder:
        memory = run(argv_of(case, setting), folder)
        return round(steady_speed(read_points(Path(folder, "run")))), round(memory)


def main(rounds: int = 3, only: str = ""):
    """Measure and write scale.csv.

    Args:
        rounds: measurements of each setting
        only: cases whose name contains this
    """
    allowed = cores()
    origin = here() | {"versions": versions(sys.executable, ("torch", "gymnasium", "numpy", "mujoco"))}
    for case, settings in CASES.items():
        if only not in case:
            continue
        if case == "workers" and len(allowed) < len(settings):
            print(f"scale.py: {len(settings)} workers on {len(allowed)} core", file=sys.stderr)
        rows = []
        for number in range(1, rounds + 1):
            for setting in settings:
                speed, memory = measure(case, setting, allowed)
                row = {"case": case, "setting": setting, "round": number, "steps_per_second": speed}
                rows.append(row | {"peak_mib": memory, **origin})
        store(SCALES, rows, "case")
        for setting in settings:
            speeds = [row["steps_per_second"] for row in rows if row["setting"] == setting]
            print(f"{case}, {setting}: {statistics.median(speeds):,.0f} steps/s")


if __name__ == "__main__":
    worker() if "LOCAL_RANK" in os.environ else tyro.cli(main, description=__doc__)
