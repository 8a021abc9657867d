"""The mathematics of ppo.py, against definitions, closed forms and numbers that can be checked by hand."""

import pytest
import torch

import ppo
from tests.helpers import ENVIRONMENTS, SHORT, make_agent, make_batch, make_penalty

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


def test_penalized_objective_by_hand():
    ratio, adv, kl = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]), torch.tensor([0.1, 0.3])
    # mean of 1 * 3 - 10 * 0.1 = 2 and 2 * -1 - 10 * 0.3 = -5
    assert ppo.penalty_objective(ratio, adv, kl, beta=10).item() == pytest.approx(-1.5)


@pytest.mark.parametrize(
    ("kl", "beta"),
    [(0.0, 1.0), (0.006, 1.0), (0.007, 2.0), (0.01, 2.0), (0.0149, 2.0), (0.0151, 4.0), (1.0, 4.0)],
)
def test_penalty_halves_below_two_thirds_of_the_target_and_doubles_above_three_halves(kl, beta):
    assert ppo.adapt_beta(2.0, kl, penalty_kl=0.01) == beta


def test_penalty_can_come_back_from_any_number_of_halvings():
    beta = 1.0
    for _ in range(2000):
        beta = ppo.adapt_beta(beta, kl=0.0, penalty_kl=0.01)
    assert ppo.adapt_beta(beta, kl=1.0, penalty_kl=0.01) > beta > 0


# The update


def make(env_id="CartPole-v1", **flags):
    """Agent, optimizer, penalty and flags."""
    agent, args = make_agent(ppo, env_id, **flags)
    return agent, ppo.Adam(agent.parameters(), args), make_penalty(), args


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_at_ratio_one_both_gradients_are_the_policy_gradient(env_id, objective):
    agent, *_ = make(env_id)
    obs, act, adv, *_ = make_batch(ppo, agent)
    pi = agent.policy(obs)
    old_pi = agent.distribution(pi.params.detach())
    ratio = (pi.log_prob(act) - old_pi.log_prob(act)).exp()
    if objective == "clip":
        surrogate = ppo.clip_objective(ratio, adv, 0.2)
    else:
        surrogate = ppo.penalty_objective(ratio, adv, old_pi.kl(pi), 3.0)
    parameters = list(agent.actor.parameters())
    plain = torch.autograd.grad((agent.policy(obs).log_prob(act) * adv).mean(), parameters)
    for ours, theirs in zip(torch.autograd.grad(surrogate, parameters), plain):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_first_ratio_of_every_update_is_one(tmp_path, spy, env_id):
    """The observation statistics change after the update, so pi_old is the policy that acted, not only its weights."""
    acted, improved = [], []
    for distribution in (ppo.Categorical, ppo.Gaussian):
        spy(distribution, "sample", note=lambda pi: acted.append(pi.params))
    spy(ppo, "update", note=lambda agent, *rest: improved.append(agent.policy(rest[2].obs).params.detach()))
    ratios = spy(ppo, "clip_objective", note=lambda ratio, *_: ratio.detach())
    ppo.train(ppo.Args(env_id=env_id, run_dir=str(tmp_path), **SHORT))

    T, passes = SHORT["num_steps"], 8 * 8
    assert len(improved) == 10
    for i, params in enumerate(improved):
        torch.testing.assert_close(torch.cat(acted[i * T : (i + 1) * T]), params)
        torch.testing.assert_close(ratios[i * passes], torch.ones(16), atol=1e-5, rtol=0)
        assert (ratios[(i + 1) * passes - 1] - 1).abs().max() > 1e-3  # the last one is not


def test_minibatches_show_every_row_once_an_epoch():
    rows = torch.arange(12)
    batch = ppo.Batch(rows, rows * 10, rows, rows, rows)
    parts = list(ppo.minibatches(batch, epochs=2, num_minibatches=3))
    assert [len(part.obs) for part in parts] == [4] * 6
    seen = torch.cat([part.obs for part in parts])
    for epoch in seen.split(12):
        assert sorted(epoch.tolist()) == list(range(12))
    assert torch.equal(torch.cat([part.act for part in parts]), seen * 10)
    assert seen[:12].tolist() != seen[12:].tolist()


def test_learning_stops_when_the_policy_has_moved_by_target_kl():
    agent, optimizer, penalty, args = make(target_kl=1e-9, update_epochs=4, num_minibatches=4)
    ppo.update(agent, optimizer, penalty, make_batch(ppo, agent), args.learning_rate, args)
    assert optimizer.steps == 1  # of 16: the first minibatch finds a KL of 0, the second one above the target


@pytest.mark.parametrize(("learning_rate", "beta"), [(1e-6, 0.5), (1e-1, 2.0)])
def test_update_adapts_the_penalty_to_the_distance_that_it_moved(learning_rate, beta):
    agent, optimizer, penalty, args = make(objective="penalty", learning_rate=learning_rate)
    assert penalty.beta == 1
    ppo.update(agent, optimizer, penalty, make_batch(ppo, agent), args.learning_rate, args)
    assert penalty.beta == beta


def test_a_larger_penalty_moves_the_policy_less():
    distances = []
    for beta in (0.0, 1.0, 100.0):
        agent, optimizer, penalty, args = make(objective="penalty")
        penalty.beta.fill_(beta)
        distances.append(ppo.update(agent, optimizer, penalty, make_batch(ppo, agent), args.learning_rate, args)["kl"])
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 2 * distances[2]


def test_a_smaller_clip_coef_moves_the_policy_less():
    """With clip_coef 0, a ratio above 1 gains nothing more, so after one step only the wrong side has a gradient."""
    distances = []
    for clip_coef in (0.5, 0.2, 0.01):
        agent, optimizer, penalty, args = make(clip_coef=clip_coef, learning_rate=1e-2)
        distances.append(ppo.update(agent, optimizer, penalty, make_batch(ppo, agent), args.learning_rate, args)["kl"])
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 2 * distances[2]


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_update_makes_better_actions_likelier_and_worse_ones_rarer(objective):
    agent, optimizer, penalty, args = make(objective=objective)
    batch = make_batch(ppo, agent)
    before = agent.policy(batch.obs).log_prob(batch.act)
    ppo.update(agent, optimizer, penalty, batch, args.learning_rate, args)
    change = agent.policy(batch.obs).log_prob(batch.act) - before
    assert (change * batch.adv).mean() > 0


def test_entropy_bonus_raises_entropy():
    agent, optimizer, penalty, args = make("Pendulum-v1", ent_coef=1.0)
    batch = make_batch(ppo, agent)._replace(adv=torch.zeros(64))  # no action better than another
    before = agent.policy(batch.obs).entropy().mean()
    ppo.update(agent, optimizer, penalty, batch, args.learning_rate, args)
    assert agent.policy(batch.obs).entropy().mean() > before


def test_gradient_is_no_longer_than_max_grad_norm():
    agent, optimizer, penalty, args = make(max_grad_norm=1e-3, update_epochs=1, num_minibatches=1)
    ppo.update(agent, optimizer, penalty, make_batch(ppo, agent), args.learning_rate, args)
    grads = torch.cat([p.grad.flatten() for p in agent.parameters()])
    assert grads.norm().item() == pytest.approx(1e-3, rel=1e-3)
