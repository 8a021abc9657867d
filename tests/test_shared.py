"""What all scripts of the family have in common: advantages, distributions, running statistics, networks, evaluation.

test_family.py makes sure that the text is the same in each of them, so that ppo.py can stand for all.
"""

import math
import threading
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ppo
from tests.helpers import ENVIRONMENTS, column, flags, generators, make_agent, plain, vector

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


@pytest.mark.parametrize(("actions", "std"), [(1, 1.65), (2, 0.98), (6, 0.43), (17, 0.2)])
def test_the_more_components_an_action_has_the_less_each_explores_at_first(actions, std):
    agent = ppo.ActorCritic(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (actions,)), ppo.Args())
    assert agent.policy(torch.zeros(3)).log_std.exp().tolist() == pytest.approx([std] * actions, rel=0.02)


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


PARTS = 1, 7, 400, 3, 2_000, 50, 20  # samples of each update


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (1e4, 1), (-1e4, 100)])
def test_running_statistics_are_exact_far_from_0_too(mean, std):
    """Up to the resolution of float32, which is 0.001 at a mean of 10,000."""
    norm, rng = ppo.RunningNorm((3,)), np.random.default_rng(0)
    data = rng.normal(mean, std, (sum(PARTS), 3)).astype(np.float32)
    for part in torch.as_tensor(data).split(PARTS):
        norm.update(part)
    data = data.astype(float)
    np.testing.assert_allclose(norm.mean, data.mean(0), atol=0.002 if mean else 1e-6, rtol=0)
    np.testing.assert_allclose(norm.var, data.var(0), rtol=1e-4)
    np.testing.assert_allclose(norm.std, data.std(0), rtol=1e-4)


@pytest.mark.parametrize("mean", [0, 1e4])
def test_running_statistics_of_two_workers_are_those_of_all_their_data(monkeypatch, mean):
    """The workers are threads here; one has larger numbers than the other."""
    barrier, parts = threading.Barrier(2, timeout=60), {}

    def all_mean(x):
        parts[threading.current_thread()] = x.clone()
        barrier.wait()
        total = sum(parts[thread] for thread in threads)
        barrier.wait()
        return x.copy_(total / 2)

    def work(norm, data):
        for part in torch.as_tensor(data).split(100):
            norm.update(part)

    monkeypatch.setattr(ppo, "WORKERS", 2)
    monkeypatch.setattr(ppo, "all_mean", all_mean)
    rng, norms = np.random.default_rng(0), [ppo.RunningNorm((3,)) for _ in range(2)]
    data = [rng.normal(mean + shift, 1, (500, 3)).astype(np.float32) for shift in (0, 2)]
    threads = [threading.Thread(target=work, args=pair) for pair in zip(norms, data)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = np.concatenate(data).astype(float)
    for norm in norms:
        np.testing.assert_allclose(norm.mean, data.mean(0), atol=0.002 if mean else 1e-6, rtol=0)
        np.testing.assert_allclose(norm.var, data.var(0), rtol=1e-3)


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


def test_rewards_that_hardly_vary_are_divided_by_a_fifth_of_their_mean_size_and_not_clipped():
    """Episodes of one step. By the standard deviation of 1 all would become about 100, and be clipped at 10."""
    norm, rew = ppo.RewardNorm(()), column(-99.0, -101.0)
    norm.update(rew, flags(1, 1), gamma=0.5)
    assert norm(rew).flatten().tolist() == pytest.approx([-99 / 20, -101 / 20])


def test_a_constant_reward_becomes_5_in_episodes_of_one_step_and_a_reward_of_0_stays_0():
    for reward, scaled in (7.0, 5), (-1e6, -5), (0.0, 0):
        norm = ppo.RewardNorm(())
        norm.update(column(reward, reward, reward), flags(1, 1, 1), gamma=0.5)
        assert norm(column(reward)).item() == pytest.approx(scaled)


def test_of_images_the_mean_is_subtracted_before_they_are_divided_by_255():
    norm, images = ppo.RunningNorm((3, 40, 36)), torch.randint(0, 256, (5, 3, 40, 36), dtype=torch.uint8)
    norm.update(images[:2])
    norm.update(images[2:])
    torch.testing.assert_close(norm(images), images / 255 - images.float().mean(0) / 255)


def test_noise_does_not_turn_off_the_units_that_read_images():
    """Without subtracting the mean image, more than half are 0 for all images after these 64 gradient steps."""
    rows, args = 128, ppo.Args()
    agent = ppo.ActorCritic(spaces.Box(0, 255, (1, 84, 84), np.uint8), spaces.Discrete(6), args)
    images = torch.full((rows, 1, 84, 84), 87, dtype=torch.uint8)
    for image in images[:, 0]:
        row, col = torch.randint(80, (2,)).tolist()
        image[row : row + 4, col : col + 4] = 236
    agent.obs_norm.update(images)
    batch = ppo.Batch(images, torch.randint(6, (rows, 1)), torch.randn(rows), torch.randn(rows))
    penalty = nn.Module()
    ppo.update(agent, ppo.Adam(agent.parameters(), args), penalty, batch, 1e-3, args)
    units = agent.actor[:3](agent.obs_norm(images))
    assert (units.max(0).values == 0).float().mean() < 0.1


def test_image_network_treats_each_image_alone_whatever_the_leading_dimensions():
    agent, _ = make_agent(ppo, "ProbeImage-v0")
    images = torch.randint(0, 256, (2, 3, 3, 40, 36), dtype=torch.uint8)  # [T, N, C, H, W]
    flat = agent.value(images.flatten(0, 1))
    torch.testing.assert_close(agent.value(images), flat.view(2, 3))
    assert agent.policy(images).params.shape == (2, 3, 1, 2)


@pytest.mark.parametrize("hidden_sizes", [(), (8,), (8, 5)])
def test_an_mlp_computes_what_its_layers_do_with_tanh_between_them(hidden_sizes):
    obs, mlp = torch.randn(4, 6, 3), ppo.network((3,), hidden_sizes, 2, 1.0)
    expected = plain(mlp)(obs)
    torch.testing.assert_close(mlp(obs), expected)

    copy = deepcopy(mlp)
    with torch.no_grad():
        for param in mlp.parameters():
            param.add_(1)
    torch.testing.assert_close(copy(obs), expected)  # a copy has parameters of its own
    torch.testing.assert_close(mlp(obs), plain(mlp)(obs))
    assert not torch.equal(mlp(obs), expected)

    mlp.load_state_dict(copy.state_dict())
    assert torch.equal(mlp(obs), copy(obs))


# The optimizer


def parabolas(params):
    """A loss whose gradient is much larger for some parameters than for others, and 0 for one number of each."""
    total = 0
    for i, param in enumerate(params):
        weight = torch.ones_like(param).flatten()
        weight[0] = 0
        total = total + 10.0 ** (1 - 2 * i) * (weight * (param.flatten() - i) ** 2).sum()
    return total


@pytest.mark.parametrize("max_grad_norm", [0.5, 50.0, float("inf")])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-10)])
def test_adam_takes_the_steps_of_torch_with_clipped_gradients(dtype, tolerance, max_grad_norm):
    """The norm falls from above 200 to below 50: 0.5 clips all gradients, 50 the first ones."""
    torch.manual_seed(0)
    ours = [nn.Parameter(3 * torch.randn(shape, dtype=dtype)) for shape in [(2, 3, 4), (4, 5), (3,), (2,)]]
    theirs, norms = deepcopy(ours), []
    adam, reference = ppo.Adam(ours, ppo.Args(max_grad_norm=max_grad_norm)), torch.optim.Adam(theirs, eps=1e-5)
    for i in range(30):
        lr = 0.3 * (1 - i / 60)
        norms.append(adam.step(parabolas(ours), lr).item())
        reference.param_groups[0]["lr"] = lr
        reference.zero_grad()
        parabolas(theirs).backward()
        expected = nn.utils.clip_grad_norm_(theirs, max_grad_norm)
        reference.step()
        assert norms[-1] == pytest.approx(expected.item(), rel=10 * tolerance)
        for one, two in zip(ours, theirs):
            torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)
    assert norms[0] > 200
    assert norms[-1] < 50


def test_adam_takes_a_quarter_of_the_step_with_convolutions():
    for conv, scale in (nn.Conv1d(2, 3, 2), 1), (nn.Conv2d(2, 3, 2), 0.25):
        params = [*conv.parameters(), nn.Parameter(torch.ones(3))]
        before = deepcopy(params)
        loss = sum(param.sum() for param in params)
        ppo.Adam(params, ppo.Args()).step(loss, 0.1)  # the first step is the learning rate
        for one, two in zip(before, params):
            torch.testing.assert_close((one - two).abs(), torch.full_like(one, scale * 0.1), rtol=0.01, atol=0)


def make_optimizer():
    agent, args = make_agent(ppo)
    return agent, ppo.Adam(agent.parameters(), args)


def loss_of(agent):
    obs = torch.linspace(-1, 1, 32).view(8, 4)
    return (agent.value(obs) - 1).square().mean() + agent.policy(obs).params.square().mean()


def test_adam_goes_on_from_its_state_to_the_bit():
    agent, optimizer = make_optimizer()
    for _ in range(3):
        optimizer.step(loss_of(agent), 0.01)
    other, restored = make_optimizer()
    other.load_state_dict(agent.state_dict())
    restored.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        assert torch.equal(optimizer.step(loss_of(agent), 0.01), restored.step(loss_of(other), 0.01))
        assert torch.equal(vector(agent.parameters()), vector(other.parameters()))


def test_the_parameters_are_views_of_one_vector_and_stay_so():
    """What is written to the vector is in the parameters, at first, after steps and after loading."""
    agent, optimizer = make_optimizer()
    other, _ = make_agent(ppo)

    def write():
        with torch.no_grad():
            optimizer.vector.copy_(torch.randn_like(optimizer.vector))
        assert torch.equal(vector(agent.parameters()), optimizer.vector)

    write()
    optimizer.step(loss_of(agent), 0.01)
    assert torch.equal(vector(agent.parameters()), optimizer.vector)
    write()
    agent.load_state_dict(other.state_dict())
    assert torch.equal(vector(other.parameters()), optimizer.vector)
    write()
    before = optimizer.vector.clone()
    optimizer.step(loss_of(agent), 0.01)
    assert not torch.equal(vector(agent.parameters()), before)


def test_parameters_without_a_gradient_are_left_alone():
    fixed, free = nn.Parameter(torch.ones(3), requires_grad=False), nn.Parameter(torch.ones(3))
    address, optimizer = fixed.data_ptr(), ppo.Adam([fixed, free], ppo.Args())
    optimizer.step((fixed * free).sum(), 0.1)
    assert fixed.tolist() == [1, 1, 1]
    assert fixed.grad is None
    assert fixed.data_ptr() == address
    assert free.tolist() == pytest.approx([0.9] * 3, abs=1e-3)
    assert len(optimizer.vector) == len(free)


# Acting


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
