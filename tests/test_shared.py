"""What all scripts of the family have in common: advantages, distributions, running statistics, networks, evaluation.

test_family.py makes sure that the text is the same in each of them, so that ppo.py can stand for all.
"""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ppo
from tests.helpers import ENVIRONMENTS, column, flags, generators, make_agent

# Advantages


def test_gae_by_hand():
    # gamma = 1/2, lambda = 1/2. delta = 1 + next_val / 2 - val = (1 + 4/2 - 2, 1 + 8/2 - 4) = (1, 1).
    adv = ppo.gae(column(1, 1), column(2, 4), column(4, 8), flags(0, 0), flags(0, 0), 0.5, 0.5)
    assert adv.flatten().tolist() == [1 + 0.25 * 1, 1]


def test_a_terminal_state_is_worth_nothing_and_a_time_limit_is_worth_its_value():
    rew, val, next_val = column(1), column(2), column(8)
    terminated = ppo.gae(rew, val, next_val, flags(1), flags(1), 0.5, 0.5)
    truncated = ppo.gae(rew, val, next_val, flags(0), flags(1), 0.5, 0.5)
    assert terminated.item() == 1 - 2
    assert truncated.item() == 1 + 0.5 * 8 - 2


@pytest.mark.parametrize("terminated", [True, False])
def test_no_credit_flows_back_from_the_next_episode(terminated):
    done = flags(0, 1, 0)
    first = ppo.gae(column(0, 0, 0), column(0, 0, 0), column(0, 0, 0), done & terminated, done, 0.9, 0.9)
    second = ppo.gae(column(0, 0, 100), column(0, 0, 0), column(0, 0, 0), done & terminated, done, 0.9, 0.9)
    assert torch.equal(first[:2], second[:2])


@given(generators, st.integers(1, 12), st.integers(1, 3), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_gae_is_the_discounted_sum_of_temporal_difference_errors(rng, T, N, gamma, lam):
    rew, val, next_val = rng.normal(size=(3, T, N))
    done = rng.random((T, N)) < 0.3
    terminated = done & (rng.random((T, N)) < 0.5)
    expected = np.zeros((T, N))
    for t, n in np.ndindex(T, N):
        for i in range(t, T):
            bootstrap = 0 if terminated[i, n] else next_val[i, n]
            expected[t, n] += (gamma * lam) ** (i - t) * (rew[i, n] + gamma * bootstrap - val[i, n])
            if done[i, n]:
                break
    adv = ppo.gae(*map(torch.as_tensor, (rew, val, next_val, terminated, done)), gamma, lam)
    np.testing.assert_allclose(adv, expected, atol=1e-9)


@given(generators)
@settings(max_examples=20, deadline=None)
def test_with_lambda_1_advantage_plus_value_is_the_discounted_return(rng):
    rew, val = torch.as_tensor(rng.normal(size=(2, 6, 1)))
    next_val, done = torch.cat([val[1:], val[:1]]), flags(0, 0, 0, 0, 0, 1)
    ret = ppo.gae(rew, val, next_val, done, done, 0.9, 1.0) + val
    torch.testing.assert_close(ret[0, 0], sum(0.9**t * rew[t, 0] for t in range(6)))


# Distributions


def test_categorical_agrees_with_torch():
    a, b = torch.randn(2, 7, 1, 5)
    ours, theirs = ppo.Categorical(a), torch.distributions.Categorical(logits=a[:, 0])
    act = ours.sample()
    assert act.shape == (7, 1)
    torch.testing.assert_close(ours.log_prob(act), theirs.log_prob(act[:, 0]))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    expected = torch.distributions.kl_divergence(theirs, torch.distributions.Categorical(logits=b[:, 0]))
    torch.testing.assert_close(ours.kl(ppo.Categorical(b)), expected)


def test_gaussian_agrees_with_torch():
    def independent(params):
        return torch.distributions.Independent(torch.distributions.Normal(params[..., 0], params[..., 1].exp()), 1)

    a, b = torch.randn(2, 7, 3, 2)
    ours, theirs = ppo.Gaussian(a), independent(a)
    act = ours.sample()
    assert act.shape == (7, 3)
    torch.testing.assert_close(ours.log_prob(act), theirs.log_prob(act))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(
        ours.kl(ppo.Gaussian(b)), torch.distributions.kl_divergence(theirs, independent(b)), rtol=1e-4, atol=1e-4
    )


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    act = ppo.Categorical(probabilities.log().expand(100_000, 1, 3)).sample()
    torch.testing.assert_close(act.flatten().bincount() / 100_000, probabilities, atol=0.01, rtol=0)
    act = ppo.Gaussian(torch.tensor([3.0, math.log(2)]).expand(100_000, 1, 2)).sample()
    assert act.mean().item() == pytest.approx(3, abs=0.05)
    assert act.std().item() == pytest.approx(2, abs=0.05)


def test_components_of_a_multidiscrete_action_are_independent_and_of_their_own_size():
    agent, _ = make_agent(ppo, "ProbeMultiDiscrete-v0")  # 2 and 4 choices
    pi = agent.policy(torch.randn(10_000, 2))
    act = pi.sample()
    assert act.max(0).values.tolist() == [1, 3]
    one, other = pi.params.exp().unbind(-2)
    torch.testing.assert_close(one.sum(-1), torch.ones(10_000))
    joint = one.gather(-1, act[:, :1])[:, 0] * other.gather(-1, act[:, 1:])[:, 0]
    torch.testing.assert_close(pi.log_prob(act), joint.log())
    assert pi.entropy().max().item() == pytest.approx(math.log(2) + math.log(4), abs=0.01)
    assert pi.kl(pi).abs().max() == 0


@pytest.mark.parametrize(("env_id", "largest"), [("Pendulum-v1", 1), ("ProbeUnbounded-v0", 100)])
def test_the_mean_of_an_action_stays_within_its_bounds_if_it_has_any(env_id, largest):
    agent, _ = make_agent(ppo, env_id)
    with torch.no_grad():
        agent.actor[-1].weight.zero_()
        agent.actor[-1].bias.fill_(100)
    assert agent.policy(torch.zeros(1, *agent.obs_norm.mean.shape)).mode().item() == largest


def test_actions_have_the_shape_that_the_environment_takes():
    for env_id in (*ENVIRONMENTS, "ProbeShifted-v0"):
        agent, _ = make_agent(ppo, env_id)
        env = ppo.make_env(env_id)
        obs, _ = env.reset(seed=0)
        for greedy in (True, False):
            act = agent.act(np.stack([obs] * 3), greedy=greedy)
            assert act.shape == (3, *env.action_space.shape)
            env.step(act[0])


# Running statistics and networks


@given(generators, st.lists(st.integers(1, 50), min_size=1, max_size=5), st.floats(-100, 100), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_running_statistics_are_those_of_all_data_at_once(rng, sizes, mean, std):
    norm = ppo.RunningNorm((3,))
    data = torch.as_tensor(rng.normal(mean, std, (sum(sizes), 3)), dtype=torch.float32)
    for part in data.split(sizes):
        norm.update(part)
    assert norm.count == sum(sizes)
    torch.testing.assert_close(norm.mean, data.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.var, data.var(0, correction=0), rtol=1e-2, atol=1e-3)


def test_normalized_observations_have_mean_0_and_variance_1_and_stay_within_10():
    norm = ppo.RunningNorm((2,))
    data = torch.randn(1000, 2) * torch.tensor([5.0, 0.1]) + torch.tensor([100.0, -1.0])
    norm.update(data)
    torch.testing.assert_close(norm(data).mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(norm(data).var(0), torch.ones(2), atol=1e-2, rtol=0)
    assert norm(torch.full((1, 2), 1e9)).tolist() == [[10, 10]]


def test_rewards_are_divided_by_the_standard_deviation_of_the_discounted_return():
    norm, rew = ppo.RewardNorm(()), column(2.0, 2.0, 4.0)
    norm.update(rew, flags(0, 1, 0), gamma=0.5)  # discounted returns so far: 2, 2 + 1 = 3; the episode ends; 4
    torch.testing.assert_close(norm(rew) * np.std([2, 3, 4]), rew, check_dtype=False)
    norm.update(
        column(0.0, 0.0), flags(0, 0), gamma=0.5
    )  # the episode goes on in the next rollout: 0 + 4/2 = 2, 0 + 2/2 = 1
    assert norm.var.item() == pytest.approx(np.var([2, 3, 4, 2, 1]))
    norm.ret = 0
    norm.update(column(6.0), flags(0), gamma=0.5)  # the environments were reset: 6
    assert norm.var.item() == pytest.approx(np.var([2, 3, 4, 2, 1, 6]))


def test_scaling_a_reward_leaves_the_statistics_alone():
    norm = ppo.RewardNorm(())
    norm.update(column(2.0, 4.0), flags(0, 0), gamma=0.5)
    before = {name: x.clone() for name, x in norm.state_dict().items()}
    norm(column(100.0))
    assert all(torch.equal(before[name], x) for name, x in norm.state_dict().items())


def test_a_constant_reward_without_spread_is_clipped_at_10():
    """Episodes of one step: all discounted returns are 1, their standard deviation is 0."""
    norm = ppo.RewardNorm(())
    norm.update(column(1.0, 1.0, 1.0), flags(1, 1, 1), gamma=0.5)
    assert norm(column(1.0)).item() == 10


def test_image_network_treats_each_image_alone_whatever_the_leading_dimensions():
    agent, _ = make_agent(ppo, "ProbeImage-v0")
    images = torch.randint(0, 256, (2, 3, 3, 40, 36), dtype=torch.uint8)  # [T, N, C, H, W]
    flat = agent.value(images.flatten(0, 1))
    torch.testing.assert_close(agent.value(images), flat.view(2, 3))
    assert agent.policy(images).params.shape == (2, 3, 1, 2)


def test_evaluation_takes_the_most_likely_action():
    agent, _ = make_agent(ppo, "ProbeRewardFromAction-v0")
    with torch.no_grad():
        agent.actor[-1].weight.zero_()
        agent.actor[-1].bias.copy_(torch.tensor([0.1, 0.0]))  # action 0, the right one, at 52 %
    assert ppo.evaluate(agent, gym.make("ProbeRewardFromAction-v0"), episodes=20, seed=0) == [1.0] * 20


def test_acting_leaves_the_statistics_alone():
    agent, _ = make_agent(ppo)
    before = {name: x.clone() for name, x in agent.state_dict().items()}
    ppo.evaluate(agent, gym.make("CartPole-v1"), episodes=2, seed=0)
    assert all(torch.equal(before[name], x) for name, x in agent.state_dict().items())
