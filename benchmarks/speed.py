"""Measure steps per second on CartPole-v1: our scripts, other libraries at the same settings, and a floor.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                        # all cases; each replaces its rows in speed.csv
    python benchmarks/speed.py --only ppo --rounds 1  # cases whose name contains a word
    python benchmarks/speed.py --solve                # seconds from a command to its result, in solve.csv
    python benchmarks/plot.py --readme                # then the tables in benchmarks/README.md

The libraries are Stable-Baselines3 (TRPO: sb3-contrib), SBX, which is the same in JAX, and CleanRL, of which --cleanrl
names a clone and --cleanrl-python a Python that has what it needs. One that is not there is left out.

A round measures them one after the other, each in a process of its own, on one core and with one thread. The first
quarter of the steps is not counted, because it includes what happens once: imports, compilation, a replay buffer that
fills. The floor is the time of what no implementation can leave out: the environments' steps, and as many bare forward,
backward and optimizer calls as the algorithm needs, on networks and batches of the same size.

Some differences remain. Our scripts normalize observations and rewards, the others do not. Our dqn.py has tanh where
the others have ReLU, and both layers of SBX's network for DQN are as wide as the first one of the others.
"""

import csv
import importlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import tyro
from train import BASELINES, here  # beside this file

ROOT = Path(__file__).parent.parent
SPEEDS, SOLVED = ROOT / "benchmarks/speed.csv", ROOT / "benchmarks/solve.csv"
ENV_ID, VECTOR, ACTIONS = "CartPole-v1", 4, 2  # size of an observation, number of actions
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ONE_THREAD |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}

COMMON = "torch", "gymnasium", "numpy"
PACKAGES = {  # of which a row gives the versions, for each peer, in the order of a round
    "ours": COMMON,
    "sb3": (*COMMON, "stable-baselines3", "sb3-contrib"),
    "sbx": ("jax", "gymnasium", "numpy", "stable-baselines3", "sbx-rl"),
    "cleanrl": COMMON,
    "floor": COMMON,
}
SBX_HAS = "ppo", "dqn"  # of our algorithms
SOLVERS = ["vpg", "a2c", "trpo", "ppo", "dqn", *(f"sb3-{name}" for name in BASELINES)]
SEEDS = range(101, 111)  # of --solve; not those on which the defaults were chosen


@dataclass(frozen=True)
class Case:
    """The same settings for each: flags of our script, arguments of Stable-Baselines3 and SBX, flags of CleanRL."""

    script: str
    steps: int  # of a measurement
    flags: dict
    arguments: dict
    cleanrl: dict | None = None  # None: CleanRL's script cannot do it


ONE_STEP_DQN = {"num_envs": 1, "n_step": 1, "double_q": False, "anneal_lr": False, "tau": 1.0}
CASES = {
    # Our defaults: 16 environments, rollouts of 128 steps, 8 epochs of 8 minibatches of 256.
    "ppo": Case(
        "ppo",
        98_304,
        {"num_envs": 16, "num_steps": 128, "num_minibatches": 8, "update_epochs": 8},
        {"n_steps": 128, "batch_size": 256, "n_epochs": 8, "learning_rate": 1e-3},
        {"num_envs": 16, "num_steps": 128, "num_minibatches": 8, "update_epochs": 8}
        | {"learning_rate": 1e-3, "ent_coef": 0.0},
    ),
    # 4 environments, rollouts of 128 steps, 4 epochs of 4 minibatches of 128.
    "ppo, CleanRL's settings": Case(
        "ppo",
        65_536,
        {"num_envs": 4, "num_steps": 128, "num_minibatches": 4, "update_epochs": 4}
        | {"learning_rate": 2.5e-4, "ent_coef": 0.01},
        {"n_steps": 128, "batch_size": 128, "n_epochs": 4, "learning_rate": 2.5e-4, "ent_coef": 0.01},
        {"num_envs": 4, "num_steps": 128, "num_minibatches": 4, "update_epochs": 4}
        | {"learning_rate": 2.5e-4, "ent_coef": 0.01},
    ),
    # 8 environments, rollouts of 5 steps, one gradient step on each.
    "a2c": Case(
        "a2c",
        64_000,
        {"num_envs": 8, "num_steps": 5, "learning_rate": 7e-4},
        {"n_steps": 5, "learning_rate": 7e-4},
    ),
    # 2 environments, rollouts of 512 steps, 15 conjugate gradient iterations, 20 gradient steps on the values.
    "trpo": Case(
        "trpo",
        49_152,
        {"num_envs": 2, "num_steps": 512, "value_epochs": 20, "cg_iters": 15},
        {"n_steps": 512, "batch_size": 1_024, "n_critic_updates": 20, "cg_max_steps": 15},
    ),
    # After every 256 steps, 128 gradient steps on batches of 64 and 25 target copies; networks 256 x 256.
    "dqn, the zoo's settings": Case(
        "dqn",
        20_480,
        ONE_STEP_DQN
        | {"num_steps": 256, "gradient_steps": 128, "batch_size": 64, "target_interval": 5, "learning_rate": 2.3e-3}
        | {"hidden_sizes": (256, 256), "buffer_size": 100_000, "learning_starts": 1_000}
        | {"exploration_fraction": 0.16, "epsilon_end": 0.04},
        {"train_freq": 256, "gradient_steps": 128, "batch_size": 64, "target_update_interval": 10}
        | {"policy_kwargs": {"net_arch": [256, 256]}, "buffer_size": 100_000, "learning_starts": 1_000}
        | {"exploration_fraction": 0.16, "exploration_final_eps": 0.04, "learning_rate": 2.3e-3},
    ),
    # After every 10 steps, a gradient step on a batch of 128; a target copy every 500 steps; networks 120 x 84.
    # Random actions skip the network, so exploration is part of the speed.
    "dqn, CleanRL's settings": Case(
        "dqn",
        40_000,
        ONE_STEP_DQN
        | {"num_steps": 10, "gradient_steps": 1, "batch_size": 128, "target_interval": 50, "learning_rate": 2.5e-4}
        | {"hidden_sizes": (120, 84), "buffer_size": 10_000, "learning_starts": 10_000}
        | {"exploration_fraction": 0.5, "epsilon_end": 0.05},
        {"train_freq": 10, "gradient_steps": 1, "batch_size": 128, "target_update_interval": 500}
        | {"policy_kwargs": {"net_arch": [120, 84]}, "buffer_size": 10_000, "learning_starts": 10_000}
        | {"exploration_fraction": 0.5, "exploration_final_eps": 0.05, "learning_rate": 2.5e-4},
        {"train_frequency": 10, "batch_size": 128, "target_network_frequency": 500, "tau": 1.0}
        | {"buffer_size": 10_000, "learning_starts": 10_000, "learning_rate": 2.5e-4}
        | {"exploration_fraction": 0.5, "end_e": 0.05},
    ),
}


# Processes


def use(cores):
    """Run this process, and those that it starts, on some cores; without effect where the system cannot do that."""
    if hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cores)
        except OSError:
            sys.exit(f"{Path(sys.argv[0]).name}: --core {', '.join(map(str, cores))}: not on this machine")


def cores():
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))


def environment(*folders):
    """Variables of a process with one thread that imports from some folders."""
    return os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def run(argv, folder, imports=(ROOT, ROOT / "benchmarks")):
    """What a command prints, run in a folder. If it fails, exits with the end of its errors."""
    argv = [str(part) for part in argv]
    done = subprocess.run(argv, cwd=folder, env=environment(*imports), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: {shlex.join(argv)}\n{done.stderr[-1_000:]}")
    return done.stdout


def flags(named):
    """{"num_envs": 4, "anneal_lr": False} as on a command line."""
    argv = []
    for name, value in named.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        else:
            argv += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return argv


def steady_speed(points):
    """Steps per second after the first quarter of the steps; points: (steps, seconds), in order."""
    last, stop = points[-1]
    first, start = next(point for point in points if point[0] >= last / 4)
    return (last - first) / (stop - start)


# The peers: steps per second of each, given a case and a seed


def read_points(run_dir):
    """(steps, seconds) of each row of metrics.csv."""
    with open(run_dir / "metrics.csv", newline="") as file:
        return [(int(row["global_step"]), float(row["seconds"])) for row in csv.DictReader(file)]


def ours(case, seed, folder):
    """Our script, as a user runs it."""
    named = {"env_id": ENV_ID, "seed": seed, "total_timesteps": case.steps, "eval_episodes": 1, "run_dir": "run"}
    run([sys.executable, ROOT / f"{case.script}.py", *flags(named | case.flags)], folder)
    return steady_speed(read_points(Path(folder, "run")))


def cleanrl(case, seed, folder, clone, python):
    """CleanRL's script."""
    named = {"env_id": ENV_ID, "seed": seed, "total_timesteps": case.steps, "cuda": False} | case.cleanrl
    text = run([python, clone / f"cleanrl/{case.script}.py", *flags(named)], folder, imports=[clone])
    return steady_speed(read_cleanrl(text, case))


def read_cleanrl(text, case):
    """(steps, seconds) at each line "SPS: ..." of CleanRL's output, which is steps / seconds without its decimals.

    ppo.py prints one for each rollout, dqn.py one for each 100 steps once it learns.
    """
    if case.script == "ppo":
        first = every = case.cleanrl["num_envs"] * case.cleanrl["num_steps"]
    else:
        first, every = case.cleanrl["learning_starts"] + 100, 100
    speeds = [int(number) + 0.5 for number in re.findall(r"^SPS: (\d+)$", text, re.MULTILINE)]
    steps = [first + every * i for i in range(len(speeds))]
    return [(step, step / speed) for step, speed in zip(steps, speeds)]


def sb3(case, seed):
    """Stable-Baselines3, or sb3-contrib for TRPO."""
    return learn("sb3_contrib" if case.script == "trpo" else "stable_baselines3", case, seed)


def sbx(case, seed):
    """SBX."""
    return learn("sbx", case, seed)


def learn(package, case, seed):
    """A library with the interface of Stable-Baselines3."""
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    points = []

    class Clock(BaseCallback):
        def _on_rollout_start(self):
            points.append((self.num_timesteps, time.perf_counter()))

        def _on_training_end(self):
            self._on_rollout_start()

        def _on_step(self):
            return True

    env = make_vec_env(ENV_ID, case.flags["num_envs"], seed=seed)
    algorithm = getattr(importlib.import_module(package), case.script.upper())
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **case.arguments)
    model.learn(case.steps, callback=Clock())
    return steady_speed(points)


# The floor


def mlp(hidden_sizes, out):
    """A network with tanh between its layers, from observations to `out` numbers."""
    from torch import nn

    sizes = [VECTOR, *hidden_sizes]
    layers = []
    for size, next_size in pairwise(sizes):
        layers += [nn.Linear(size, next_size), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out))


def collect(envs, actor, num_steps, epsilon=0.0):
    """The steps of one rollout, with a forward call for each that is not random in all environments."""
    import torch

    obs = torch.randn(envs.num_envs, VECTOR)
    random_act = np.random.randint(ACTIONS, size=(num_steps, envs.num_envs))
    explore = np.random.rand(num_steps, envs.num_envs) < epsilon
    for t in range(num_steps):
        act = random_act[t]
        if not explore[t].all():
            with torch.no_grad():
                act = actor(obs).argmax(-1).numpy()
        _, _, terminated, truncated, _ = envs.step(act)
        if (done := terminated | truncated).any():
            envs.reset(options={"reset_mask": done})


def gradient_step(optimizer, networks, obs):
    loss = sum(network(obs).mean() for network in networks)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def fisher_vector_product(actor, obs):
    """Two backward calls, as the Hessian of a KL divergence times a vector takes."""
    import torch

    params = list(actor.parameters())
    first = torch.autograd.grad((actor(obs) ** 2).mean(), params, create_graph=True)
    torch.autograd.grad(sum((g * g.detach()).sum() for g in first), params)


def learn_on_policy(script, args, actor, critic, optimizer):
    """What ppo, a2c or trpo call after a rollout."""
    import torch

    size = args.num_envs * args.num_steps
    rollout = torch.randn(size, VECTOR)
    with torch.no_grad():
        critic(rollout), critic(rollout)  # values of observations and of their successors
    if script == "ppo":
        for _ in range(args.update_epochs * args.num_minibatches):
            gradient_step(optimizer, [actor, critic], rollout[: size // args.num_minibatches])
    if script == "a2c":
        gradient_step(optimizer, [actor, critic], rollout)
    if script == "trpo":
        for _ in range(args.cg_iters + 1):  # one more for the length of the step
            fisher_vector_product(actor, rollout)
        for _ in range(args.value_epochs):
            gradient_step(optimizer, [critic], rollout)


def learn_from_replay(args, network, optimizer):
    """What dqn calls after a rollout."""
    import torch

    batch = torch.randn(args.batch_size, VECTOR)
    for _ in range(args.gradient_steps):
        with torch.no_grad():
            network(batch)  # stands for the target network
        gradient_step(optimizer, [network], batch)


def floor(case, seed):
    """The environments and bare network calls, as many as our script makes."""
    import gymnasium as gym
    import torch

    args = importlib.import_module(case.script).Args(total_timesteps=case.steps, **case.flags)
    torch.manual_seed(seed)
    np.random.seed(seed)
    actor, critic = mlp(args.hidden_sizes, ACTIONS), mlp(args.hidden_sizes, 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], fused=True)
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.make(ENV_ID)] * args.num_envs, autoreset_mode=gym.vector.AutoresetMode.DISABLED
    )
    envs.reset(seed=seed)
    size, points = args.num_envs * args.num_steps, []
    for steps in range(size, case.steps + 1, size):
        if case.script == "dqn":
            decay = [0, args.exploration_fraction * case.steps]
            collect(envs, actor, args.num_steps, np.interp(steps - size, decay, [args.epsilon_start, args.epsilon_end]))
            if steps >= args.learning_starts:
                learn_from_replay(args, actor, optimizer)
        else:
            collect(envs, actor, args.num_steps)
            learn_on_policy(case.script, args, actor, critic, optimizer)
        points.append((steps, time.perf_counter()))
    return steady_speed(points)


# The measurement


def measure(peer, case, seed, clone, python):
    """Steps per second of a peer, in its own process; clone, python: for CleanRL."""
    with tempfile.TemporaryDirectory() as folder:
        if peer == "ours":
            return ours(case, seed, folder)
        if peer == "cleanrl":
            return cleanrl(case, seed, folder, clone, python)
        code = f"import speed; from speed import Case; print(speed.{peer}({case!r}, {seed}))"
        return float(run([sys.executable, "-c", code], folder).split()[-1])


def installed(clone, python, peers=PACKAGES):
    """Those of the peers that are there; a line on stderr for each other one says what it needs."""
    needs = {}
    if not (find_spec("stable_baselines3") and find_spec("sb3_contrib")):
        needs["sb3"] = "pip install -r benchmarks/requirements.txt"
    if not find_spec("sbx"):
        needs["sbx"] = "pip install -r benchmarks/requirements.txt"
    for flag, path in ("cleanrl-python", python), ("cleanrl", clone / "cleanrl/ppo.py"):
        if not path.exists():
            needs["cleanrl"] = f"--{flag}: there is no {path}"
    for peer in peers:
        if peer in needs:
            print(f"speed.py: {peer} left out: {needs[peer]}", file=sys.stderr)
    return [peer for peer in peers if peer not in needs]


def peers_of(case, peers):
    """Those of the peers that can do a case."""
    lacking = {"sbx"} if case.script not in SBX_HAS else set()
    lacking |= {"cleanrl"} if case.cleanrl is None else set()
    return [peer for peer in peers if peer not in lacking]


VERSIONS = """
import platform, sys
from importlib.metadata import version
print(f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in sys.argv[1:]), sep=", ")
"""


def versions(python, packages):
    """Versions of a Python and of packages that it has."""
    return run([python, "-c", VERSIONS, *packages], ROOT).strip()


def origins(peers, clone, python):
    """Commit, machine and versions for the rows of each peer."""
    found = {}
    for peer in peers:
        theirs = versions(python if peer == "cleanrl" else sys.executable, PACKAGES[peer])
        if peer == "cleanrl" and (clone / ".git").exists():
            argv = ["git", "-C", clone, "describe", "--always"]
            theirs += f", cleanrl {subprocess.run(argv, capture_output=True, text=True).stdout.strip()}"
        found[peer] = here() | {"versions": theirs}
    return found


def store(path, rows, *key):
    """Put rows into a table, in the place of those that have the same values of key."""

    def groups(rows):
        found = {}
        for row in rows:
            found.setdefault(tuple(str(row[name]) for name in key), []).append(row)
        return found

    with open(path, newline="") as file:
        kept = groups(csv.DictReader(file))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for group in (kept | groups(rows)).values():
            writer.writerows(group)


def compare(rounds, only, clone, python):
    """Measure the cases whose name contains a word; their rows go to speed.csv."""
    peers = installed(clone, python)
    origin = origins(peers, clone, python)
    for name, case in CASES.items():
        if only not in name:
            continue
        rows = []
        for number in range(1, rounds + 1):
            for peer in peers_of(case, peers):
                speed = round(measure(peer, case, number, clone, python))
                rows.append({"case": name, "round": number, "peer": peer, "steps_per_second": speed, **origin[peer]})
        store(SPEEDS, rows, "case")
        found = {peer: [row["steps_per_second"] for row in rows if row["peer"] == peer] for peer in origin}
        medians = [f"{peer} {statistics.median(speeds):,.0f}" for peer, speeds in found.items() if speeds]
        print(f"{name}: {', '.join(medians)} steps/s")


# From the command to the result


def command(script, seed):
    """What a user types: nothing but a seed for ours; for Stable-Baselines3, the budget of train.py's baselines too."""
    if script.startswith("sb3-"):
        name = script.removeprefix("sb3-")
        named = {"algorithm": name, "total_timesteps": BASELINES[name], "seed": seed, "run_dir": "runs/sb3"}
        return [ROOT / "benchmarks/sb3.py", *flags(named)]
    return [ROOT / f"{script}.py", "--seed", seed]


def solve(script, seed):
    """Seconds of the whole process, and the mean return of the final evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run([sys.executable, *command(script, seed)], folder)
        seconds = time.perf_counter() - start
        (result,) = Path(folder).glob("runs/*/eval.json")
        return {"wall_seconds": round(seconds, 2), "mean": round(json.loads(result.read_text())["mean"], 2)}


def solve_all(only, clone, python):
    """Run the scripts whose name contains a word on all seeds; each run puts its row into solve.csv."""
    solvers = {script: "sb3" if script.startswith("sb3-") else "ours" for script in SOLVERS if only in script}
    origin = origins(installed(clone, python, sorted(set(solvers.values()))), clone, python)
    for seed in SEEDS:
        for script, peer in solvers.items():
            if peer not in origin:
                continue
            row = {"script": script, "seed": seed, **solve(script, seed), **origin[peer]}
            store(SOLVED, [row], "script", "seed")
            print(f"{script}, seed {seed}: {row['wall_seconds']} s, mean return {row['mean']}")


def main(
    rounds: int = 5,
    only: str = "",
    solve: bool = False,
    core: int | None = None,
    cleanrl: Path = Path("~/cleanrl"),
    cleanrl_python: Path = Path("~/cleanrl/.venv/bin/python"),
):
    """Compare speeds and write speed.csv, or solve.csv.

    Args:
        rounds: measurements of each case and peer
        only: cases whose name contains this; with --solve, scripts
        solve: measure the time from the command to the result, on seeds 101 to 110
        core: processor core of all measurements; by default the last one
        cleanrl: a clone of CleanRL's repository
        cleanrl_python: a Python with the packages that CleanRL needs
    """
    use([cores()[-1] if core is None else core])
    clone, python = (path.expanduser().absolute() for path in (cleanrl, cleanrl_python))
    if solve:
        solve_all(only, clone, python)
    else:
        compare(rounds, only, clone, python)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
