"""a2c.py between its siblings: where they should coincide, they do, to the bit or to rounding."""

import math

import pytest
import torch

import a2c
import ppo
import vpg


def make(module, env_id="CartPole-v1", **flags):
    """Agent, optimizer, flags; the same first weights whatever the script."""
    args = module.Args(env_id=env_id, max_grad_norm=float("inf"), **flags)
    torch.manual_seed(0)
    env = module.make_env(args)
    agent = module.ActorCritic(env.observation_space, env.action_space, args)
    optimizer = torch.optim.SGD(agent.parameters(), 0.1)
    optimizer.param_groups[0]["beta"] = 1.0
    return agent, optimizer, args


def make_batch(agent, size=64):
    """obs, act, adv, ret; the advantages have mean 0 and standard deviation 0.9, which ppo.py leaves as they are."""
    torch.manual_seed(1)
    obs, adv = torch.randn(size, *agent.obs_norm.mean.shape), torch.randn(size)
    adv = 0.9 * (adv - adv.mean()) / adv.std()
    with torch.no_grad():
        return [obs, agent.policy(obs).sample(), adv, torch.randn(size)]


ENVIRONMENTS = "CartPole-v1", "Pendulum-v1", "ProbeMultiDiscrete-v0"


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_one_update_is_that_of_vpg_with_one_pass_for_the_values(env_id):
    agent, optimizer, args = make(a2c, env_id, vf_coef=1.0)
    a2c.update(agent, optimizer, make_batch(agent), args)
    sibling, optimizer, args = make(vpg, env_id, value_epochs=1)
    vpg.update(sibling, optimizer, make_batch(sibling), args)
    for ours, theirs in zip(agent.parameters(), sibling.parameters()):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_one_update_is_the_first_step_of_ppo(env_id, objective):
    agent, optimizer, args = make(a2c, env_id, ent_coef=0.01)
    batch = make_batch(agent)
    a2c.update(agent, optimizer, batch, args)

    flags = {"objective": objective, "update_epochs": 1, "num_minibatches": 1, "ent_coef": 0.01}
    sibling, optimizer, args = make(ppo, env_id, **flags)
    obs, act, adv, ret = batch
    with torch.no_grad():
        old_params, old_val = sibling.policy(obs).params, sibling.value(obs)
    ppo.update(sibling, optimizer, [obs, act, old_params, old_val, adv, ret], args)
    for ours, theirs in zip(agent.parameters(), sibling.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_loss_by_hand():
    """Actions with probabilities 3/4 and 1/4, advantages 1 and 3, values 0, returns 2 and -2."""
    agent, optimizer, args = make(a2c)
    with torch.no_grad():
        for p in agent.parameters():
            p.zero_()
        agent.actor[-1].bias.copy_(torch.tensor([3.0, 1.0]).log())
    batch = [torch.zeros(2, 4), torch.tensor([[0], [1]]), torch.tensor([1.0, 3.0]), torch.tensor([2.0, -2.0])]
    losses = a2c.update(agent, optimizer, batch, args)
    adv = 1 / (math.sqrt(2) + 0.1)  # standardised, the advantages are -adv and adv
    assert losses["policy_loss"] == pytest.approx(-(-adv * math.log(3 / 4) + adv * math.log(1 / 4)) / 2)
    assert losses["value_loss"] == (2**2 + 2**2) / 2
    assert losses["entropy"] == pytest.approx(-3 / 4 * math.log(3 / 4) - 1 / 4 * math.log(1 / 4))


def test_gradients_are_clipped_to_the_maximum_norm_and_reported_as_they_were():
    agent, _, _ = make(a2c)
    optimizer = torch.optim.SGD(agent.parameters(), 1.0)
    batch = make_batch(agent)
    before = torch.nn.utils.parameters_to_vector(agent.parameters()).detach().clone()
    norm = a2c.update(agent, optimizer, batch, a2c.Args(max_grad_norm=0.01))["grad_norm"]
    after = torch.nn.utils.parameters_to_vector(agent.parameters())
    assert norm > 0.02
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_entropy_bonus_raises_entropy():
    agent, optimizer, args = make(a2c, "Pendulum-v1", ent_coef=1.0)
    obs, act, adv, ret = make_batch(agent)
    before = agent.policy(obs).entropy().mean()
    a2c.update(agent, optimizer, [obs, act, torch.zeros(64), ret], args)
    assert agent.policy(obs).entropy().mean() > before


def test_with_lambda_1_the_advantage_is_the_n_step_return_less_the_value():
    rew, val, next_val = torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0], [7.0]]), torch.tensor([[7.0], [8.0]])
    done = torch.zeros(2, 1, dtype=torch.bool)
    adv = a2c.gae(rew, val, next_val, done, done, gamma=0.5, lam=1.0)
    assert adv.flatten().tolist() == [1 + 2 / 2 + 8 / 4 - 5, 2 + 8 / 2 - 7]
