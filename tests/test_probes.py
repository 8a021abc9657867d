"""Probe environments: each asks for one ability, so that a failure says which is missing."""

import importlib

import pytest
import torch

import dqn
from tests.helpers import FAMILY, evaluation

pytestmark = pytest.mark.slow

SCRIPTS = [*FAMILY, "dqn"]  # test_continuous.py has the probes of the others
BUDGET = {"vpg": 20_480, "a2c": 40_960, "trpo": 40_960, "ppo": 20_480, "dqn": 8_192}  # all else: the defaults
AGENTS = {name: {} for name in SCRIPTS}
AGENTS |= {"vpg total-return": {"form": "total-return"}, "ppo penalty": {"objective": "penalty"}}


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


@pytest.mark.parametrize("script", SCRIPTS)
def test_values_depend_on_the_observation(tmp_path, script):
    agent = train(tmp_path, script, "ProbeRewardFromObservation-v0")
    assert values(agent, (1, 0), (-1, 0)) == pytest.approx([1, -1], abs=0.1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_reward_one_step_late_is_discounted_once(tmp_path, script):
    agent = train(tmp_path, script, "ProbeRewardOneStepLate-v0", gamma=0.5)
    assert values(agent, (1, 0), (1, 1), (-1, 0), (-1, 1)) == pytest.approx([0.5, 1, -0.5, -1], abs=0.1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_time_limit_does_not_lower_the_value(tmp_path, script):
    """Reward 1 at each step has the value 1 / (1 - gamma) = 10, though no episode lasts longer than 10 steps."""
    agent = train(tmp_path, script, "ProbeTimeLimit-v0", gamma=0.9)
    assert values(agent, (1, 0)) == pytest.approx([10], abs=1)


@pytest.mark.parametrize("agent", AGENTS)
def test_actions_depend_on_the_observation(tmp_path, agent):
    train(tmp_path, agent, "ProbeRewardFromBoth-v0")
    assert mean_return(tmp_path) == 1


@pytest.mark.parametrize("script", FAMILY)
def test_continuous_actions_depend_on_the_observation(tmp_path, script):
    train(tmp_path, script, "ProbeUnbounded-v0")
    assert mean_return(tmp_path) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("script", ["trpo", "ppo"])
def test_actions_find_their_place_between_bounds(tmp_path, script):
    """The mean first saturates at a bound and takes most of the default budget to come back.

    vpg and a2c do not: nothing limits their steps, and beyond the bound all actions are worth the same.
    """
    train(tmp_path, script, "ProbeContinuous-v0", total_timesteps=100_000)
    assert mean_return(tmp_path) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    ("script", "env_id", "best"),
    [("ppo", "ProbeMultiDiscrete-v0", 2), ("ppo", "ProbeDict-v0", 1), ("dqn", "ProbeShifted-v0", 1)],
)
def test_any_discrete_action_and_any_observation_will_do(tmp_path, script, env_id, best):
    train(tmp_path, script, env_id)
    assert mean_return(tmp_path) == best


@pytest.mark.parametrize("script", SCRIPTS)
def test_actions_depend_on_the_image(tmp_path, script):
    """With fewer passes over fewer images than by default: convolutions are slow."""
    fewer = {"trpo": {"value_epochs": 5}, "dqn": {"batch_size": 16, "gradient_steps": 8}}
    train(tmp_path, script, "ProbeImage-v0", total_timesteps=2_560, **fewer.get(script, {}))
    assert mean_return(tmp_path) == 1
