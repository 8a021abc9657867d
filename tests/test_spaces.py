"""What an agent sees and does: observations become vectors or images, actions arrive as the environment wants them."""

import importlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ppo
from tests.helpers import SCRIPTS, evaluation, make_agent, train


def received(env, *actions):
    """What the innermost environment gets for some actions."""
    seen = []

    def step(act):
        seen.append(act)
        return env.unwrapped.observation_space.sample(), 0.0, False, False, {}

    env.unwrapped.step = step
    env.reset(seed=0)
    for act in actions:
        env.step(act)
    return seen


def test_bounded_actions_are_clipped_to_1_and_arrive_on_the_environments_own_scale():
    env = ppo.make_env("Pendulum-v1")  # torque in [-2, 2]
    torques = received(env, *([act] for act in (-3, -1, -0.5, 0, 1, 9)))
    assert [torque.item() for torque in torques] == [-2, -2, -1, 0, 2, 2]


def test_actions_with_one_bound_are_clipped_there_and_not_scaled():
    env = ppo.make_env("ProbeHalfBounded-v0")  # at least 0
    amounts = received(env, *(np.array([act], np.float32) for act in (-3, 0.5, 40)))
    assert [amount.item() for amount in amounts] == [0, 0.5, 40]
    agent, _ = make_agent(ppo, "ProbeHalfBounded-v0")
    assert agent.policy(torch.zeros(1, 2)).mean.abs() < 1
    with torch.no_grad():
        agent.actor[-1].bias.fill_(100)
    assert agent.act(np.zeros((1, 2), np.float32), greedy=True).item() == pytest.approx(100, abs=1)  # no tanh


def test_choices_count_from_0():
    assert received(ppo.make_env("ProbeShifted-v0"), np.int64(0), np.int64(1)) == [5, 6]
    (act,) = received(ppo.make_env("ProbeMultiDiscrete-v0"), np.array([0, 0]))
    assert act.tolist() == [0, 1]


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("env_id", "size"),
    [
        ("FrozenLake-v1", 16),  # one of 16 squares
        ("Blackjack-v1", 32 + 11 + 2),  # player's sum, dealer's card, usable ace
        ("ProbeDict-v0", 2 + 2 + 4),  # MultiBinary(2), Box(2, 2), Discrete(2)
    ],
)
def test_spaces_that_are_not_vectors_are_flattened(name, env_id, size):
    env = importlib.import_module(name).make_env(env_id)
    assert env.observation_space.shape == (size,)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (size,)
    (observed,) = [wrapper for wrapper in unwrap(env) if isinstance(wrapper, gym.wrappers.FlattenObservation)]
    inner = observed.env.observation_space
    assert spaces.unflatten(inner, obs) in inner  # nothing is lost
    env.step(env.action_space.sample())


def unwrap(env):
    while env is not env.unwrapped:
        yield env
        env = env.env


def test_images_come_with_their_channels_first():
    env = ppo.make_env("ProbeImage-v0")  # 40 high, 36 wide, RGB
    assert env.observation_space.shape == (3, 40, 36)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (3, 40, 36)
    assert np.array_equal(obs.transpose(1, 2, 0), env.unwrapped.observe())


def test_an_environment_without_a_time_limit_gets_one():
    env = ppo.make_env("ProbeEndless-v0")
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(27_000)]
    assert ends == [(False, False)] * 26_999 + [(False, True)]


OPTIONAL = {  # modules that it needs, shape of its observations
    "ALE/Pong-v5": (["ale_py", "cv2"], (4, 84, 84)),
    "CarRacing-v3": (["Box2D"], (3, 96, 96)),
    "LunarLander-v3": (["Box2D"], (8,)),
    "HalfCheetah-v5": (["mujoco"], (17,)),
}


@pytest.mark.optional
@pytest.mark.parametrize("env_id", OPTIONAL)
def test_optional_environments(env_id):
    modules, shape = OPTIONAL[env_id]
    for module in modules:
        pytest.importorskip(module)
    env = ppo.make_env(env_id)
    assert env.observation_space.shape == shape
    agent, _ = make_agent(ppo, env_id)
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        assert env.observation_space.contains(obs)
        act = agent.act(obs[None])[0]
        assert env.action_space.contains(np.clip(act, -1, 1) if isinstance(env.action_space, spaces.Box) else act)
        obs, *_ = env.step(act)


@pytest.mark.slow
@pytest.mark.optional
@pytest.mark.parametrize(("name", "env_id"), [("ppo", "HalfCheetah-v5"), ("dqn", "LunarLander-v3")])
def test_optional_environments_can_be_trained_on(tmp_path, name, env_id):
    for module in OPTIONAL[env_id][0]:
        pytest.importorskip(module)
    train(tmp_path, name, env_id=env_id)
    assert np.isfinite(evaluation(tmp_path)["mean"])
