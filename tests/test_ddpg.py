"""DDPG and the fixes of TD3: the deterministic policy gradient against an exact one, and what each fix does."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import ddpg
from tests.helpers import make_agent, vector
from tests.test_continuous import Replay, make, make_batch

OFF = {"twin_q": False, "policy_delay": 1, "target_noise": 0.0}  # Lillicrap et al. (2016)


class Quadratic(nn.Module):
    """The exact Q of x' = x + u with the reward -(x^2 + u^2), if the actions after u are the best: -K x."""

    def __init__(self, gamma):
        super().__init__()
        self.gamma, self.P = gamma, 1.0
        for _ in range(200):
            self.P = 1 + gamma * self.P / (1 + gamma * self.P)

    def forward(self, x, u):
        return (-(x**2 + u**2) - self.gamma * self.P * (x + u) ** 2)[:, 0]


def linear_actor(k):
    actor = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(actor.weight, k)
    return actor


def exact_agent(gamma, k=-0.2):
    """An agent with the policy u = k x and the exact Q, and a batch of states."""
    agent, *_ = make(ddpg, **OFF)
    agent.actor, agent.critics = linear_actor(k), nn.ModuleList([Quadratic(gamma)])
    x = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None]
    return agent, make_batch(ddpg)._replace(obs=x)


# The deterministic policy gradient


@pytest.mark.parametrize(("gamma", "gain"), [(0.9, 0.588403), (0.99, 0.615251), (1.0, (5**0.5 - 1) / 2)])
def test_the_best_policy_of_a_linear_quadratic_problem_is_where_the_gradient_vanishes(gamma, gain):
    agent, batch = exact_agent(gamma, -gain)
    ddpg.policy_loss(agent, batch).backward()
    assert agent.actor.weight.grad.item() == pytest.approx(0, abs=1e-5)


def test_the_gradient_is_that_of_q_in_the_action_times_that_of_the_action_in_the_parameters():
    """With u = k x: the mean of (-2 u - 2 gamma P (x + u)) x, for gamma 0.9, k = -0.2 and 64 states in [-1, 1]."""
    agent, batch = exact_agent(0.9)
    ddpg.policy_loss(agent, batch).backward()
    x, value = batch.obs, agent.critics[0].P
    u = -0.2 * x
    exact = ((-2 * u - 2 * 0.9 * value * (x + u)) * x).mean().item()
    assert value == pytest.approx(1.588403, abs=1e-6)
    assert exact == pytest.approx(-0.649072, abs=1e-6)
    assert -agent.actor.weight.grad.item() == pytest.approx(exact, abs=1e-12)


def test_gradient_steps_end_at_the_best_gain():
    agent, batch = exact_agent(0.9)
    optimizer = torch.optim.Adam(agent.actor.parameters(), 0.02)
    for _ in range(800):
        optimizer.zero_grad()
        ddpg.policy_loss(agent, batch).backward()
        optimizer.step()
    assert agent.actor.weight.item() == pytest.approx(-0.588403, abs=1e-6)


def test_the_actor_follows_the_first_critic_alone():
    agent, *_ = make(ddpg)
    batch = make_batch(ddpg)
    before = ddpg.policy_loss(agent, batch).item()
    act = agent.actor(batch.obs)
    assert before == -agent.critics[0](batch.obs, act).mean().item()
    nn.init.constant_(agent.critics[1].layers[-1].bias, -100)
    assert ddpg.policy_loss(agent, batch).item() == before


def test_actions_are_within_the_bounds_and_start_near_0():
    agent, _ = make_agent(ddpg, "ProbeMatrix-v0")
    obs = torch.randn(50, *agent.obs_norm.mean.shape)
    act = agent.policy(obs)
    assert act.shape == (50, 6) and act.abs().max() < 0.1
    nn.init.constant_(agent.actor[-2].bias, 100)
    assert agent.act(obs.numpy()).max() == 1


# The fixes of TD3


def test_the_smaller_of_two_estimates_is_too_low_on_average():
    """Of two standard normal numbers it has the mean -1 / sqrt(pi). The target is ret + discount times it."""
    agent, *_, args = make(ddpg, target_noise=0.0)

    class Noise(nn.Module):
        def forward(self, obs, act):
            return torch.randn(len(obs))

    class Zero(nn.Module):
        def forward(self, obs, act):
            return torch.zeros(len(obs), requires_grad=True)

    torch.manual_seed(0)
    agent.target_critics, agent.critics = nn.ModuleList([Noise(), Noise()]), nn.ModuleList([Zero()])
    n = 50_000
    ones = torch.ones(n)
    batch = ddpg.Batch(torch.zeros(n, 3), torch.zeros(n, 1), 10 * ones, torch.zeros(n, 3), ones < 0, ones)
    loss, _ = ddpg.td_loss(agent, batch, args)  # errors beyond 1: y - 1 / 2
    assert loss.item() == pytest.approx(10 - 1 / math.sqrt(math.pi) - 0.5, abs=0.02)


def test_smoothing_is_clipped_noise_of_each_component_within_the_bounds(monkeypatch):
    torch.manual_seed(0)
    noise = ddpg.smooth(torch.zeros(100_000, 2), 0.2, 0.5)
    assert noise.abs().max() == 0.5
    assert (noise.abs() == 0.5).float().mean().item() == pytest.approx(0.0124, abs=0.002)  # beyond 2.5 deviations
    assert noise.std(0).tolist() == pytest.approx([0.19774] * 2, abs=0.002)
    assert abs(torch.corrcoef(noise.T)[0, 1].item()) < 0.02
    for bound in -1.0, 1.0:
        near = ddpg.smooth(torch.full((1_000, 1), 0.9 * bound), 0.2, 0.5)
        assert near.abs().max() == 1 and (near.sign() == bound).all()
    act = torch.tensor([[0.3, -0.7]])
    assert torch.equal(ddpg.smooth(act, 0.0, 0.5), act)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    torch.testing.assert_close(ddpg.smooth(act, 0.2, 0.5), act + 0.2)


def test_the_target_is_the_value_of_the_target_actors_action():
    """Without the fixes: y = 1 + 0.9 Q'(s', mu'(s'))."""
    agent, *_, args = make(ddpg, **OFF)
    for part in agent.target_actor, agent.target_critics:
        for param in part.parameters():
            param.data.normal_(0, 0.1)
    batch = make_batch(ddpg)
    y = 1 + 0.9 * agent.target_critics[0](batch.next_obs, agent.target_actor(batch.next_obs))
    expected = nn.functional.huber_loss(agent.critics[0](batch.obs, batch.act), y)
    torch.testing.assert_close(ddpg.td_loss(agent, batch, args)[0], expected)


def test_target_noise_changes_the_target_within_its_limit():
    agent, *_, args = make(ddpg, target_noise=0.2, target_noise_clip=0.0)
    smooth, batch = ddpg.td_loss(agent, make_batch(ddpg, 50), args)[0], make_batch(ddpg, 50)
    torch.manual_seed(0)
    smooth = ddpg.td_loss(agent, batch, args)[0]
    args.target_noise_clip = 0.5
    noisy = ddpg.td_loss(agent, batch, args)[0]
    args.target_noise = 0.0
    assert torch.equal(smooth, ddpg.td_loss(agent, batch, args)[0])
    assert not torch.equal(smooth, noisy)


def test_actor_and_targets_move_at_every_second_gradient_step_however_they_are_grouped():
    """7 steps in updates of 3, 1 and 3; the count goes on from a checkpoint in between."""
    agent, actor_optimizer, critic_optimizer, args = make(ddpg, policy_delay=2)
    parts, moved = (agent.critics, agent.actor, agent.target_actor, agent.target_critics), []
    for number in range(7):
        if number == 4:
            again, actor_optimizer, critic_optimizer, args = make(ddpg, policy_delay=2)
            again.load_state_dict(agent.state_dict())
            agent, parts = again, (again.critics, again.actor, again.target_actor, again.target_critics)
        before = [vector(part.parameters()) for part in parts]
        found = ddpg.update(agent, actor_optimizer, critic_optimizer, Replay([make_batch(ddpg)]), args)
        moved.append([not torch.equal(vector(part.parameters()), old) for part, old in zip(parts, before)])
        assert (found["policy_loss"] is None) == (number % 2 == 0)
    assert moved == [[True, odd, odd, odd] for odd in (False, True) * 3] + [[True, False, False, False]]
    assert agent.updates == 7


def overestimation(seed, **flags):
    """Learned value minus the value of the mean reward, 10 times it, of one state, 200 transitions of pure noise."""
    torch.manual_seed(seed)
    agent, args = make_agent(ddpg, hidden_sizes=(32, 32), learning_starts=0, tau=0.02, norm_obs=False, **flags)
    torch.manual_seed(seed)
    act, rew = 2 * torch.rand(200, 1) - 1, torch.randn(200)
    actor, critic = (torch.optim.Adam(x.parameters(), 3e-3) for x in (agent.actor, agent.critics))
    obs, ones = torch.ones(64, 3), torch.ones(64)
    batches = []
    for _ in range(1_500):
        rows = torch.randint(200, (64,))
        batches.append(ddpg.Batch(obs, act[rows], rew[rows], obs, ones < 0, 0.9 * ones))
    ddpg.update(agent, actor, critic, Replay(batches), args)
    return (agent.q(obs[:1], agent.policy(obs[:1])) - 10 * rew.mean()).item()


@pytest.mark.slow
def test_the_fixes_reduce_the_overestimation_of_actions_whose_reward_is_noise():
    """Every action is worth the mean reward, but the actor finds what looks best. The fixes make it less, not 0."""
    pairs = np.array([(overestimation(seed, **OFF), overestimation(seed)) for seed in range(1, 5)])
    assert pairs[:, 0].mean() > 0.5  # rewards have a deviation of 1, mean rewards one of 0.07
    assert (pairs[:, 0] > pairs[:, 1]).all()


def test_noise_of_its_own_is_added_to_each_of_the_actors_actions_and_clipped(monkeypatch):
    flags = {"num_steps": 3, "exploration_noise": 0.1, "noise_hold": 1}
    agent, args = make_agent(ddpg, num_envs=2, **flags)
    nn.init.zeros_(agent.actor[-2].weight)
    nn.init.constant_(agent.actor[-2].bias, 0.5)
    envs = ddpg.make_envs(args)
    torch.manual_seed(0)
    obs = envs.reset(seed=0)[0]
    acts = torch.stack([ddpg.collect(agent, envs, obs, args, False)[0].act for _ in range(400)])[..., 0]
    assert acts.mean().item() == pytest.approx(math.tanh(0.5), abs=0.02)
    assert acts.std().item() == pytest.approx(0.1, abs=0.01)
    between = torch.corrcoef(acts.flatten(1).T) - torch.eye(6)  # steps and environments
    assert between.abs().max() < 0.2
    monkeypatch.setattr(torch, "randn", torch.ones)
    up = ddpg.collect(agent, envs, obs, args, False)[0].act
    assert up.flatten().tolist() == pytest.approx([math.tanh(0.5) + 0.1] * 6)
    monkeypatch.undo()
    args.exploration_noise = 1e3
    wide = ddpg.collect(agent, envs, obs, args, False)[0].act
    assert set(wide.abs().flatten().tolist()) == {1}


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize(
    ("env_id", "flags", "steps"),
    [
        ("Pendulum-v1", {}, [0] * 17),
        ("Pendulum-v1", {"noise_hold": 16}, [0] * 16 + [16]),
        ("Room-v0", {}, range(17)),
        ("Room-v0", {"noise_hold": 9}, [0] * 9 + [9] * 8),
    ],
)
def test_noise_and_random_actions_are_held_if_there_is_one_component_or_as_a_flag_says(env_id, flags, steps, warm_up):
    """steps: the step in which the noise of each step was drawn."""
    agent, args = make_agent(ddpg, env_id, num_envs=2, num_steps=17, **flags)
    nn.init.zeros_(agent.actor[-2].weight)
    envs = ddpg.make_envs(args)
    acts = ddpg.collect(agent, envs, envs.reset(seed=0)[0], args, warm_up)[0].act.flatten(1).tolist()
    assert [acts.index(act) for act in acts] == list(steps)


def test_the_noise_of_several_components_is_divided_by_the_root_of_their_number(monkeypatch):
    agent, args = make_agent(ddpg, "Room-v0", num_steps=1, exploration_noise=0.5)
    nn.init.zeros_(agent.actor[-2].weight)
    envs = ddpg.make_envs(args)
    obs = envs.reset(seed=0)[0]
    monkeypatch.setattr(torch, "randn", torch.ones)
    (act,) = ddpg.collect(agent, envs, obs, args, False)[0].act.flatten(1)
    assert act.tolist() == pytest.approx([0.5 / 2**0.5] * 2)
