"""The equations of ppo.py, against definitions and numbers that can be checked by hand."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD

import ppo
from tests.helpers import ENVIRONMENTS, TINY, make_agent, make_batch, make_penalty, metrics, vector


def make(env_id="CartPole-v1", lr=1.0, **flags):
    """Agent, optimizer, penalty and flags; one minibatch is the whole batch."""
    agent, args = make_agent(ppo, env_id, **{"num_minibatches": 1, "max_grad_norm": float("inf")} | flags)
    return agent, SGD(agent.parameters(), lr), make_penalty(), args


def descend(agent, loss):
    """One step of gradient descent."""
    agent.zero_grad()
    loss.backward()
    SGD(agent.parameters(), lr=1.0).step()


# Objectives


@pytest.mark.parametrize(
    ("ratio", "adv", "objective", "slope"),
    [  # eps = 0.2. The slope in the ratio is adv, or 0 where clipped.
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.0),  # better action, ratio may rise to 1.2
        (1.5, 2.0, 2.4, 0.0),  # and gains nothing beyond it
        (0.5, 2.0, 1.0, 2.0),  # too rare by mistake: never clipped
        (0.9, -2.0, -1.8, -2.0),  # worse action, ratio may fall to 0.8
        (0.5, -2.0, -1.6, 0.0),  # and gains nothing below it
        (1.5, -2.0, -3.0, -2.0),  # too frequent by mistake: never clipped
    ],
)
def test_clipped_objective_by_hand(ratio, adv, objective, slope):
    ratio = torch.full((2,), ratio, requires_grad=True)  # two equal rows
    mean = ppo.clip_objective(ratio, torch.full((2,), adv), 0.2)
    mean.backward()
    assert [mean.item(), *ratio.grad.tolist()] == pytest.approx([objective, slope / 2, slope / 2])


def test_penalized_objective_by_hand():
    ratio, adv, kl = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]), torch.tensor([0.1, 0.3])
    # mean of 1 * 3 - 10 * 0.1 = 2 and 2 * -1 - 10 * 0.3 = -5
    assert ppo.penalty_objective(ratio, adv, kl, beta=10).item() == pytest.approx(-1.5)


def test_beta_halves_below_two_thirds_of_the_target_and_doubles_above_three_halves():
    kls = 0.0, 0.0066, 0.0067, 0.01, 0.0149, 0.0151, 1.0
    assert [ppo.adapt_beta(2.0, kl, penalty_kl=0.01) for kl in kls] == [1, 1, 2, 2, 2, 4, 4]


def test_beta_stays_between_limits_because_doubling_0_would_leave_it_0():
    assert ppo.adapt_beta(1e-4, kl=0.0, penalty_kl=0.01) == 1e-4
    assert ppo.adapt_beta(1e4, kl=1.0, penalty_kl=0.01) == 1e4


# The update


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_the_first_gradient_step_is_that_of_a2c(env_id, objective):
    agent, optimizer, penalty, args = make(env_id, objective=objective, vf_coef=0.3, ent_coef=0.2, update_epochs=1)
    batch, expected = make_batch(ppo, agent), deepcopy(agent)
    batch = batch._replace(adv=5 + 3 * batch.adv)  # of standard deviation 2.7
    pi, adv = expected.policy(batch.obs), (batch.adv - 5) / (2.7 + 0.1)
    value_loss = ((expected.value(batch.obs) - batch.ret) ** 2).mean()
    descend(expected, -(pi.log_prob(batch.act) * adv).mean() + 0.3 * value_loss - 0.2 * pi.entropy().mean())
    ppo.update(agent, optimizer, penalty, batch, args)
    torch.testing.assert_close(vector(agent.parameters()), vector(expected.parameters()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_in_the_second_gradient_step_the_ratio_is_clipped_or_the_kl_penalized(env_id, objective):
    flags = {"objective": objective, "clip_coef": 0.05, "penalty_kl": 1e-4, "vf_coef": 0.0}
    agent, optimizer, penalty, args = make(env_id, update_epochs=1, **flags)
    (obs, act, adv, *_) = batch = make_batch(ppo, agent)
    logp_old = agent.policy(obs).log_prob(act).detach()
    found = ppo.update(agent, optimizer, penalty, batch, args)
    log_ratio = agent.policy(obs).log_prob(act) - logp_old
    ratio = log_ratio.exp()
    kl = (ratio - 1 - log_ratio).mean()  # of KL(pi_old || pi) an estimate, because the mean ratio is 1
    clipped = ((ratio < 0.95) | (ratio > 1.05)).float().mean()
    assert 0.05 < clipped < 0.95
    assert (found["kl"], found["clip_fraction"]) == pytest.approx((kl.item(), clipped.item()), rel=1e-3)
    assert (found["beta"], penalty.beta) == (1, 2 if objective == "penalty" else 1)  # the KL is above target

    counts = torch.where(adv > 0, ratio < 1.05, ratio > 0.95)  # in the clipped objective
    descend(agent, -(ratio * adv * counts).mean() if objective == "clip" else 3 * kl - (ratio * adv).mean())
    other, optimizer, penalty, args = make(env_id, update_epochs=2, **flags)
    penalty.beta.fill_(3)  # the first step does not depend on it: where the policies are equal, the KL has no gradient
    ppo.update(other, optimizer, penalty, batch, args)
    torch.testing.assert_close(vector(other.parameters()), vector(agent.parameters()), atol=1e-5, rtol=1e-4)


def test_losses_are_means_over_the_minibatches():
    agent, optimizer, penalty, args = make(num_minibatches=4, lr=0.0)  # nothing is learned
    batch = make_batch(ppo, agent)
    found = ppo.update(agent, optimizer, penalty, batch, args)
    assert found["value_loss"] == pytest.approx(((agent.value(batch.obs) - batch.ret) ** 2).mean().item())
    assert found["entropy"] == pytest.approx(agent.policy(batch.obs).entropy().mean().item())
    assert found["policy_loss"] == pytest.approx(0, abs=1e-6)  # of standardized advantages at ratio 1


def test_minibatches_show_every_row_once_an_epoch():
    rows = torch.arange(12)
    batch = ppo.Batch(rows, rows * 10, rows, rows, rows)
    parts = list(ppo.minibatches(batch, epochs=4, num_minibatches=3))
    assert [len(part.obs) for part in parts] == [4] * 12
    seen = torch.cat([part.obs for part in parts])
    epochs = [tuple(epoch.tolist()) for epoch in seen.split(12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs) and len(set(epochs)) == 4
    assert torch.equal(torch.cat([part.act for part in parts]), seen * 10)


@pytest.mark.parametrize(("target", "steps"), [(0.9, 1), (1.1, 2)])
def test_an_update_ends_when_the_mean_kl_exceeds_target_kl(spy, target, steps):
    """The target as a multiple of the KL after one step; there would be 4 steps if nothing ended the update."""
    agent, *rest, args = make(update_epochs=1, lr=0.1)
    kl = ppo.update(agent, *rest, make_batch(ppo, agent), args)["kl"]
    agent, *rest, args = make(update_epochs=4, lr=0.1, target_kl=target * kl)
    seen = spy(SGD, "step")
    ppo.update(agent, *rest, make_batch(ppo, agent), args)
    assert len(seen) == steps


def test_gradients_are_clipped_to_max_grad_norm_and_reported_as_they_were():
    agent, optimizer, penalty, args = make(max_grad_norm=1e-3, update_epochs=1)
    norm = ppo.update(agent, optimizer, penalty, make_batch(ppo, agent), args)["grad_norm"]
    assert norm > 1e-2
    assert clip_grad_norm_(agent.parameters(), 1).item() == pytest.approx(1e-3, rel=1e-3)


def test_a_rollout_is_split_into_equal_minibatches_of_two_or_more():
    for num_steps, parts, valid in (8, 8, True), (6, 4, True), (7, 8, False), (8, 16, False), (9, 7, False):
        with nullcontext() if valid else pytest.raises(ValueError, match="--num-minibatches"):
            ppo.Args(num_envs=2, num_steps=num_steps, num_minibatches=parts)


# Whole runs, of ten rollouts


@pytest.mark.parametrize(("env_id", "distribution"), [("CartPole-v1", "Categorical"), ("Pendulum-v1", "Gaussian")])
def test_the_old_policy_of_an_update_is_the_one_that_acted(tmp_path, spy, env_id, distribution):
    """Statistics of observations are part of a policy: they change only after the update."""
    acted = spy(getattr(ppo, distribution), "sample", note=lambda pi: pi)
    updates = spy(ppo, "update", note=lambda agent, o, p, batch, *_: (agent.policy(batch.obs), batch.act))
    ratios = spy(ppo, "clip_objective", note=lambda ratio, *_: ratio.detach())
    args = ppo.Args(env_id=env_id, run_dir=str(tmp_path), **TINY["ppo"] | {"learning_rate": 0.01})
    ppo.train(args)
    assert len(updates) == 10
    for i, (pi_old, act) in enumerate(updates):
        steps = zip(acted[i * args.num_steps : (i + 1) * args.num_steps], act.split(args.num_envs))
        torch.testing.assert_close(torch.cat([pi.log_prob(a) for pi, a in steps]), pi_old.log_prob(act))
        first, *_, last = ratios[4 * i : 4 * i + 4]  # 2 passes of 2 minibatches
        torch.testing.assert_close(first, torch.ones(16), atol=1e-5, rtol=0)
        assert (last - 1).abs().max() > 1e-4


def test_beta_starts_at_1_and_each_update_hands_on_what_it_adapted(tmp_path):
    ppo.train(ppo.Args(objective="penalty", run_dir=str(tmp_path), **TINY["ppo"]))
    rows, beta = metrics(tmp_path), 1.0
    for row in rows:
        assert float(row["beta"]) == beta
        beta = ppo.adapt_beta(beta, float(row["kl"]), 0.01)
    assert beta != 1
