"""What several tests need: agents, batches, columns of numbers, short runs and what they leave."""

import csv
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
FAMILY = ["vpg", "a2c", "trpo", "ppo"]  # policy gradients
CONTINUOUS = ["ddpg", "sac"]  # these take continuous actions alone, dqn discrete ones
SCRIPTS = [*FAMILY, "dqn", *CONTINUOUS]

ENVIRONMENTS = "CartPole-v1", "Pendulum-v1", "ProbeMultiDiscrete-v0"  # a kind of action each
SHORT = {"num_envs": 4, "num_steps": 32, "total_timesteps": 1_280, "checkpoint_every": 128, "eval_episodes": 2}
VARIANTS = {name: (name, {}) for name in FAMILY}  # the second objective, and the form with rollouts of changing length
VARIANTS |= {"ppo async-envs": ("ppo", {"async_envs": True})}
VARIANTS |= {"ppo penalty": ("ppo", {"objective": "penalty"}), "vpg total-return": ("vpg", {"form": "total-return"})}
REPLAY = {"learning_starts": 200, "batch_size": 32, "buffer_size": 1_000}
VARIANTS |= {"dqn": ("dqn", REPLAY | {"target_interval": 3}), "ddpg": ("ddpg", REPLAY), "sac": ("sac", REPLAY)}

# The shortest runs that learn, save and end episodes: 10 rollouts, with checkpoints at steps 0, 128, 256 and 320.
TINY = {"num_envs": 2, "num_steps": 16, "total_timesteps": 320, "checkpoint_every": 64, "eval_episodes": 1}
TINY = {name: TINY | {"hidden_sizes": (8,)} for name in SCRIPTS}
TINY["vpg"] |= {"value_epochs": 2}
TINY["trpo"] |= {"value_epochs": 2}
TINY["ppo"] |= {"update_epochs": 2, "num_minibatches": 2}
for name in "dqn", *CONTINUOUS:
    TINY[name] |= {"learning_starts": 50, "batch_size": 8, "buffer_size": 1_000}
TINY["dqn"] |= {"target_interval": 3}
for name in CONTINUOUS:
    TINY[name] |= {"env_kwargs": '{"max_episode_steps": 20}'}
TINY_RLHF = {"sft_steps": 4, "num_comparisons": 64, "reward_epochs": 2, "iterations": 2, "batch_size": 16}
TINY_RLHF |= {"eval_responses": 24, "d_model": 8, "num_layers": 1, "num_heads": 2}

generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


# One column of a rollout, by hand


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]  # [T, 1]


def flags(*numbers):
    return torch.tensor(numbers, dtype=torch.bool)[:, None]  # [T, 1]


# Agents


def make_agent(module, env_id="", **flags):
    """Agent and flags, for the default environment or another; the same first weights whatever the script."""
    args = module.Args(**{"env_id": env_id} if env_id else {}, **flags)
    torch.manual_seed(0)
    env = module.make_env(args.env_id, args.env_kwargs)
    kind = module.QNetwork if hasattr(module, "QNetwork") else module.ActorCritic
    return kind(env.observation_space, env.action_space, args), args


def make_batch(module, agent, size=64):
    """A batch of random observations, sampled actions and advantages of standard deviation 0.9, which are left alone.

    Standardizing divides by the standard deviation plus 0.1, so that by 1.
    """
    torch.manual_seed(1)
    obs, adv = torch.randn(size, *agent.obs_norm.mean.shape), torch.randn(size)
    adv = 0.9 * (adv - adv.mean()) / adv.std()
    with torch.no_grad():
        act = agent.policy(obs).sample()
    return module.Batch(obs, act, adv, torch.randn(size))


def make_penalty(beta=1.0):
    """What ppo.update keeps beta in."""
    penalty = torch.nn.Module()
    penalty.beta = torch.nn.Buffer(torch.tensor(beta))
    return penalty


def update(module, agent, batch, args, lr=0.1, critic_lr=None, optimizer=torch.optim.SGD):
    """One update by vpg.py, a2c.py or ppo.py; returns the metrics."""
    if module.__name__ == "ppo":
        return module.update(agent, optimizer(agent.parameters(), lr), make_penalty(), batch, args)
    critic_lr = lr if critic_lr is None else critic_lr
    optimizers = optimizer(agent.policy_parameters(), lr), optimizer(agent.critic.parameters(), critic_lr)
    return module.update(agent, *optimizers, batch, args)


def spy_learning_rates(spy):
    """A list that gets the learning rate of each gradient step."""
    return spy(torch.optim.Adam, "step", note=lambda optimizer: optimizer.param_groups[0]["lr"])


def watch_steps(module, spy, monkeypatch):
    """A list that gets for each step of Adam in update(): whether it moved the policy, and the critic, by a bit."""
    agents, step, moved = spy(module, "update", note=lambda agent, *_: agent), torch.optim.Adam.step, []

    def watched(optimizer):
        parts = agents[-1].policy_parameters(), list(agents[-1].critic.parameters())
        before = [vector(part) for part in parts]
        step(optimizer)
        moved.append([not torch.equal(vector(part), start) for part, start in zip(parts, before)])

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    return moved


def vector(params):
    return torch.nn.utils.parameters_to_vector(params).detach().clone()


def assert_same_agent(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# Runs


def command(*flags, script="ppo.py", **named):
    for name, value in named.items():
        flag, value = name.replace("_", "-"), value[0] if isinstance(value, tuple) else value
        flags += (f"--{flag}={value}",) if not isinstance(value, bool) else (f"--{flag}" if value else f"--no-{flag}",)
    return [sys.executable, ROOT / script, *flags]


def run(*argv, cwd, **env):
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")} | env
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def train(folder, variant="ppo", **flags):
    """Train an agent in a few rollouts."""
    name, more = VARIANTS[variant]
    module = importlib.import_module(name)
    return module.train(module.Args(run_dir=str(folder), **SHORT | more | flags))


def train_tiny(folder, variant="ppo", **flags):
    """Train an agent for 320 steps, in a tenth of a second."""
    name, more = VARIANTS[variant]
    module = importlib.import_module(name)
    return module.train(module.Args(run_dir=str(folder), **more | TINY[name] | flags))


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "takes too long"
        time.sleep(0.03)


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def metrics(folder):
    """Rows of metrics.csv without the columns that tell the time."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name not in ("seconds", "steps_per_second")} for row in rows]


def load(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def evaluation(folder):
    return json.loads((folder / "eval.json").read_text())


def flatten(value, path=""):
    """{path: leaf} of nested dictionaries and lists."""
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, x in items for key, leaf in flatten(x, f"{path}/{name}").items()}
    return {path: value}


def assert_same_end(folder, whole):
    """Equal rows of metrics, and equal checkpoints to the bit, but for times and the folder's name."""
    assert metrics(folder) == metrics(whole)
    assert evaluation(folder) | {"seconds": 0} == evaluation(whole) | {"seconds": 0}
    ours, theirs = flatten(load(folder)), flatten(load(whole))
    assert ours.keys() == theirs.keys()
    different = [key for key, x in ours.items() if not np.array_equal(x, theirs[key])]
    times = {"/counters/1", "/counters/3"}  # the size depends on the seconds in it
    assert set(different) <= times | {"/args/run_dir", "/args/resume"}
