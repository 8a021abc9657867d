"""a2c.py between its siblings: where they should coincide, they do, to the bit or to rounding."""

import math

import pytest
import torch

import a2c
import ppo
import vpg
from tests.helpers import (
    ENVIRONMENTS,
    GradientDescent,
    column,
    flags,
    make_agent,
    make_batch,
    make_penalty,
    policy_params,
)


def make(module, env_id="CartPole-v1", **flags):
    """Agent, optimizer and flags; gradients are not clipped."""
    agent, args = make_agent(module, env_id, **{"max_grad_norm": float("inf")} | flags)
    return agent, GradientDescent(agent.parameters(), args), args


def optimizers(agent, args, kind=GradientDescent):
    """One for the policy, one for the values."""
    return kind(policy_params(agent), args), kind(agent.critic.parameters(), args)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_one_update_is_that_of_vpg_with_one_pass_for_the_values(env_id):
    agent, _, args = make(a2c, env_id, discrete_ent_coef=0.0)
    batch = make_batch(a2c, agent)
    a2c.update(agent, *optimizers(agent, args), batch, 0.1, 0.1, args)
    sibling, _, args = make(vpg, env_id, value_epochs=1)
    batch = vpg.Batch(batch.obs, batch.act, psi=batch.adv, ret=batch.ret)
    vpg.update(sibling, *optimizers(sibling, args), batch, 0.1, args)
    for ours, theirs in zip(agent.parameters(), sibling.parameters()):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_one_update_is_the_first_step_of_ppo(env_id, objective):
    agent, _, args = make(a2c, env_id, discrete_ent_coef=0.01)
    batch = make_batch(a2c, agent)
    a2c.update(agent, *optimizers(agent, args), batch, 0.1, 0.1, args)

    ent_coef = 0.01 if agent.distribution is a2c.Categorical else 0.0  # a2c.py has a bonus only for discrete actions
    passes = {"objective": objective, "update_epochs": 1, "num_minibatches": 1, "ent_coef": ent_coef, "vf_coef": 1.0}
    sibling, optimizer, args = make(ppo, env_id, **passes)
    ppo.update(sibling, optimizer, make_penalty(), ppo.Batch(*batch), 0.1, args)
    for ours, theirs in zip(agent.parameters(), sibling.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_loss_by_hand():
    """Actions with probabilities 3/4 and 1/4, advantages 1 and 3, values 0, returns 2 and -2."""
    agent, _, args = make(a2c)
    with torch.no_grad():
        for p in agent.parameters():
            p.zero_()
        agent.actor[-1].bias.copy_(torch.tensor([3.0, 1.0]).log())
    adv, ret = torch.tensor([1.0, 3.0]), torch.tensor([2.0, -2.0])
    batch = a2c.Batch(torch.zeros(2, 4), torch.tensor([[0], [1]]), adv, ret)
    losses = a2c.update(agent, *optimizers(agent, args), batch, 0.1, 0.1, args)
    adv = 1 / (math.sqrt(2) + 0.1)  # standardized, the advantages are -adv and adv
    assert losses["policy_loss"] == pytest.approx(-(-adv * math.log(3 / 4) + adv * math.log(1 / 4)) / 2)
    assert losses["value_loss"] == (2**2 + 2**2) / 2
    assert losses["entropy"] == pytest.approx(-3 / 4 * math.log(3 / 4) - 1 / 4 * math.log(1 / 4))


def test_gradients_are_clipped_to_the_maximum_norm_and_reported_as_they_were():
    norms, lengths = [], []
    for max_grad_norm in (float("inf"), 0.01):
        agent, _, args = make(a2c, max_grad_norm=max_grad_norm)
        optimizer, critic_optimizer = optimizers(agent, args, a2c.Adam)
        batch = make_batch(a2c, agent)
        norms.append(a2c.update(agent, optimizer, critic_optimizer, batch, 0.1, 0.1, args)["grad_norm"])
        lengths.append(10 * optimizer.mean.norm().item())  # after one step, Adam's mean is a tenth of the gradient
    assert norms[0] == norms[1] > 0.02
    assert lengths == pytest.approx([norms[0], 0.01], rel=1e-3)


def entropies(env_id):
    """Before and after an update in which no action is better than another, with a bonus."""
    agent, _, args = make(a2c, env_id, discrete_ent_coef=1.0)
    with torch.no_grad():
        agent.actor[-1].bias.copy_(torch.arange(len(agent.actor[-1].bias)))
    batch = make_batch(a2c, agent)._replace(adv=torch.zeros(64))
    before = agent.policy(batch.obs).entropy().mean().item()
    a2c.update(agent, *optimizers(agent, args), batch, 0.1, 0.1, args)
    return before, agent.policy(batch.obs).entropy().mean().item()


def test_entropy_bonus_raises_the_entropy_of_discrete_actions():
    before, after = entropies("CartPole-v1")
    assert after > before + 1e-3


def test_no_entropy_bonus_for_continuous_actions():
    before, after = entropies("Pendulum-v1")
    assert after == before


def test_the_critic_has_a_learning_rate_of_its_own():
    agent, _, args = make(a2c)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    a2c.update(agent, *optimizers(agent, args), make_batch(a2c, agent), 0.1, 0.0, args)
    moved = {name.split(".")[0] for name, p in agent.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"actor"}


def test_with_lambda_1_the_advantage_is_the_n_step_return_less_the_value():
    rew, val, next_val, never = column(1, 2), column(5, 7), column(7, 8), flags(0, 0)
    adv = a2c.gae(rew, val, next_val, never, never, gamma=0.5, lam=1.0)
    assert adv.flatten().tolist() == [1 + 2 / 2 + 8 / 4 - 5, 2 + 8 / 2 - 7]
