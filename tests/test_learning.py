"""What each agent must be able to learn: probe environments, each asking for one ability, then the classics."""

import importlib

import gymnasium as gym
import pytest
import torch

import dqn
from tests.helpers import FAMILY, SCRIPTS, command, evaluation, metrics, run

pytestmark = pytest.mark.slow

BUDGET = {"vpg": 20_480, "a2c": 40_960, "trpo": 40_960, "ppo": 20_480, "dqn": 8_192}  # all else: the defaults
AGENTS = {name: {} for name in SCRIPTS}
AGENTS |= {"vpg total-return": {"form": "total-return"}, "vpg reward-to-go": {"form": "reward-to-go"}}
AGENTS |= {"vpg baseline": {"form": "baseline"}, "ppo penalty": {"objective": "penalty"}}


def train(tmp_path, agent, env_id, **flags):
    name = agent.split()[0]
    module = importlib.import_module(name)
    flags = {"total_timesteps": BUDGET[name]} | AGENTS[agent] | flags
    return module.train(module.Args(env_id=env_id, run_dir=str(tmp_path / "run"), **flags))


def mean_return(tmp_path):
    return evaluation(tmp_path / "run")["mean"]


def values(agent, *observations):
    """Values of (sign, t) in the environment's own rewards."""
    obs = torch.tensor(observations, dtype=torch.float32)
    value = agent.q(obs).amax(-1) if isinstance(agent, dqn.QNetwork) else agent.value(obs)
    return (value * agent.reward_norm.std).tolist()


# Values


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
    """Reward 1 at each step has the value 1 / (1 - gamma) = 10, though no episode lasts longer than 10 steps."""
    agent = train(tmp_path, agent, "ProbeTimeLimit-v0", gamma=0.9)
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
    """The mean first saturates at a bound and takes most of the default budget to come back.

    vpg and a2c do not: nothing limits their steps, and beyond the bound all actions are worth the same.
    """
    train(tmp_path, agent, "ProbeContinuous-v0", total_timesteps=100_000)
    assert mean_return(tmp_path) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("agent", SCRIPTS)
def test_actions_depend_on_the_image(tmp_path, agent):
    """With fewer passes over fewer images than by default: convolutions are slow."""
    fewer = {"trpo": {"value_epochs": 5}, "dqn": {"batch_size": 16, "gradient_steps": 8}}
    train(tmp_path, agent, "ProbeImage-v0", total_timesteps=2_560, **fewer.get(agent, {}))
    assert mean_return(tmp_path) == 1


# Whole runs, as a user runs them


@pytest.mark.parametrize("agent", [*SCRIPTS, "ppo penalty"])
def test_cartpole_is_solved_from_the_command_line(tmp_path, agent):
    script = f"{agent.split()[0]}.py"
    done = run(*command(script=script, env_id="CartPole-v1", run_dir="run", **AGENTS[agent]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mean_return(tmp_path) >= gym.spec("CartPole-v1").reward_threshold == 475


@pytest.mark.parametrize("seed", range(101, 111))
def test_ppo_stays_at_the_highest_return(tmp_path, seed):
    """With a lambda of 0.95 instead, it fails on one seed in ten: solved after 40,000 steps, and lost again later."""
    train(tmp_path, "ppo", "CartPole-v1", total_timesteps=100_000, seed=seed)
    assert mean_return(tmp_path) >= 475
    returns = [float(row["episodic_return"] or 0) for row in metrics(tmp_path / "run")]
    assert min(returns[-10:]) >= 475
