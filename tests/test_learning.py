"""What each agent must be able to learn: probe environments, each asking for one ability, then the classics."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import dqn
import ppo
from tests.test_family import FAMILY, ROOT, SCRIPTS

SMALL = {
    "vpg": {"num_steps": 8, "total_timesteps": 25_600, "learning_rate": 3e-3},
    "a2c": {"num_steps": 8, "total_timesteps": 25_600, "learning_rate": 3e-3},
    "trpo": {"num_steps": 16, "total_timesteps": 12_800, "learning_rate": 5e-3, "value_epochs": 10, "max_kl": 0.05},
    "ppo": {"num_steps": 16, "total_timesteps": 12_800, "learning_rate": 3e-3, "num_minibatches": 4},
    "dqn": {"num_steps": 8, "total_timesteps": 12_800, "learning_starts": 512},
}
AGENTS = {name: {} for name in SCRIPTS}
AGENTS |= {"vpg total-return": {"form": "total-return"}, "vpg reward-to-go": {"form": "reward-to-go"}}
AGENTS |= {"vpg baseline": {"form": "baseline"}, "ppo penalty": {"objective": "penalty"}}


def train(tmp_path, agent, env_id, **flags):
    name = agent.split()[0]
    module = importlib.import_module(name)
    flags = SMALL[name] | AGENTS[agent] | flags
    return module.train(module.Args(env_id=env_id, num_envs=16, run_dir=str(tmp_path / "run"), **flags))


def mean_return(tmp_path):
    return json.loads((tmp_path / "run/eval.json").read_text())["mean"]


def values(agent, *observations):
    """Values of (sign, t) in the environment's own rewards."""
    scale = (agent.reward_norm.var + 1e-8).sqrt()
    obs = torch.tensor(observations, dtype=torch.float32)
    value = agent.q(obs).amax(-1) if isinstance(agent, dqn.QNetwork) else agent.value(obs)
    return (value * scale).tolist()


# Values


@pytest.mark.parametrize("agent", SCRIPTS)
def test_the_value_of_a_constant_reward_is_that_reward(tmp_path, agent):
    agent = train(tmp_path, agent, "ProbeConstantReward-v0")
    scaled_reward = agent.reward_norm(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)).item()
    scale = (agent.reward_norm.var + 1e-8).sqrt().item()
    assert values(agent, (1, 0)) == pytest.approx([scaled_reward * scale], rel=0.1)


@pytest.mark.parametrize("agent", SCRIPTS)
def test_values_depend_on_the_observation(tmp_path, agent):
    agent = train(tmp_path, agent, "ProbeRewardFromObservation-v0")
    assert values(agent, (1, 0), (-1, 0)) == pytest.approx([1, -1], abs=0.1)


@pytest.mark.parametrize("agent", SCRIPTS)
def test_a_reward_one_step_late_is_discounted_once(tmp_path, agent):
    agent = train(tmp_path, agent, "ProbeRewardOneStepLate-v0", gamma=0.5)
    assert values(agent, (1, 0), (1, 1), (-1, 0), (-1, 1)) == pytest.approx([0.5, 1, -0.5, -1], abs=0.1)


@pytest.mark.parametrize("agent", SCRIPTS)
def test_a_time_limit_does_not_lower_the_value(tmp_path, agent):
    """Reward 1 for ever is worth 1 / (1 - gamma) = 10, though no episode lasts longer than 10 steps."""
    agent = train(tmp_path, agent, "ProbeTimeLimit-v0", gamma=0.9, total_timesteps=25_600)
    assert values(agent, (1, 0)) == pytest.approx([10], abs=1)


# Actions


@pytest.mark.parametrize("agent", [agent for agent in AGENTS if agent != "dqn"])
def test_the_better_action_becomes_the_likely_one(tmp_path, agent):
    agent = train(tmp_path, agent, "ProbeRewardFromAction-v0")
    probabilities = agent.policy(torch.tensor([[1.0, 0.0]])).params.exp().flatten()
    assert probabilities[0] > 0.95


@pytest.mark.parametrize(
    ("env_id", "best"),
    [
        ("ProbeRewardFromBoth-v0", 1),
        ("ProbeUnbounded-v0", 0),
        ("ProbeMultiDiscrete-v0", 2),
        ("ProbeShifted-v0", 1),
        ("ProbeDict-v0", 1),
    ],
)
@pytest.mark.parametrize("agent", [*FAMILY, "vpg total-return", "ppo penalty"])
def test_actions_depend_on_the_observation(tmp_path, agent, env_id, best):
    train(tmp_path, agent, env_id)
    assert mean_return(tmp_path) == pytest.approx(best, abs=0.1)


@pytest.mark.parametrize("env_id", ["ProbeRewardFromBoth-v0", "ProbeShifted-v0", "ProbeDict-v0"])
def test_values_choose_the_right_action(tmp_path, env_id):
    train(tmp_path, "dqn", env_id)
    assert mean_return(tmp_path) == 1


@pytest.mark.parametrize("agent", ["trpo", "ppo", "ppo penalty"])
def test_actions_find_their_place_between_bounds(tmp_path, agent):
    """Not vpg and a2c: no limit to their steps, which run on to the bound, where all actions pay the same."""
    train(tmp_path, agent, "ProbeContinuous-v0")
    assert mean_return(tmp_path) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("agent", ["trpo", "ppo", "dqn"])
def test_actions_depend_on_the_image(tmp_path, agent):
    fewer = {"batch_size": 16, "gradient_steps": 8} if agent == "dqn" else {}
    train(tmp_path, agent, "ProbeImage-v0", total_timesteps=2_560, **fewer)
    assert mean_return(tmp_path) == 1


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Blackjack-v1", "CliffWalking-v1"])
def test_spaces_that_are_not_vectors_are_flattened(tmp_path, env_id):
    train(tmp_path, "ppo", env_id, total_timesteps=2_560, eval_episodes=1)


def test_continuous_actions_arrive_on_the_environments_own_scale():
    env = ppo.make_env(ppo.Args(env_id="Pendulum-v1"))  # torque in [-2, 2]
    torques = []
    env.unwrapped.step = lambda act: (
        torques.append(act.item()) or (env.observation_space.sample(), 0.0, False, False, {})
    )
    env.reset()
    for act in (-3, -1, -0.5, 0, 1, 9):
        env.step([act])
    assert torques == [-2, -2, -1, 0, 2, 2]


@pytest.mark.parametrize(
    ("env_id", "modules", "shape"),
    [
        ("ALE/Pong-v5", ["ale_py", "cv2"], (4, 84, 84)),
        ("CarRacing-v3", ["Box2D"], (3, 96, 96)),
        ("HalfCheetah-v5", ["mujoco"], (17,)),
    ],
)
def test_optional_environments(env_id, modules, shape):
    for module in modules:
        pytest.importorskip(module)
    args = ppo.Args(env_id=env_id)
    env = ppo.make_env(args)
    assert env.observation_space.shape == shape
    agent = ppo.ActorCritic(env.observation_space, env.action_space, args)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    env.step(agent.act(obs[None]).reshape(env.action_space.shape)[()])


# Whole runs, as a user runs them


@pytest.mark.parametrize("agent", [*SCRIPTS, "ppo penalty"])
def test_cartpole_is_solved_from_the_command_line(tmp_path, agent):
    script = Path(ROOT / f"{agent.split()[0]}.py")
    flags = [f"--{name}={value}" for name, value in AGENTS[agent].items()]
    command = [sys.executable, script, "--env-id", "CartPole-v1", "--run-dir", tmp_path / "run", *flags]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    assert mean_return(tmp_path) >= gym.spec("CartPole-v1").reward_threshold == 475
