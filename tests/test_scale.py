"""Large sizes: many environments, a replay buffer of ten million transitions; the memory that they take."""

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

import dqn
import ppo
from tests.helpers import evaluation, metrics

MIB = 2**20 if sys.platform == "darwin" else 2**10  # of the unit of ru_maxrss
ROWS = 10_000_000


def measured(task, *args):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task(*args)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MIB


def growth(task, *args):
    """MiB by which the peak memory of a new, small process grows while task(*args) runs in it.

    A copy of this process would start with what earlier tests left: memory that is free but counts as used.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        return pool.submit(measured, task, *args).result()


@pytest.mark.slow
@pytest.mark.parametrize("script", [ppo, dqn])
def test_1024_environments_run_within_100_mib(tmp_path, script):
    args = script.Args(num_envs=1_024, num_steps=8, total_timesteps=10 * 8_192, run_dir=str(tmp_path), eval_episodes=1)
    assert growth(script.train, args) < 100
    assert evaluation(tmp_path)["global_step"] == int(metrics(tmp_path)[-1]["global_step"]) == 81_920


def fill_and_use(folder):
    """Fill a buffer, draw batches from it and write it to a file."""
    args = dqn.Args(num_envs=1_000, num_steps=100, buffer_size=ROWS)
    agent = dqn.QNetwork(dqn.make_env("CartPole-v1").observation_space, dqn.spaces.Discrete(2), args)
    replay = dqn.ReplayBuffer(dqn.make_env("CartPole-v1").observation_space, args)
    shape = args.num_steps, args.num_envs
    obs, zeros, flags = torch.rand(*shape, 4), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    rollout = dqn.Rollout(obs, zeros.long(), zeros, obs, flags, flags)
    while len(replay) < ROWS:
        replay.add(rollout)
    batches = list(replay.sample(args, agent.reward_norm))
    assert len(batches) == args.gradient_steps
    torch.save(replay.state_dict(), folder / "replay.pt")


@pytest.mark.slow
def test_a_buffer_of_ten_million_transitions_takes_46_bytes_for_each(tmp_path):
    """CartPole-v1: twice 4 numbers of 4 bytes, an action of 8, a reward of 4, two flags."""
    needed = ROWS * 46 / 2**20
    assert needed < growth(fill_and_use, tmp_path) < needed + 100
    assert (tmp_path / "replay.pt").stat().st_size / 2**20 == pytest.approx(needed, rel=0.01)
