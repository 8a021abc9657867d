"""Measure steps per second on CartPole-v1: our scripts, Stable-Baselines3 at the same settings, and a floor.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py --rounds 3            # all cases; each replaces its row in speed.csv
    python benchmarks/speed.py --only ppo            # cases whose name contains a word
    python benchmarks/plot.py --readme               # then the table in benchmarks/README.md

A round measures ours, theirs and the floor one after the other, each in its own process with one thread. The floor is
the time of what no implementation can leave out: the environments' steps, and as many bare forward, backward and
optimizer calls as the algorithm needs, on networks and batches of the same size. Our scripts also normalize
observations and rewards, which Stable-Baselines3 does not do at these settings.
"""

import csv
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tyro

ROOT = Path(__file__).parent.parent
SPEEDS = ROOT / "benchmarks/speed.csv"
VECTOR, ACTIONS = 4, 2  # size of an observation and number of actions of CartPole-v1


@dataclass(frozen=True)
class Case:
    """The same settings twice: flags of our script, and a class of Stable-Baselines3 with its arguments."""

    script: str
    flags: dict
    algorithm: str
    arguments: dict
    steps: int  # of a measurement


ONE_STEP_DQN = {"num_envs": 1, "n_step": 1, "double_q": False, "anneal_lr": False, "tau": 1.0, "learning_starts": 1_000}
CASES = {
    # 16 environments, rollouts of 128 steps, 8 epochs of 8 minibatches of 256.
    "ppo": Case(
        "ppo",
        {"num_envs": 16, "num_steps": 128, "num_minibatches": 8, "update_epochs": 8},
        "PPO",
        {"n_steps": 128, "batch_size": 256, "n_epochs": 8, "learning_rate": 1e-3},
        steps=60_000,
    ),
    # 8 environments, rollouts of 5 steps, one gradient step on each.
    "a2c": Case(
        "a2c",
        {"num_envs": 8, "num_steps": 5, "learning_rate": 7e-4},
        "A2C",
        {},
        steps=40_000,
    ),
    # 2 environments, rollouts of 512 steps, 15 conjugate gradient iterations, 20 gradient steps on the values.
    "trpo": Case(
        "trpo",
        {"num_envs": 2, "num_steps": 512, "value_epochs": 20, "cg_iters": 15},
        "TRPO",
        {"n_steps": 512, "batch_size": 1_024, "n_critic_updates": 20, "cg_max_steps": 15},
        steps=40_000,
    ),
    # After every 256 steps, 128 gradient steps on batches of 64 and 25 target copies; networks 256 x 256.
    "dqn, the zoo's settings": Case(
        "dqn",
        ONE_STEP_DQN
        | {"num_steps": 256, "gradient_steps": 128, "batch_size": 64, "target_interval": 5}
        | {"hidden_sizes": (256, 256)},
        "DQN",
        {"learning_starts": 1_000, "train_freq": 256, "gradient_steps": 128, "batch_size": 64}
        | {"target_update_interval": 10, "policy_kwargs": {"net_arch": [256, 256]}},
        steps=12_000,
    ),
    # After every 10 steps, a gradient step on a batch of 128; a target copy every 500 steps; networks 120 x 84.
    "dqn, CleanRL's settings": Case(
        "dqn",
        ONE_STEP_DQN
        | {"num_steps": 10, "gradient_steps": 1, "batch_size": 128, "target_interval": 50}
        | {"hidden_sizes": (120, 84), "buffer_size": 10_000},
        "DQN",
        {"learning_starts": 1_000, "train_freq": 10, "gradient_steps": 1, "batch_size": 128}
        | {"target_update_interval": 500, "policy_kwargs": {"net_arch": [120, 84]}, "buffer_size": 10_000},
        steps=20_000,
    ),
}


def ours(name, seed):
    """Steps per second of our script, without the evaluation."""
    case = CASES[name]
    script = importlib.import_module(case.script)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = f"{folder}/run"
        args = script.Args(total_timesteps=case.steps, seed=seed, run_dir=run_dir, eval_episodes=1, **case.flags)
        script.train(args)
        result = json.loads(Path(run_dir, "eval.json").read_text())
    return result["global_step"] / result["seconds"]


def sb3(name, seed):
    """Steps per second of Stable-Baselines3."""
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    case = CASES[name]
    package = sb3_contrib if case.algorithm == "TRPO" else stable_baselines3
    env = make_vec_env("CartPole-v1", case.flags["num_envs"], seed=seed)
    model = getattr(package, case.algorithm)("MlpPolicy", env, seed=seed, device="cpu", **case.arguments)
    start = time.perf_counter()
    model.learn(case.steps)
    return model.num_timesteps / (time.perf_counter() - start)


# The floor


def mlp(hidden_sizes, out):
    """A network with tanh between its layers, from observations to `out` numbers."""
    from torch import nn

    sizes = [VECTOR, *hidden_sizes]
    layers = []
    for size, next_size in pairwise(sizes):
        layers += [nn.Linear(size, next_size), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out))


def collect(envs, actor, num_steps):
    """The steps of one rollout, with a forward call for each."""
    import torch

    obs = torch.randn(envs.num_envs, VECTOR)
    for _ in range(num_steps):
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


def floor(name, seed):
    """Steps per second of the environments and of bare network calls, as many as our script makes."""
    import gymnasium as gym
    import torch

    case = CASES[name]
    args = importlib.import_module(case.script).Args(**case.flags)
    torch.manual_seed(seed)
    actor, critic = mlp(args.hidden_sizes, ACTIONS), mlp(args.hidden_sizes, 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], fused=True)
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.make("CartPole-v1")] * args.num_envs, autoreset_mode=gym.vector.AutoresetMode.DISABLED
    )
    envs.reset(seed=seed)
    size = args.num_envs * args.num_steps
    rollouts = max(1, case.steps // size)
    start = time.perf_counter()
    for _ in range(rollouts):
        collect(envs, actor, args.num_steps)
        if case.script == "dqn":
            learn_from_replay(args, actor, optimizer)
        else:
            learn_on_policy(case.script, args, actor, critic, optimizer)
    return rollouts * size / (time.perf_counter() - start)


# The table


def measure(kind, name, seed):
    """Steps per second of ours, sb3 or floor, in its own process."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    code = f"import torch; torch.set_num_threads(1); import speed; print(speed.{kind}({name!r}, {seed}))"
    argv = [sys.executable, "-c", code]
    output = subprocess.check_output(argv, env=env, stderr=subprocess.DEVNULL, text=True)
    return float(output.split()[-1])


def summary(name, rounds, origin):
    """The row of speed.csv of one case; rounds: steps per second of ours, theirs and the floor in each."""
    ratios = sorted(ours / sb3 for ours, sb3, _ in rounds)
    return {
        "case": name,
        "rounds": len(rounds),
        "ours": round(statistics.median(ours for ours, _, _ in rounds)),
        "sb3": round(statistics.median(sb3 for _, sb3, _ in rounds)),
        "ratio": f"{statistics.median(ratios):.2f}",
        "ratio_least": f"{ratios[0]:.2f}",
        "ratio_most": f"{ratios[-1]:.2f}",
        "time_over_floor": f"{statistics.median(floor / ours for ours, _, floor in rounds):.2f}",
        **origin,
    }


def write(row):
    """Put a row into speed.csv, in the place of the old one of the same case."""
    with open(SPEEDS, newline="") as file:
        rows = {old["case"]: old for old in csv.DictReader(file)} | {row["case"]: row}
    with open(SPEEDS, "w", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def main(rounds: int = 3, only: str = ""):
    """Compare speeds and write speed.csv.

    Args:
        rounds: measurements of each case
        only: cases whose name contains this
    """
    from train import here  # beside this file

    for name in CASES:
        if only in name:
            found = []
            for seed in range(1, rounds + 1):
                found.append([measure(kind, name, seed) for kind in ("ours", "sb3", "floor")])
            row = summary(name, found, here())
            write(row)
            print(f"{name}: {row['ours']:,} steps/s, Stable-Baselines3 {row['sb3']:,}, ratio {row['ratio']}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
