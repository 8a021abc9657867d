"""The mathematics of ppo.py, against definitions, closed forms and numbers that can be checked by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ppo

rollouts = st.integers(0, 2**32 - 1).map(np.random.default_rng)


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
    ratio = torch.tensor([ratio], requires_grad=True)
    result = ppo.clip_objective(ratio, torch.tensor([adv]), 0.2)
    result.backward()
    assert result.item() == pytest.approx(objective)
    assert ratio.grad.item() == pytest.approx(slope)


def test_penalised_objective_by_hand():
    ratio, adv, kl = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]), torch.tensor([0.1, 0.3])
    # mean of 1 * 3 - 10 * 0.1 = 2 and 2 * -1 - 10 * 0.3 = -5
    assert ppo.penalty_objective(ratio, adv, kl, beta=10).item() == pytest.approx(-1.5)


@pytest.mark.parametrize(
    ("kl", "beta"),
    [(0.0, 1.0), (0.006, 1.0), (0.007, 2.0), (0.01, 2.0), (0.0149, 2.0), (0.0151, 4.0), (1.0, 4.0)],
)
def test_penalty_halves_below_two_thirds_of_the_target_and_doubles_above_three_halves(kl, beta):
    assert ppo.adapt_beta(2.0, kl, kl_target=0.01) == beta


def test_penalty_can_come_back_from_any_number_of_halvings():
    beta = 1.0
    for _ in range(2000):
        beta = ppo.adapt_beta(beta, kl=0.0, kl_target=0.01)
    assert ppo.adapt_beta(beta, kl=1.0, kl_target=0.01) > beta > 0


def test_value_loss_by_hand():
    val, ret, old_val = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0])
    assert ppo.value_loss(val, ret, old_val).item() == (4 + 4) / 2
    # Clipped to within 1 of the old value, 5 becomes 2: its error is 1, and the larger of 4 and 1 counts.
    assert ppo.value_loss(val, ret, old_val, eps=1.0).item() == (4 + 4) / 2
    # From an old value of 10, 5 is held at 9: its error is 36.
    assert ppo.value_loss(val, ret, torch.tensor([1.0, 10.0]), eps=1.0).item() == (4 + 36) / 2


@given(rollouts)
@settings(max_examples=20, deadline=None)
def test_approximate_kl_is_unbiased_and_never_negative(rng):
    old, new = (ppo.Categorical(torch.as_tensor(rng.normal(size=(1, 5))).expand(5, 1, 5)) for _ in range(2))
    actions = torch.arange(5)[:, None]  # each of the five choices once
    log_ratio = new.log_prob(actions) - old.log_prob(actions)
    estimates = torch.stack([ppo.approx_kl(x) for x in log_ratio])
    assert (estimates >= 0).all()
    torch.testing.assert_close((old.log_prob(actions).exp() * estimates).sum(), old.kl(new)[0])


# The update


def make_agent(env_id="CartPole-v1", **flags):
    args = ppo.Args(env_id=env_id, **flags)
    torch.manual_seed(0)
    env = ppo.make_env(args)
    agent = ppo.ActorCritic(env.observation_space, env.action_space, args)
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate)
    optimizer.param_groups[0]["beta"] = 1.0
    return agent, optimizer, args


def make_batch(agent, size=64):
    obs = torch.randn(size, *agent.obs_norm.mean.shape)
    with torch.no_grad():
        pi, val = agent.policy(obs), agent.value(obs)
        return [obs, pi.sample(), pi.params, val, torch.randn(size), torch.randn(size)]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "ProbeMultiDiscrete-v0"])
@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_at_ratio_one_both_gradients_are_the_policy_gradient(env_id, objective):
    agent, _, _ = make_agent(env_id)
    obs, act, params, _, adv, _ = make_batch(agent)
    pi, old_pi = agent.policy(obs), agent.distribution(params)
    ratio = (pi.log_prob(act) - old_pi.log_prob(act)).exp()
    if objective == "clip":
        surrogate = ppo.clip_objective(ratio, adv, 0.2)
    else:
        surrogate = ppo.penalty_objective(ratio, adv, old_pi.kl(pi), 3.0)
    parameters = list(agent.actor.parameters())
    plain = torch.autograd.grad((agent.policy(obs).log_prob(act) * adv).mean(), parameters)
    for ours, theirs in zip(torch.autograd.grad(surrogate, parameters), plain):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_minibatches_show_every_row_once_an_epoch():
    batch = [torch.arange(12), torch.arange(12) * 10]
    seen = [torch.cat(parts) for parts in zip(*ppo.minibatches(batch, 2, 3))]
    for epoch in seen[0].split(12):
        assert sorted(epoch.tolist()) == list(range(12))
    assert torch.equal(seen[1], seen[0] * 10)
    assert seen[0][:12].tolist() != seen[0][12:].tolist()


def test_learning_stops_when_the_policy_has_moved_by_target_kl():
    agent, optimizer, args = make_agent(target_kl=1e-9, update_epochs=4, num_minibatches=4)
    ppo.update(agent, optimizer, make_batch(agent), args)
    steps = {int(state["step"]) for state in optimizer.state.values()}
    assert steps <= {1, 2}  # of 16: after the first step it has moved, and the second notices


@pytest.mark.parametrize(("learning_rate", "beta"), [(1e-6, 0.5), (1e-1, 2.0)])
def test_update_adapts_the_penalty_to_the_distance_that_it_moved(learning_rate, beta):
    agent, optimizer, args = make_agent(objective="penalty", learning_rate=learning_rate)
    ppo.update(agent, optimizer, make_batch(agent), args)
    assert optimizer.param_groups[0]["beta"] == beta


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_update_makes_better_actions_likelier_and_worse_ones_rarer(objective):
    agent, optimizer, args = make_agent(objective=objective)
    batch = make_batch(agent)
    obs, act, _, _, adv, _ = batch
    before = agent.policy(obs).log_prob(act)
    ppo.update(agent, optimizer, batch, args)
    change = agent.policy(obs).log_prob(act) - before
    assert (change * adv).mean() > 0


def test_entropy_bonus_raises_entropy():
    agent, optimizer, args = make_agent("Pendulum-v1", ent_coef=1.0)
    batch = make_batch(agent)
    batch[4] = torch.zeros(64)  # no action better than another
    before = agent.policy(batch[0]).entropy().mean()
    ppo.update(agent, optimizer, batch, args)
    assert agent.policy(batch[0]).entropy().mean() > before


def test_gradient_is_no_longer_than_max_grad_norm():
    agent, optimizer, args = make_agent(max_grad_norm=1e-3, update_epochs=1, num_minibatches=1)
    ppo.update(agent, optimizer, make_batch(agent), args)
    grads = torch.cat([p.grad.flatten() for p in agent.parameters()])
    assert grads.norm().item() == pytest.approx(1e-3, rel=1e-3)
