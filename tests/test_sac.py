"""Soft actor-critic: the squashed density, soft values, and the temperature, against exact solutions."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

import sac
from tests.helpers import make_agent, vector
from tests.test_continuous import Replay, make, make_batch

STATES = [(0.0, 1.0, 0.66980), (0.5, 0.3, -0.09484), (-1.0, 0.5, -0.25339), (0.0, 0.09, -0.99707)]
BEST = (0.5, 0.3)  # mean and standard deviation of the optimum of the problems of one state


def squashed(mean, std, shape=(1,)):
    mean = torch.full(shape, mean, dtype=torch.float64)
    return sac.SquashedGaussian(mean, torch.full_like(mean, std).log())


def torchs(pi):
    normal = Independent(Normal(pi.mean, pi.log_std.exp()), 1)
    return TransformedDistribution(normal, TanhTransform(cache_size=1))


class Constant(nn.Module):
    """An actor with the same mean and log_std in all states."""

    def __init__(self, mean=0.0, std=1.0):
        super().__init__()
        self.output = nn.Parameter(torch.tensor([mean, math.log(std)], dtype=torch.float64))

    def forward(self, obs):
        return self.output.expand(len(obs), 2)


class Best(nn.Module):
    """Q(a) = scale log p(a) + shift. The best policy for alpha = scale is p, the squashed Gaussian BEST."""

    def __init__(self, scale, shift=0.0):
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, obs, act):
        u = act.clamp(-1 + 1e-12, 1 - 1e-12).atanh()
        log_slope = (1 - act**2).log()
        z = (u - BEST[0]) / BEST[1]
        log_p = -(z**2) / 2 - math.log(BEST[1]) - math.log(2 * math.pi) / 2 - log_slope
        return (self.scale * log_p + self.shift)[:, 0]


def one_state(alpha, mean=0.0, std=1.0, shift=0.0, size=256, **flags):
    """An agent whose actor is constant and whose critics are exact for this alpha, and a batch."""
    agent, *_, args = make(sac, gamma=0.9, **flags)
    agent.actor = Constant(mean, std)
    agent.critics = agent.target_critics = nn.ModuleList([Best(alpha, shift), Best(alpha, shift)])
    agent.log_alpha.data = torch.tensor(alpha, dtype=torch.float64).log()
    obs = torch.zeros(size, 3, dtype=torch.float64)
    return agent, args, make_batch(sac, size)._replace(obs=obs, next_obs=obs)


# The squashed Gaussian


@pytest.mark.parametrize(("mean", "std", "entropy"), STATES)
def test_the_density_integrates_to_1_over_the_actions(mean, std, entropy):
    act = torch.linspace(-1, 1, 200_003, dtype=torch.float64)[1:-1, None]
    log_prob = squashed(mean, std, (len(act), 1)).log_prob(act)
    step = (act[1] - act[0]).item()
    assert log_prob.exp().sum().item() * step == pytest.approx(1, abs=1e-9)
    assert -(log_prob.exp() * log_prob).sum().item() * step == pytest.approx(entropy, abs=1e-4)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_samples_have_the_log_probability_that_torch_computes(dtype, error):
    torch.manual_seed(0)
    mean, log_std = torch.randn(1_000, 3, dtype=dtype), torch.empty(1_000, 3, dtype=dtype).uniform_(-5, 1)
    pi = sac.SquashedGaussian(mean, log_std)
    theirs = torchs(pi)
    torch.manual_seed(1)
    act = pi.rsample()
    torch.manual_seed(1)
    same = theirs.rsample()
    torch.testing.assert_close(act, same)
    torch.testing.assert_close(pi.log_prob(act), theirs.log_prob(same), atol=error, rtol=error)
    assert torch.equal(pi.mode, mean.tanh())


def test_the_log_probability_of_any_action_needs_no_sample_of_it():
    pi = squashed(0.3, 0.8, (3,))
    pi.rsample()
    act = torch.tensor([0.1, -0.5, 0.99], dtype=torch.float64)
    torch.testing.assert_close(pi.log_prob(act), torchs(pi).log_prob(act))


def test_samples_follow_the_density():
    torch.manual_seed(0)
    act = squashed(0.5, 0.3, (100_000,)).rsample()
    assert act.atanh().mean().item() == pytest.approx(0.5, abs=0.01)
    assert act.atanh().std().item() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(("u", "log_slope"), [(5.0, -8.6138), (10.0, -18.6137), (20.0, -38.6137), (100.0, -198.6137)])
@pytest.mark.parametrize("sign", [1, -1])
def test_far_from_0_the_log_probability_and_its_gradient_are_right(u, log_slope, sign):
    """log(1 - tanh(u)^2) is about 2 log 2 - 2 |u|: tanh(u) rounds to 1 from 9.1 on. The gradient pulls back: -2."""
    mean = torch.tensor([sign * u], requires_grad=True)
    pi = sac.SquashedGaussian(mean, torch.full((1,), -20.0))
    log_prob = pi.log_prob(pi.rsample())
    log_prob.backward()
    z = (pi.u - pi.mean) / pi.log_std.exp()
    log_density = -(z**2) / 2 + 20 - math.log(2 * math.pi) / 2
    assert (log_density - log_prob).item() == pytest.approx(log_slope, abs=1e-3)
    assert mean.grad.item() == pytest.approx(2 * sign, abs=1e-3)


@pytest.mark.parametrize("output", [-1e3, 1e3])
def test_deviations_are_limited_so_that_losses_and_gradients_are_finite(output):
    agent, *optimizers, args = make(sac)
    nn.init.constant_(agent.actor[-1].bias, output)
    pi = agent.policy(torch.randn(5, 3))
    assert pi.log_std.unique().item() == (2 if output > 0 else -5)
    found = sac.update(agent, *optimizers, Replay([make_batch(sac)]), args)
    assert all(map(math.isfinite, found.values()))
    assert vector(agent.parameters()).isfinite().all()


def test_the_first_policy_is_wide_and_the_first_action_in_the_middle():
    agent, _ = make_agent(sac, "ProbeMatrix-v0")
    pi = agent.policy(torch.randn(50, *agent.obs_norm.mean.shape))
    assert pi.mean.shape == (50, 6) and pi.mode.abs().max() < 0.1
    assert (pi.log_std.exp() - 1).abs().max() < 0.1


def test_actions_are_sampled_unless_they_are_greedy():
    agent, _ = make_agent(sac)
    obs = np.zeros((1_000, 3), np.float32)
    torch.manual_seed(0)
    act = agent.act(obs)
    assert np.abs(act).max() <= 1 and np.arctanh(act).std() == pytest.approx(1, abs=0.1)
    assert np.ptp(agent.act(obs, greedy=True)) == 0


# Soft policy improvement and the soft Bellman equation


def test_the_value_of_a_state_is_soft():
    q, log_prob = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 3.0])
    assert sac.soft_value(q, log_prob, 0.5).tolist() == [1.5, 0.5]


def test_at_the_best_policy_the_loss_is_the_same_for_every_action():
    """Q = alpha log p: with pi = p, alpha log pi - Q is 0."""
    agent, _, batch = one_state(0.2, *BEST)
    loss, log_prob = sac.policy_loss(agent, batch)
    pi = agent.distribution(batch.obs)
    act = pi.rsample()
    difference = 0.2 * pi.log_prob(act) - agent.critics[0](batch.obs, act)
    assert difference.abs().max() < 1e-9
    assert loss.item() == pytest.approx(0, abs=1e-9) and log_prob.shape == (256,) and not log_prob.requires_grad


@pytest.mark.parametrize("tune_alpha", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_policy_and_the_temperature_find_the_optimum(tune_alpha):
    """From mean 0 and deviation 1. The entropy of the optimum is -0.0948; alpha, from 1, ends where pi has that."""
    agent, _, batch = one_state(0.2)
    if tune_alpha:
        agent.log_alpha.data.zero_()
    optimizer, found = torch.optim.Adam([*agent.actor.parameters(), agent.log_alpha], 0.01), []
    torch.manual_seed(0)
    for _ in range(3_000 if tune_alpha else 800):
        loss, log_prob = sac.policy_loss(agent, batch)
        alpha_loss = sac.temperature_loss(agent.log_alpha, log_prob, -0.094837) if tune_alpha else 0
        optimizer.zero_grad()
        (loss + alpha_loss).backward()
        optimizer.step()
        found.append([agent.actor.output[0].item(), agent.actor.output[1].exp().item(), agent.log_alpha.exp().item()])
    assert np.mean(found[-400:], 0) == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_the_smaller_of_the_twins_trains_the_actor():
    agent, *_ = make(sac, alpha=1e-30)
    for value, net in zip((3.0, 2.0), agent.critics):
        nn.init.zeros_(net.layers[-1].weight)
        nn.init.constant_(net.layers[-1].bias, value)
    assert sac.policy_loss(agent, make_batch(sac))[0].item() == -2


def test_the_soft_bellman_equation_holds_at_the_optimum():
    """One state, r(a) = alpha log p(a) + 1, gamma 0.9: V* = 10 and Q*(a) = r(a) + 9 satisfy it for every sample."""
    agent, args, batch = one_state(0.2, *BEST, shift=10.0)
    act = agent.distribution(batch.obs).rsample().detach()
    rew = Best(0.2, 1.0)(batch.obs, act)
    batch = batch._replace(act=act, ret=rew, discount=torch.full_like(rew, 0.9))
    loss, q = sac.td_loss(agent, batch, args)
    torch.testing.assert_close(q, rew + 9)
    assert loss.item() == pytest.approx(0, abs=1e-18)
    over = batch._replace(terminated=torch.ones(256, dtype=torch.bool))  # then y = r, without entropy
    assert sac.td_loss(agent, over, args)[0].item() == pytest.approx(2 * (9 - 0.5))


# The temperature


@pytest.mark.parametrize(("log_prob", "gradient"), [(2.0, -1.0), (0.5, 0.5), (1.0, 0.0)])
def test_alpha_rises_where_the_entropy_is_below_its_target(log_prob, gradient):
    """A target entropy of -1 is a mean log-probability of 1."""
    log_alpha = torch.ones((), requires_grad=True)
    sac.temperature_loss(log_alpha, torch.tensor([log_prob - 1, log_prob + 1]), -1.0).backward()
    assert log_alpha.grad.item() == gradient


@pytest.mark.parametrize("tune_alpha", [True, False])
def test_a_step_changes_alpha_if_it_is_tuned_by_no_more_than_its_own_loss_says(tune_alpha):
    """The target is that of one component times 6 components."""
    agent, _, critic_optimizer, args = make(sac, env_id="ProbeMatrix-v0", tune_alpha=tune_alpha)
    optimizer = torch.optim.SGD(agent.policy_parameters(), 0.1)
    obs, act = torch.randn(5, *agent.obs_norm.mean.shape), torch.zeros(5, 2, 3)
    batch = make_batch(sac)._replace(obs=obs, act=act, next_obs=obs)
    start = agent.log_alpha.item()
    found = sac.update(agent, optimizer, critic_optimizer, Replay([batch]), args)
    change = 0.1 * (-found["entropy"] - 6) if tune_alpha else 0
    assert start == pytest.approx(math.log(0.02))
    assert agent.log_alpha.item() - start == pytest.approx(change, abs=1e-5)


def test_the_temperatures_loss_does_not_train_the_actor_and_the_actors_does_not_change_the_temperature():
    agent, *_ = make(sac)
    loss, log_prob = sac.policy_loss(agent, make_batch(sac))
    loss.backward()
    assert agent.log_alpha.grad is None
    before = torch.cat([param.grad.flatten() for param in agent.actor.parameters()])
    sac.temperature_loss(agent.log_alpha, log_prob, -1.0).backward()
    assert torch.equal(torch.cat([param.grad.flatten() for param in agent.actor.parameters()]), before)


def test_metrics_are_those_of_the_step():
    agent, *optimizers, args = make(sac, tune_alpha=False)
    batch = make_batch(sac)
    torch.manual_seed(0)
    found = sac.update(agent, *optimizers, Replay([batch]), args)
    assert found.keys() == {"td_loss", "q_value", "grad_norm", "policy_loss", "entropy", "alpha"}
    assert found["alpha"] == pytest.approx(0.02)
    assert found["entropy"] == pytest.approx(0.67, abs=0.6)  # 5 samples of the first policy


def test_torchs_distribution_may_take_the_place_of_the_scripts_own(monkeypatch):
    own, batch, found = sac.ActorCritic.distribution, make_batch(sac), []
    for replaced in (False, True):
        agent, *optimizers, args = make(sac)
        if replaced:
            monkeypatch.setattr(sac.ActorCritic, "distribution", lambda agent, obs: torchs(own(agent, obs)))
        torch.manual_seed(0)
        sac.update(agent, *optimizers, Replay([batch] * 3), args)
        found.append(vector(agent.parameters()))
    torch.testing.assert_close(*found)


def test_the_density_of_a_stored_action_is_finite_also_on_the_bounds():
    pi = sac.SquashedGaussian(torch.zeros(3, 1, requires_grad=True), torch.zeros(3, 1))
    log_prob = pi.log_prob(torch.tensor([[-1.0], [0.5], [1.0]]))
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and pi.mean.grad.isfinite().all()
    half = torch.distributions.Normal(0, 1).log_prob(torch.tensor(0.5).atanh()) - math.log(1 - 0.5**2)
    assert log_prob[1].item() == pytest.approx(half.item(), abs=1e-5)
