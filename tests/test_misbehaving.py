"""Environments that misbehave: the run stops with a sentence that says what and when, or works all the same."""

import importlib
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.environments import ACTION_SPACES
from tests.helpers import SCRIPTS, evaluation, load, metrics
from tests.helpers import train as train_longer

QUICK = {"total_timesteps": 384, "checkpoint_every": 128}  # three rollouts; a checkpoint before each, and at the end
FEWER = {"vpg": {"value_epochs": 2}, "trpo": {"value_epochs": 2}, "ppo": {"update_epochs": 1, "num_minibatches": 2}}


def train(folder, name, env_id, **flags):
    return train_longer(folder, name, env_id=env_id, **QUICK | FEWER.get(name, {}) | flags)


def is_finite(saved):
    if isinstance(saved, torch.Tensor):
        return bool(saved.isfinite().all())
    return all(map(is_finite, saved.values())) if isinstance(saved, dict) else True


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("NanObservation", "observation is nan at step 256; "),  # from step 40 of each environment on: rollout 2
        ("InfiniteObservation", "observation is inf at step 256; "),
        ("NanLastObservation", "observation is nan at step 256; "),
        ("NanReward", "reward is nan at step 256; "),
        ("InfiniteReward", "reward is -inf at step 256; "),
    ],
)
def test_a_number_that_is_not_finite_is_named_and_never_saved(tmp_path, name, fault, sentence):
    """dqn.py has not begun to learn by then: no loss tells."""
    flags = {"learning_starts": 384} if name == "dqn" else {}
    with pytest.raises(FloatingPointError, match=f"^{sentence}.*; last good checkpoint: .*checkpoint.pt$"):
        train(tmp_path, name, env_id=f"Probe{fault}-v0", **flags)
    assert load(tmp_path)["step"] == 128
    assert is_finite(load(tmp_path))


def test_on_the_command_line_that_is_one_sentence_and_exit_status_1(tmp_path, capsys, monkeypatch):
    flags = "--env-id", "ProbeNanReward-v0", "--run-dir", str(tmp_path / "out"), "--num-envs", "4"
    monkeypatch.setattr(sys, "argv", ["a2c.py", *flags])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module("a2c").main()
    assert stop.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "a2c.py" in line]
    assert line.startswith("a2c.py: reward is nan at step 256; check the environment; ")


@pytest.mark.parametrize("name", SCRIPTS)
def test_observations_may_be_lists_and_lie_outside_their_space(tmp_path, name):
    train(tmp_path, name, env_id="ProbeLoose-v0")
    assert evaluation(tmp_path)["returns"] == [5, 5]


ACTIONS = [(name, space) for name in ("trpo", "ppo") for space in ACTION_SPACES]  # the text is shared
ACTIONS += [("dqn", "OneAction"), ("dqn", "FromMinusOne")]


@pytest.mark.parametrize(("name", "space"), ACTIONS)
def test_every_action_is_in_its_space(tmp_path, name, space):
    """The environment raises AssertionError for any other; bounds included, which rounding could miss."""
    agent = train(tmp_path, name, env_id=f"Probe{space}-v0")
    assert is_finite(agent.state_dict())
    assert np.isfinite(evaluation(tmp_path)["mean"])


@pytest.mark.parametrize("act", [-9, -1, 1, 9])
def test_the_largest_and_the_smallest_action_are_the_bounds_themselves(act):
    """In float32, RescaleAction alone turns 1 into 0.10000001 here."""
    env = importlib.import_module("ppo").make_env("ProbeOdd-v0")
    env.reset(seed=0)
    space = env.unwrapped.action_space
    env.step(np.full(2, act, np.float32))  # raises AssertionError if not in the space
    assert space.contains(space.low) and space.contains(space.high)


@pytest.mark.parametrize("name", SCRIPTS)
def test_episodes_may_end_at_each_step(tmp_path, name):
    train(tmp_path, name, env_id="ProbeConstantReward-v0")
    assert [(row["episodic_return"], row["episodic_length"]) for row in metrics(tmp_path)] == [("1.0", "1.0")] * 3


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_episode_that_never_ends_is_cut_and_until_then_has_no_return(tmp_path, monkeypatch, name):
    """make_env sets a limit of 27,000 steps; 200 here, to save time."""
    limit = gym.wrappers.TimeLimit
    monkeypatch.setattr(gym.wrappers, "TimeLimit", lambda env, steps: limit(env, min(steps, 200)))
    train(tmp_path, name, env_id="ProbeEndless-v0")  # 96 steps of each environment
    assert [row["episodic_return"] for row in metrics(tmp_path)] == [""] * 3
    assert evaluation(tmp_path)["returns"] == [200, 200]


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("Raises", ZeroDivisionError, "the environment's own words"),
        ("WrongShape", ValueError, "shape"),
    ],
)
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_error_of_the_environment_is_shown_as_it_is_and_the_checkpoint_stays(
    tmp_path, name, fault, error, words, spy
):
    closed = spy(gym.vector.SyncVectorEnv, "close")
    with pytest.raises(error, match=words):
        train(tmp_path, name, env_id=f"Probe{fault}-v0", checkpoint_every=10_000)
    assert load(tmp_path)["step"] == 0  # that of the start
    assert len(closed) == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_environments_are_closed_at_the_end(tmp_path, name, spy):
    closed = spy(gym.vector.SyncVectorEnv, "close")
    train(tmp_path, name, env_id="CartPole-v1")
    assert len(closed) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"), [*((name, 20_480) for name in ("vpg", "a2c", "ppo")), ("trpo", 40_960), ("dqn", 8_192)]
)
def test_a_small_difference_between_large_rewards_can_be_learned_from(tmp_path, name, steps):
    module = importlib.import_module(name)
    module.train(module.Args(env_id="ProbeSmallDifference-v0", run_dir=str(tmp_path), total_timesteps=steps))
    assert evaluation(tmp_path)["mean"] == 100.5
