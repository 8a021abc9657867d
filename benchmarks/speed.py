"""Measure steps per second: our scripts, other libraries at the same settings, and a floor.

The environment is CartPole-v1; for ddpg.py and sac.py it is Pendulum-v1.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                        # all cases; each replaces its rows in speed.csv
    python benchmarks/speed.py --only ppo --rounds 1  # cases whose name contains a word
    python benchmarks/plot.py --readme                # then the table in benchmarks/README.md

The libraries are Stable-Baselines3 (TRPO: sb3-contrib), SBX, which is the same in JAX, and CleanRL, of which --cleanrl
names a clone and --cleanrl-python a Python that has what it needs. One that is not there is left out.

A round measures them one after the other, each in a process of its own, on one core and with one thread. The first
quarter of the steps is not counted, because it includes what happens once: imports, compilation, a replay buffer that
fills. The floor is the time of what no implementation can leave out: the environments' steps, and as many bare forward,
backward and optimizer calls as the algorithm needs, on networks and batches of the same size.

Some differences remain. Our scripts normalize observations and rewards, the others do not. Our dqn.py has tanh where
the others have ReLU, and both layers of SBX's network for DQN are as wide as the first one of the others. CleanRL's TD3
and SAC have two layers of 256 units; its SAC updates the actor twice at every second step, which is as much work.
"""

import csv
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from train import here  # beside this file

ROOT = Path(__file__).parent.parent
SPEEDS = ROOT / "benchmarks/speed.csv"
DISCRETE, CONTINUOUS = ("CartPole-v1", 4, 2), ("Pendulum-v1", 3, 1)  # size of an observation and of the outputs
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ONE_THREAD |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
PEERS = {"ours": "torch", "sb3": "sb3_contrib", "sbx": "sbx", "cleanrl": "torch", "floor": "torch"}  # what each needs

Case = namedtuple("Case", "script steps peers flags")  # steps of a measurement; flags of our script
ONE_STEP_DQN = {"num_envs": 1, "n_step": 1, "double_q": False, "anneal_lr": False, "tau": 1.0}
ZOO_DQN = {"num_steps": 256, "gradient_steps": 128, "batch_size": 64, "target_interval": 5, "learning_rate": 2.3e-3}
ZOO_DQN |= {"hidden_sizes": (256, 256), "buffer_size": 100_000, "learning_starts": 1_000}
ZOO_DQN |= {"exploration_fraction": 0.16, "epsilon_end": 0.04}
CLEANRL_DQN = {"num_steps": 10, "gradient_steps": 1, "batch_size": 128, "target_interval": 50, "learning_rate": 2.5e-4}
CLEANRL_DQN |= {"hidden_sizes": (120, 84), "buffer_size": 10_000, "learning_starts": 10_000}
CLEANRL_DQN |= {"exploration_fraction": 0.5, "epsilon_end": 0.05}
OUR_PPO = {"num_envs": 16, "num_steps": 128, "num_minibatches": 8, "update_epochs": 8, "learning_rate": 1e-3}
CLEANRL_PPO = {"num_envs": 4, "num_steps": 128, "num_minibatches": 4, "update_epochs": 4, "learning_rate": 2.5e-4}
TRPO = {"num_envs": 2, "num_steps": 512, "value_epochs": 20, "cg_iters": 15}
ONE_TO_ONE = {"num_envs": 1, "num_steps": 1, "gradient_steps": 1, "n_step": 1, "anneal_lr": False}
ONE_TO_ONE |= {"learning_starts": 500, "buffer_size": 10_000, "learning_rate": 1e-3}
SMALL, LARGE = (ONE_TO_ONE | {"hidden_sizes": (size, size), "batch_size": size} for size in (64, 256))
CASES = {
    "ppo": Case("ppo", 98_304, "ours sb3 sbx cleanrl floor", OUR_PPO | {"ent_coef": 0.0}),
    "ppo, CleanRL's settings": Case("ppo", 65_536, "ours sb3 sbx cleanrl floor", CLEANRL_PPO | {"ent_coef": 0.01}),
    "a2c": Case("a2c", 64_000, "ours sb3 floor", {"num_envs": 8, "num_steps": 5, "learning_rate": 7e-4}),
    "trpo": Case("trpo", 49_152, "ours sb3 floor", TRPO),
    "dqn, the zoo's settings": Case("dqn", 20_480, "ours sb3 sbx floor", ONE_STEP_DQN | ZOO_DQN),
    "dqn, CleanRL's settings": Case("dqn", 40_000, "ours sb3 sbx cleanrl floor", ONE_STEP_DQN | CLEANRL_DQN),
    "ddpg (TD3), 64 units, batches of 64": Case("ddpg", 6_000, "ours sb3 sbx floor", SMALL),
    "ddpg (TD3), 256 units, batches of 256": Case("ddpg", 4_000, "ours sb3 sbx cleanrl floor", LARGE),
    "sac, 64 units, batches of 64": Case("sac", 6_000, "ours sb3 sbx floor", SMALL),
    "sac, 256 units, batches of 256": Case("sac", 4_000, "ours sb3 sbx cleanrl floor", LARGE),
}
# Our flags that the constructors of Stable-Baselines3 and SBX, and CleanRL's dqn.py, name otherwise or lack:
SB3_NAMES = {"num_steps": "n_steps", "update_epochs": "n_epochs", "value_epochs": "n_critic_updates"}
SB3_NAMES |= {"cg_iters": "cg_max_steps", "epsilon_end": "exploration_final_eps"}
OFF_POLICY = {"dqn": "DQN", "ddpg": "TD3", "sac": "SAC"}
SB3_LACKS = "num_envs", "num_minibatches", "n_step", "double_q", "anneal_lr", "hidden_sizes", "target_interval"
CLEANRL_NAMES = {"num_steps": "train_frequency", "epsilon_end": "end_e"}
CLEANRL_LACKS = "n_step", "double_q", "anneal_lr", "hidden_sizes", "target_interval", "gradient_steps"


def environment(case):
    return CONTINUOUS if case.script in ("ddpg", "sac") else DISCRETE


def for_sb3(case):
    """Arguments of Stable-Baselines3's and SBX's constructors."""
    flags = case.flags
    found = {SB3_NAMES.get(name, name): value for name, value in flags.items() if name not in SB3_LACKS}
    if case.script in OFF_POLICY:
        found |= {"train_freq": found.pop("n_steps"), "policy_kwargs": {"net_arch": list(flags["hidden_sizes"])}}
    if case.script == "dqn":
        found["target_update_interval"] = flags["target_interval"] * flags["num_steps"] // flags["gradient_steps"]
    elif case.script in ("trpo", "ppo"):
        found["batch_size"] = flags["num_envs"] * flags["num_steps"] // flags.get("num_minibatches", 1)
    return found


def for_cleanrl(case):
    """Flags of CleanRL's script."""
    if case.script == "ppo":
        return case.flags
    if case.script != "dqn":
        found = {name: case.flags[name] for name in ("learning_starts", "buffer_size", "batch_size")}
        rates = ["learning_rate"] if case.script == "ddpg" else ["policy_lr", "q_lr"]
        return found | dict.fromkeys(rates, case.flags["learning_rate"])
    found = {CLEANRL_NAMES.get(name, name): x for name, x in case.flags.items() if name not in CLEANRL_LACKS}
    return found | {"target_network_frequency": for_sb3(case)["target_update_interval"]}


def run(argv, folder, imports=(ROOT, ROOT / "benchmarks")):
    """What a command prints, run in a folder. If it fails, exits with the end of its errors."""
    env = os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(map(str, imports))}
    done = subprocess.run(list(map(str, argv)), cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: {done.args}\n{done.stderr[-1_000:]}")
    return done.stdout


def train(python, script, case, seed, folder, imports=(), **flags):
    """What a script prints; flags such as {"num_envs": 4, "anneal_lr": False, "hidden_sizes": (64, 64)}."""
    argv = [python, script]
    for name, value in {"env_id": environment(case)[0], "seed": seed, "total_timesteps": case.steps, **flags}.items():
        values = [] if isinstance(value, bool) else value if isinstance(value, tuple) else [value]
        argv += [f"--{'no-' if value is False else ''}{name}".replace("_", "-"), *values]
    return run(argv, folder, imports)


def ours(case, seed, folder):
    """(steps, seconds) at several points of a run, as of each peer."""
    train(sys.executable, ROOT / f"{case.script}.py", case, seed, folder, **case.flags, eval_episodes=1, run_dir="run")
    with open(Path(folder, "run/metrics.csv"), newline="") as file:
        return [(int(row["global_step"]), float(row["seconds"])) for row in csv.DictReader(file)]


def cleanrl(case, seed, folder, clone, python):
    """From its lines "SPS: ...", steps / seconds: one for each rollout of ppo.py, one for each 100 steps of others."""
    name = {"ddpg": "td3_continuous_action", "sac": "sac_continuous_action"}.get(case.script, case.script)
    script = clone / f"cleanrl/{name}.py"
    text = train(python, script, case, seed, folder, [clone], **for_cleanrl(case), cuda=False)
    rollout = case.flags["num_envs"] * case.flags["num_steps"]
    first, every = (rollout, rollout) if case.script == "ppo" else (case.flags["learning_starts"] + 100, 100)
    speeds = [int(number) + 0.5 for number in re.findall(r"^SPS: (\d+)$", text, re.MULTILINE)]
    return [(first + every * i, (first + every * i) / speed) for i, speed in enumerate(speeds)]


def library(case, seed, peer):
    """Stable-Baselines3, sb3-contrib or SBX, which has the same interface."""
    from stable_baselines3.common.env_util import make_vec_env

    env, points = make_vec_env(environment(case)[0], case.flags["num_envs"], seed=seed), []
    package = "sbx" if peer == "sbx" else "sb3_contrib" if case.script == "trpo" else "stable_baselines3"
    algorithm = getattr(importlib.import_module(package), OFF_POLICY.get(case.script, case.script.upper()))
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **for_sb3(case))
    model.learn(case.steps, callback=lambda *_: points.append([model.num_timesteps, time.perf_counter()]) or True)
    return points


def mlp(sizes):
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def floor(case, seed, _):
    """The environments and bare network calls, as many as our script makes."""
    args = importlib.import_module(case.script).Args(**case.flags)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    env_id, vector, outputs = environment(case)
    continuous = environment(case) is CONTINUOUS
    actor = mlp([vector, *args.hidden_sizes, outputs])
    critics = [mlp([vector + continuous * outputs, *args.hidden_sizes, 1]) for _ in range(1 + continuous)]
    params = [param for network in (actor, *critics) for param in network.parameters()]
    optimizer = torch.optim.Adam(params, fused=True)
    mode = gym.vector.AutoresetMode.DISABLED
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(env_id)] * args.num_envs, autoreset_mode=mode)
    envs.reset(seed=seed)
    size, points, epsilon = args.num_envs * args.num_steps, [], 0.0
    for steps in range(size, case.steps + 1, size):
        if case.script == "dqn":
            decay = args.exploration_fraction * case.steps
            epsilon = np.interp(steps - size, [0, decay], [args.epsilon_start, args.epsilon_end])
        for _ in range(args.num_steps):
            acts = rng.integers(outputs, size=args.num_envs)
            if rng.random() >= epsilon:  # random actions, of one environment, need no network
                with torch.no_grad():
                    out = actor(torch.randn(args.num_envs, vector))
                acts = (out if continuous else out.argmax(-1)).numpy()
            _, _, terminated, truncated, _ = envs.step(acts)
            if (done := terminated | truncated).any():
                envs.reset(options={"reset_mask": done})
        if case.script not in OFF_POLICY or steps >= args.learning_starts:
            learn(case.script, args, actor, critics, optimizer, vector, steps)
        points.append([steps, time.perf_counter()])
    return points


def learn(script, args, actor, critics, optimizer, vector, steps):
    """The forward, backward and optimizer calls after a rollout; vector: numbers in an observation."""
    obs = torch.randn(args.batch_size if script in OFF_POLICY else args.num_envs * args.num_steps, vector)
    if script in ("ddpg", "sac"):
        return learn_continuous(actor, critics, optimizer, obs, script == "sac" or steps % args.policy_delay == 0)
    count, networks = 1, [actor, *critics]
    if script == "dqn":
        count, networks = args.gradient_steps, [actor]
    else:
        with torch.no_grad():
            critics[0](obs), critics[0](obs)  # values of observations and of their successors
    if script == "trpo":
        params = list(actor.parameters())
        for _ in range(args.cg_iters + 1):  # a Hessian times a vector; one more for the length of the step
            first = torch.autograd.grad((actor(obs) ** 2).mean(), params, create_graph=True)
            torch.autograd.grad(sum((g * g.detach()).sum() for g in first), params)
        count, networks = args.value_epochs, critics
    if script == "ppo":
        count, obs = args.update_epochs * args.num_minibatches, obs[: len(obs) // args.num_minibatches]
    for _ in range(count):
        if script == "dqn":
            with torch.no_grad():
                actor(obs)  # stands for the target network
        optimizer.zero_grad()
        sum(network(obs).mean() for network in networks).backward()
        optimizer.step()


def learn_continuous(actor, critics, optimizer, obs, actor_moves):
    """One gradient step of two critics and, if it moves, of the actor."""
    with torch.no_grad():  # stands for the target networks
        pairs = torch.cat([obs, actor(obs)], -1)
        targets = [critic(pairs) for critic in critics]
    optimizer.zero_grad()
    sum((critic(pairs) - target).square().mean() for critic, target in zip(critics, targets)).backward()
    optimizer.step()
    if actor_moves:
        optimizer.zero_grad()
        critics[0](torch.cat([obs, actor(obs)], -1)).mean().backward(inputs=list(actor.parameters()))
        optimizer.step()


def measure(peer, case, seed, clone, python):
    """Steps per second after the first quarter of the steps; clone, python: for CleanRL."""
    with tempfile.TemporaryDirectory() as folder:
        if peer == "ours":
            points = ours(case, seed, folder)
        elif peer == "cleanrl":
            points = cleanrl(case, seed, folder, clone, python)
        else:  # in a process of its own
            code = (
                f"from speed import *; print({'floor' if peer == 'floor' else 'library'}({case!r}, {seed}, {peer!r}))"
            )
            points = json.loads(run([sys.executable, "-c", code], folder).splitlines()[-1])
    last, stop = points[-1]
    first, start = next(point for point in points if point[0] >= last / 4)
    return round((last - first) / (stop - start))


def main(
    rounds: int = 5,
    only: str = "",
    cleanrl: Path = Path("~/cleanrl"),
    cleanrl_python: Path = Path("~/cleanrl/.venv/bin/python"),
):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])  # the last core, also of the processes started here
    clone, python = (path.expanduser().absolute() for path in (cleanrl, cleanrl_python))
    there = [peer for peer, package in PEERS.items() if find_spec(package)]
    if not ((clone / "cleanrl").exists() and python.exists()):
        there.remove("cleanrl")
    print("left out, because not there:", *(PEERS.keys() - there) or ["nothing"])
    origin = here()
    for name, case in CASES.items():
        if only not in name:
            continue
        rows = []
        for number, peer in product(range(1, rounds + 1), [peer for peer in case.peers.split() if peer in there]):
            speed = measure(peer, case, number, clone, python)
            print(f"{name}, round {number}: {peer} {speed:,} steps/s")
            rows.append({"case": name, "round": number, "peer": peer, "steps_per_second": speed, **origin})
        with open(SPEEDS, newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["case"] != name]
        with open(SPEEDS, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: list(CASES).index(row["case"])))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
