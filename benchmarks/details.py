"""What each departure from the papers is worth: switched off alone, in four environments, on five seeds.

    pip install -r benchmarks/requirements.txt
    python benchmarks/details.py                     # all runs that have no row in details.csv yet, two at a time
    python benchmarks/details.py ppo Pendulum-v1     # only those with both words in their row
    python benchmarks/plot.py --readme               # the tables of docs/details.md

A departure is switched off by flags or, where no flag does it, by an edit of a copy of the script. The seeds were not
used to choose the defaults. It can be interrupted at any time.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import tyro
from tqdm import tqdm
from train import ROOT, append, here, rows_of  # beside this file

TABLE = ROOT / "benchmarks/details.csv"
FOLDER = ROOT / "runs/details"
SEEDS = range(401, 406)
LATER_SEEDS = range(601, 606)  # of ddpg.py: when its defaults were chosen, the results of seeds up to 420 were known

# Short budgets: on the robots, the scripts learn more later.
FAST = {"CartPole-v1": 100_000, "Acrobot-v1": 100_000, "MountainCarContinuous-v0": 200_000, "Pendulum-v1": 300_000}
ROBOT = {"CartPole-v1": 50_000, "LunarLander-v3": 200_000, "Pendulum-v1": 100_000, "HalfCheetah-v5": 200_000}
VALUES = {"CartPole-v1": 50_000, "Acrobot-v1": 50_000, "MountainCar-v0": 100_000, "LunarLander-v3": 100_000}
CONTINUOUS = {"Pendulum-v1": 10_000, "MountainCarContinuous-v0": 20_000, "InvertedPendulum-v5": 20_000}
CONTINUOUS |= {"HalfCheetah-v5": 30_000}
ENVIRONMENTS = {"vpg": FAST, "a2c": FAST | {"Pendulum-v1": 500_000}, "trpo": ROBOT, "ppo": ROBOT, "dqn": VALUES}
ENVIRONMENTS |= {"ddpg": CONTINUOUS, "sac": CONTINUOUS}

# Flags, or a text that stands in the script once and what replaces it. What the policy
# gradients share is measured in ppo.py, what ddpg.py and sac.py share in ddpg.py.
STATISTICS = {"observations not scaled": "--no-norm-obs", "rewards not scaled": "--no-norm-reward"}
NETWORKS = {
    "a constant learning rate": "--no-anneal-lr",
    "gradients not clipped": "--max-grad-norm inf",
    "torch's own initialization": (
        "    nn.init.orthogonal_(layer.weight, gain)\n    nn.init.zeros_(layer.bias)\n",
        "",
    ),
}
TIME_LIMITS = {
    "time limits as terminal states": (
        "        done = terminated | truncated\n",
        "        done = terminated = terminated | truncated\n",
    )
}
SQUARED = {"squared error": ("functional.huber_loss(", "functional.mse_loss(")}
ONE_STEP = {"one-step returns": "--n-step 1"}
VARIANTS = {
    "vpg": {
        "psi not standardized": ("(batch.psi.std() + ADV_STD_EPS)", "1"),
        "lambda 0.95": "--gae-lambda 0.95",
        "lambda 1": "--gae-lambda 1",
    },
    "a2c": {
        "advantages not standardized": ("(batch.adv.std() + ADV_STD_EPS)", "1"),
        "n-step returns (lambda 1)": "--gae-lambda 1",
        "one learning rate": ("critic_rate / 4 if agent.images else critic_rate", "learning_rate"),
        "no entropy bonus": "--discrete-ent-coef 0",
    },
    "trpo": {"a constant delta": "--no-anneal-kl", "lambda 0.95": "--gae-lambda 0.95"},
    "ppo": STATISTICS
    | NETWORKS
    | TIME_LIMITS
    | {
        "advantages not standardized": ("(minibatch.adv.std() + ADV_STD_EPS)", "1"),
        "standardized with 1e-8 in place of 0.1": ("ADV_STD_EPS = 0.1", "ADV_STD_EPS = 1e-8"),
        "lambda 0.95": "--gae-lambda 0.95",
        "initial standard deviation 1": ("0.5 - 0.75 * math.log(outputs)", "0.0"),
        "the mean of bounded actions without tanh": ("out.tanh() if self.bounded else out", "out"),
    },
    "dqn": STATISTICS
    | SQUARED
    | ONE_STEP
    | {"one network chooses and values": "--no-double-q", "periodic target": "--tau 1 --target-interval 500"},
    "ddpg": STATISTICS
    | SQUARED
    | ONE_STEP
    | {
        "a constant learning rate": "--no-anneal-lr",
        "one critic": "--no-twin-q",
        "no delay": "--policy-delay 1",
        "no noise on targets": "--target-noise 0",
        "noise drawn anew in each step": "--noise-hold 1",
    },
    "sac": {"three-step returns": "--n-step 3", "alpha from 1": "--alpha 1", "a constant alpha": "--no-tune-alpha"},
}


def edited(script, old, new):
    """The script's text with one edit. Raises ValueError unless the old text stands in it exactly once."""
    text = (ROOT / f"{script}.py").read_text()
    if text.count(old) != 1:
        raise ValueError(f"{script}.py: not exactly once: {old}")
    return text.replace(old, new)


def jobs():
    """Keys of all runs."""
    for script, variants in VARIANTS.items():
        for variant in ["", *variants]:
            for env_id, steps in ENVIRONMENTS[script].items():
                for seed in LATER_SEEDS if script == "ddpg" else SEEDS:
                    yield {"script": script, "variant": variant, "env_id": env_id, "steps": steps, "seed": seed}


def run(key):
    """Train; returns the row of the run. Raises CalledProcessError."""
    script, variant, env_id, steps, seed = key.values()
    change = VARIANTS[script].get(variant, "")
    folder = FOLDER / f"{script}-{variant.replace(' ', '-').replace(chr(39), '')}-{env_id}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path, flags = f"{script}.py", change
    if isinstance(change, tuple):
        path, flags = folder / f"{script}.py", ""
        path.write_text(edited(script, *change))
    argv = [sys.executable, path, "--env-id", env_id, "--total-timesteps", steps, "--seed", seed, *flags.split()]
    argv += ["--eval-episodes", 20, "--run-dir", folder / "run"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, argv)], cwd=ROOT, env=env, capture_output=True, text=True)
    if "not finite" in done.stderr:
        return key | {"mean": "nan"}
    done.check_returncode()
    return key | {"mean": round(json.loads((folder / "run/eval.json").read_text())["mean"], 2)}


def main(words: tyro.conf.Positional[tuple[str, ...]] = (), /, workers: int = 2):
    """Train what has no row in details.csv yet.

    Args:
        words: only runs whose row has all of these
        workers: runs at a time
    """
    done = [{name: row[name] for name in row if name not in {"mean", "commit"}} for row in rows_of(TABLE)]
    wanted = [key for key in jobs() if set(words) <= {str(x) for x in key.values()}]
    missing = [key for key in wanted if {name: str(x) for name, x in key.items()} not in done]
    commit, lock = here()["commit"], threading.Lock()

    def work(key):
        row = run(key)
        with lock:
            append(TABLE, row | {"commit": commit})

    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(missing), unit="run") as bar:
        for _ in pool.map(work, missing):
            bar.update()


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
