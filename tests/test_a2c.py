"""a2c.py between its siblings: where they should coincide, they do, to the bit or to rounding."""

import math
from copy import deepcopy

import pytest
import torch

import a2c
import ppo
import vpg
from tests.helpers import ENVIRONMENTS, column, flags, make_agent, make_batch, update, vector, watch_steps


def make(module, env_id="CartPole-v1", **flags):
    """Agent and flags; gradients are not clipped."""
    return make_agent(module, env_id, **{"max_grad_norm": float("inf")} | flags)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_one_update_is_that_of_vpg_with_one_pass_for_the_values(env_id):
    agent, args = make(a2c, env_id, discrete_ent_coef=0.0)
    batch = make_batch(a2c, agent)
    update(a2c, agent, batch, args)
    sibling, args = make(vpg, env_id, value_epochs=1)
    update(vpg, sibling, vpg.Batch(*batch), args)
    torch.testing.assert_close(vector(agent.parameters()), vector(sibling.parameters()))


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_one_update_is_the_first_step_of_ppo(env_id, objective):
    """a2c.py has an entropy bonus for discrete actions only; half of its learning rate is half of the value loss."""
    agent, args = make(a2c, env_id, discrete_ent_coef=0.3)
    batch = make_batch(a2c, agent)
    update(a2c, agent, batch, args, lr=0.1, critic_lr=0.05)

    flags = {"objective": objective, "ent_coef": 0.0 if env_id == "Pendulum-v1" else 0.3, "vf_coef": 0.5}
    sibling, args = make(ppo, env_id, update_epochs=1, num_minibatches=1, **flags)
    update(ppo, sibling, ppo.Batch(*batch), args)
    torch.testing.assert_close(vector(agent.parameters()), vector(sibling.parameters()), atol=1e-5, rtol=1e-4)


def test_losses_by_hand():
    """Actions with probabilities 3/4 and 1/4, advantages 1 and 3, values 0, returns 2 and -2."""
    agent, args = make(a2c)
    for p in agent.parameters():
        torch.nn.init.zeros_(p)
    agent.actor[-1].bias.data.copy_(torch.tensor([3.0, 1.0]).log())
    adv, ret = torch.tensor([1.0, 3.0]), torch.tensor([2.0, -2.0])
    losses = update(a2c, agent, a2c.Batch(torch.zeros(2, 4), torch.tensor([[0], [1]]), adv, ret), args)
    adv = 1 / (math.sqrt(2) + 0.1)  # standardized, the advantages are -adv and adv
    assert losses["policy_loss"] == pytest.approx(-(-adv * math.log(3 / 4) + adv * math.log(1 / 4)) / 2)
    assert losses["value_loss"] == (2**2 + 2**2) / 2
    assert losses["entropy"] == pytest.approx(-3 / 4 * math.log(3 / 4) - 1 / 4 * math.log(1 / 4))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_entropy_bonus_raises_the_entropy_of_discrete_actions_only(env_id):
    """In an update in which no action is better than another."""
    agent, args = make(a2c, env_id, discrete_ent_coef=1.0)
    agent.actor[-1].bias.data.copy_(torch.arange(len(agent.actor[-1].bias)))
    batch = make_batch(a2c, agent)._replace(adv=torch.zeros(64))
    before = agent.policy(batch.obs).entropy().mean()
    update(a2c, agent, batch, args)
    rise = (agent.policy(batch.obs).entropy().mean() - before).item()
    assert rise > 1e-3 if env_id == "CartPole-v1" else rise == 0


def test_the_critic_has_a_learning_rate_of_its_own():
    agent, args = make(a2c)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    update(a2c, agent, make_batch(a2c, agent), args, lr=0.1, critic_lr=0.0)
    moved = {name.split(".")[0] for name, p in agent.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"actor"}


def test_the_step_of_the_policy_moves_no_value_and_that_of_the_values_no_action(tmp_path, spy, monkeypatch):
    moved = watch_steps(a2c, spy, monkeypatch)
    flags = {"num_envs": 2, "num_steps": 8, "total_timesteps": 32, "eval_episodes": 1}
    a2c.train(a2c.Args(env_id="Pendulum-v1", run_dir=str(tmp_path), **flags))
    assert moved == [[True, False], [False, True]] * 2  # [policy, critic], in two rollouts


def test_the_gradient_of_each_network_is_clipped_to_a_norm():
    """Three updates by hand; reported is the norm of the policy's gradient before it is clipped."""
    agent, args = make(a2c, max_grad_norm=0.01, discrete_ent_coef=0.0)
    expected, batch = deepcopy(agent), make_batch(a2c, agent)
    optimizers = [torch.optim.SGD(net.parameters(), lr=10) for net in (agent.actor, agent.critic)]
    for _ in range(3):
        metrics = a2c.update(agent, *optimizers, batch, args)
        policy_loss = -(expected.policy(batch.obs).log_prob(batch.act) * batch.adv).mean()
        value_loss = (expected.value(batch.obs) - batch.ret).square().mean()
        for net, loss in (expected.critic, value_loss), (expected.actor, policy_loss):
            gradient = torch.autograd.grad(loss, list(net.parameters()))
            norm = vector(gradient).norm().item()
            assert norm > 0.01
            with torch.no_grad():
                for p, g in zip(net.parameters(), gradient):
                    p -= 10 * g * 0.01 / norm
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
        torch.testing.assert_close(vector(agent.parameters()), vector(expected.parameters()), rtol=1e-3, atol=1e-4)


def test_with_lambda_1_the_advantage_is_the_n_step_return_less_the_value():
    rew, val, next_val, never = column(1, 2), column(5, 7), column(7, 8), flags(0, 0)
    adv = a2c.gae(rew, val, next_val, never, never, gamma=0.5, lam=1.0)
    assert adv.flatten().tolist() == [1 + 2 / 2 + 8 / 4 - 5, 2 + 8 / 2 - 7]
