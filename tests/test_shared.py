"""What the scripts share: advantages, rollouts, learning rates, distributions, statistics, networks, evaluation.

test_house.py makes sure that what they share has the same text in each of them, so that ppo.py can stand for all.
"""

import importlib
import inspect
import math
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, Normal

import a2c
import ppo
import trpo
import vpg
from tests.helpers import (
    CONTINUOUS,
    SCRIPTS,
    TINY,
    column,
    flags,
    generators,
    make_agent,
    make_batch,
    spy_learning_rates,
    update,
)

# Advantages

each_gae = pytest.mark.parametrize("module", [a2c, ppo], ids=["a2c", "ppo"])


@each_gae
def test_gae_by_hand(module):
    # gamma = 1/2, lambda = 1/2. delta = 1 + next_val / 2 - val = (1 + 4/2 - 2, 1 + 8/2 - 4) = (1, 1).
    adv = module.gae(column(1, 1), column(2, 4), column(4, 8), flags(0, 0), flags(0, 0), 0.5, 0.5)
    assert adv.flatten().tolist() == [1 + 0.25 * 1, 1]


@each_gae
def test_a_terminal_state_is_worth_nothing_and_a_time_limit_is_worth_its_value(module):
    rew, val, next_val = column(1), column(2), column(8)
    terminated = module.gae(rew, val, next_val, flags(1), flags(1), 0.5, 0.5)
    truncated = module.gae(rew, val, next_val, flags(0), flags(1), 0.5, 0.5)
    assert terminated.item() == 1 - 2
    assert truncated.item() == 1 + 0.5 * 8 - 2


@each_gae
@given(generators, st.integers(1, 12), st.integers(1, 3), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_gae_is_the_discounted_sum_of_the_temporal_difference_errors_of_its_episode(module, rng, T, N, gamma, lam):
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
    adv = module.gae(*map(torch.as_tensor, (rew, val, next_val, terminated, done)), gamma, lam)
    np.testing.assert_allclose(adv, expected, rtol=1e-5, atol=1e-5)


# From rollouts to updates, by the training loop itself

FOUR = {"num_envs": 4, "num_steps": 16, "total_timesteps": 256, "eval_episodes": 1}  # rollouts of 64 steps


def test_the_next_observation_is_the_true_successor_and_only_environments_that_ended_start_anew():
    """CartPole starts within 0.05 of 0; where it falls, an angle or position is larger."""
    agent, args = make_agent(ppo, num_envs=4)
    envs = ppo.make_envs(args)
    rollout, obs = ppo.collect(agent, envs, envs.reset(seed=1)[0], 64)
    done, following = rollout.done, torch.cat([rollout.obs[1:], torch.as_tensor(obs)[None]])
    assert torch.equal(following[~done], rollout.next_obs[~done])
    assert following[done].abs().max() <= 0.05
    assert rollout.next_obs[done].abs().amax(-1).min() > 0.2
    assert (done.any(1) & ~done.all(1)).any()


@pytest.mark.parametrize("name", ["vpg", "a2c", "trpo", "ppo"])
def test_an_update_gets_advantages_of_scaled_rewards_and_their_sum_with_the_values(tmp_path, spy, name):
    """Scaled by statistics that include the rollout's rewards, but not yet its observations."""
    module = importlib.import_module(name)

    def note(agent, *arguments):
        return deepcopy(agent), next(x for x in arguments if isinstance(x, module.Batch))

    rollouts, updates = spy(module, "collect", results=True), spy(module, "update", note)
    learned = module.train(module.Args(gamma=0.9, gae_lambda=0.8, run_dir=str(tmp_path), **FOUR))
    obs_norm, reward_norm = module.RunningNorm((4,), True), module.RewardNorm((), True)
    assert len(updates) == 4
    for (rollout, _), (agent, (obs, act, adv, ret, *_)) in zip(rollouts, updates):
        torch.testing.assert_close(agent.obs_norm.state_dict(), obs_norm.state_dict())
        reward_norm.update(rollout.rew, rollout.done, 0.9)
        rew, val, next_val = reward_norm(rollout.rew), agent.value(rollout.obs), agent.value(rollout.next_obs)
        expected = module.gae(rew, val, next_val, rollout.terminated, rollout.done, 0.9, 0.8)
        torch.testing.assert_close(adv, expected.flatten())
        torch.testing.assert_close(ret, (expected + val).flatten())
        assert torch.equal(obs, rollout.obs.flatten(0, 1))
        assert torch.equal(act, rollout.act.flatten(0, 1))
        obs_norm.update(rollout.obs.flatten(0, 1))
    torch.testing.assert_close(learned.obs_norm.state_dict(), obs_norm.state_dict())


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(("anneal_lr", "fractions"), [(True, [1, 3 / 4, 2 / 4, 1 / 4]), (False, [1])])
def test_the_learning_rate_falls_linearly_over_the_run_unless_told_otherwise(tmp_path, spy, name, anneal_lr, fractions):
    """In 4 rollouts. a2c.py steps with two rates in turn, the actor's and the critic's."""
    module, rates = importlib.import_module(name), [0.01, 0.05] if name == "a2c" else [0.01]
    more = {name: {"learning_starts": 64, "gradient_steps": 2} for name in ("dqn", *CONTINUOUS)}
    more = (more | {"a2c": {"critic_learning_rate": 0.05}}).get(name, {})
    seen = spy_learning_rates(spy)
    module.train(module.Args(learning_rate=0.01, anneal_lr=anneal_lr, run_dir=str(tmp_path), **FOUR | more))
    assert list(dict.fromkeys(seen)) == pytest.approx([rate * fraction for fraction in fractions for rate in rates])


@pytest.mark.parametrize("module", [vpg, a2c])
def test_continuous_actions_have_larger_learning_rates_unless_they_are_given(tmp_path, spy, module):
    rates = spy(torch.optim.Adam, "step", note=lambda optimizer: optimizer.param_groups[0]["lr"])
    name, expected = module.__name__, {"vpg": [3e-3], "a2c": [1.5e-3, 1e-2]}
    small = TINY[name] | {"env_id": "Pendulum-v1", "total_timesteps": 64, "anneal_lr": False}
    module.train(module.Args(run_dir=str(tmp_path / "default"), **small))
    assert list(dict.fromkeys(rates)) == pytest.approx(expected[name])
    rates.clear()
    given = {"learning_rate": 1e-4} | ({"critic_learning_rate": 2e-4} if name == "a2c" else {})
    module.train(module.Args(run_dir=str(tmp_path / "given"), **small, **given))
    assert list(dict.fromkeys(rates)) == list(given.values())


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("column", [0, 1])
def test_adam_starts_with_the_learning_rates_that_help_names(tmp_path, spy, name, column):
    """For vectors and for images."""
    env_id = ["Pendulum-v1", "ProbeContinuousImage-v0"] if name in CONTINUOUS else ["CartPole-v1", "ProbeImage-v0"]
    module, note = (
        importlib.import_module(name),
        lambda optimizer: (optimizer.defaults["lr"], optimizer.param_groups[0]["lr"]),
    )
    seen = spy(torch.optim.Adam, "step", note=note)
    named = re.findall(r"default ([\d.e-]+), for images ([\d.e-]+)", inspect.getsource(module.Args))
    flags = TINY[name] | {"env_id": env_id[column], "total_timesteps": 64, "anneal_lr": False}
    module.train(module.Args(run_dir=str(tmp_path), **flags))
    assert set(seen) == {(float(rates[column]),) * 2 for rates in named}


@pytest.mark.parametrize("module", [vpg, a2c, trpo])
def test_a_batch_has_two_rows_or_more_because_one_has_no_standard_deviation(module):
    with pytest.raises(ValueError, match="at least 2"):
        module.Args(num_envs=1, num_steps=1)
    for num_envs, num_steps in (1, 2), (2, 1):
        module.Args(num_envs=num_envs, num_steps=num_steps)


# Distributions


def test_distributions_agree_with_torch():
    """7 rows of 3 components. Independent sums over the components."""
    logits, mean, log_std = torch.randn(7, 3, 5), torch.randn(7, 3), torch.randn(3)
    normal, categorical = Normal(mean, log_std.exp()), Categorical(logits=logits)
    for ours, theirs in (ppo.Categorical(logits), categorical), (ppo.Gaussian(mean, log_std), normal):
        theirs, act = Independent(theirs, 1), ours.sample()
        assert act.shape == (7, 3)
        torch.testing.assert_close(ours.log_prob(act), theirs.log_prob(act))
        torch.testing.assert_close(ours.entropy(), theirs.entropy())
        assert torch.equal(ours.mode, theirs.mode)


def test_a_distribution_stays_as_it_is_when_the_agent_changes():
    """TRPO compares each new policy with the old one."""
    agent, _ = make_agent(ppo, "Pendulum-v1")
    with torch.no_grad():
        pi, act = agent.policy(torch.randn(2, 3)), torch.ones(2, 1)
        before = pi.entropy(), pi.log_prob(act)
        agent.log_std += 1
    torch.testing.assert_close((pi.entropy(), pi.log_prob(act)), before)


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    act = ppo.Categorical(probabilities.log().expand(100_000, 1, 3)).sample()
    torch.testing.assert_close(act.flatten().bincount() / 100_000, probabilities, atol=0.01, rtol=0)
    act = ppo.Gaussian(torch.full((100_000, 1), 3.0), torch.tensor([math.log(2)])).sample()
    assert act.mean().item() == pytest.approx(3, abs=0.05)
    assert act.std().item() == pytest.approx(2, abs=0.05)


def test_components_of_a_multidiscrete_action_are_independent_and_of_their_own_size():
    agent, _ = make_agent(ppo, "ProbeMultiDiscrete-v0")  # 2 and 4 choices
    choices = torch.cartesian_prod(torch.arange(2), torch.arange(4))
    joint = agent.policy(torch.randn(1, 2).expand(8, 2)).log_prob(choices).exp().view(2, 4)
    assert joint.sum().item() == pytest.approx(1)
    torch.testing.assert_close(joint, torch.outer(joint.sum(1), joint.sum(0)))
    pi = agent.policy(torch.randn(10_000, 2))
    assert pi.sample().max(0).values.tolist() == [1, 3]
    assert pi.entropy().max().item() == pytest.approx(math.log(2) + math.log(4), abs=0.01)


@pytest.mark.parametrize(("actions", "std"), [(1, 1.65), (2, 0.98), (6, 0.43), (17, 0.2)])
def test_the_more_components_an_action_has_the_less_each_explores_at_first(actions, std):
    agent = ppo.ActorCritic(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (actions,)), ppo.Args())
    assert agent.log_std.exp().tolist() == pytest.approx([std] * actions, rel=0.02)


@pytest.mark.parametrize(("env_id", "largest"), [("Pendulum-v1", 1), ("ProbeUnbounded-v0", 100)])
def test_the_mean_of_an_action_stays_within_its_bounds_if_it_has_any(env_id, largest):
    agent, _ = make_agent(ppo, env_id)
    torch.nn.init.zeros_(agent.actor[-1].weight)
    torch.nn.init.constant_(agent.actor[-1].bias, 100)
    assert agent.act(np.zeros((1, *agent.obs_norm.mean.shape)), greedy=True).item() == largest


# Running statistics


@pytest.mark.parametrize("mean", [0, 1e4])
def test_running_statistics_of_parts_from_two_workers_are_those_of_all_data_at_once(monkeypatch, mean):
    """The workers are threads here; one has larger numbers than the other. float32 resolves 0.001 at 10,000."""
    barrier, parts = threading.Barrier(2, timeout=60), {}

    def all_mean(x):
        parts[threading.get_ident()] = x.clone()
        barrier.wait()
        total = sum(parts.values())
        barrier.wait()
        return x.copy_(total / 2)

    def work(norm, data):
        for part in torch.as_tensor(data).split([100, 1, 399]):
            norm.update(part)

    monkeypatch.setattr(ppo, "all_mean", all_mean)
    rng, norms = np.random.default_rng(0), [ppo.RunningNorm((3,), True) for _ in range(2)]
    data = [rng.normal(mean + shift, 1, (500, 3)).astype(np.float32) for shift in (0, 2)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, norms, data))
    data = np.concatenate(data).astype(float)
    for norm in norms:
        np.testing.assert_allclose(norm.mean, data.mean(0), atol=0.002 if mean else 1e-6, rtol=0)
        np.testing.assert_allclose(norm.var, data.var(0), rtol=1e-3)
        np.testing.assert_allclose(norm.std, data.std(0), rtol=1e-3)


def test_policy_and_values_see_standard_deviations_from_the_mean_10_at_most():
    agent, _ = make_agent(ppo)
    agent.obs_norm.update(torch.tensor([[97.0] * 4, [103.0] * 4]))  # mean 100, standard deviation 3
    obs, scaled = torch.tensor([[97.0, 106.0, 100.0, -1e9]]), torch.tensor([[-1.0, 2.0, 0.0, -10.0]])
    torch.testing.assert_close(agent.value(obs), agent.critic(scaled)[:, 0])
    torch.testing.assert_close(agent.policy(obs).logits[:, 0], agent.actor(scaled).log_softmax(-1))


def test_rewards_are_divided_by_the_standard_deviation_of_the_discounted_return():
    norm, rew = ppo.RewardNorm((), True), column(2.0, 2.0, 4.0)
    norm.update(rew, flags(0, 1, 0), gamma=0.5)  # discounted returns so far: 2, 2 + 1 = 3; the episode ends; 4
    torch.testing.assert_close(norm(rew) * np.std([2, 3, 4]), rew, check_dtype=False)
    norm.update(column(0.0, 0.0), flags(0, 0), gamma=0.5)  # the episode goes on: 0 + 4/2 = 2, 0 + 2/2 = 1
    assert norm.var.item() == pytest.approx(np.var([2, 3, 4, 2, 1]))
    norm.ret = 0
    norm.update(column(6.0), flags(0), gamma=0.5)  # the environments were reset: 6
    assert norm.var.item() == pytest.approx(np.var([2, 3, 4, 2, 1, 6]))


def test_rewards_that_hardly_vary_are_divided_by_a_fifth_of_their_mean_size_and_not_clipped():
    """Episodes of one step. By the standard deviation of 1 all would become about 100, and be clipped at 10."""
    for rewards, scaled in ((-99.0, -101.0), [-99 / 20, -101 / 20]), ((7.0, 7.0), [5, 5]), ((0.0, 0.0), [0, 0]):
        norm, rew = ppo.RewardNorm((), True), column(*rewards)
        norm.update(rew, flags(1, 1), gamma=0.5)
        assert norm(rew).flatten().tolist() == pytest.approx(scaled)


def test_of_images_the_mean_is_subtracted_before_they_are_divided_by_255():
    norm, images = ppo.RunningNorm((3, 40, 36), True), torch.randint(0, 256, (5, 3, 40, 36), dtype=torch.uint8)
    norm.update(images[:2])
    norm.update(images[2:])
    torch.testing.assert_close(norm(images), images / 255 - images.float().mean(0) / 255)


# Networks and evaluation


def test_noise_does_not_turn_off_the_units_that_read_images():
    """Without subtracting the mean image, half are 0 for all images after these 64 gradient steps."""
    agent, args = make_agent(ppo, "ProbeImage-v0")
    images = torch.full((32, 3, 40, 36), 87, dtype=torch.uint8)
    for image in images:
        row, col = torch.randint(32, (2,)).tolist()
        image[:, row : row + 4, col : col + 4] = 236
    agent.obs_norm.update(images)
    batch = make_batch(ppo, agent, 32)._replace(obs=images)
    update(ppo, agent, batch, args, lr=1e-3, optimizer=torch.optim.Adam)
    units = agent.actor[:6](agent.obs_norm(images))  # three convolutions and their ReLUs
    assert (units.max(0).values == 0).float().mean() < 0.1


@pytest.mark.parametrize(("shape", "hidden_sizes", "size"), [((4,), (6, 5), 5), ((4,), (), 4), ((3, 40, 36), (), 512)])
def test_the_layers_of_a_body_come_with_the_number_of_their_outputs(shape, hidden_sizes, size):
    """For another head. Without hidden layers, the policy is linear in a vector; images have layers of their own."""
    layers, outputs = ppo.feature_layers(shape, hidden_sizes)
    assert torch.nn.Sequential(*layers)(torch.randn(2, *shape)).shape == (2, outputs)
    assert outputs == size


def test_evaluation_takes_the_most_likely_action_and_leaves_the_statistics_alone():
    """Rewards are the actions, -1, 0 or 1, in episodes of 5 steps."""
    agent, _ = make_agent(ppo, "ProbeFromMinusOne-v0")
    torch.nn.init.zeros_(agent.actor[-1].weight)
    agent.actor[-1].bias.data.copy_(torch.tensor([0.0, 0.0, 0.1]))
    before = deepcopy(agent.state_dict())
    assert ppo.evaluate(agent, ppo.make_env("ProbeFromMinusOne-v0"), episodes=20, seed=0) == [5.0] * 20
    assert all(torch.equal(before[name], x) for name, x in agent.state_dict().items())


def test_the_final_evaluation_is_in_eval_mode(tmp_path, spy):
    modes = spy(ppo, "evaluate", note=lambda agent, *_: agent.training)
    ppo.train(ppo.Args(run_dir=str(tmp_path), **FOUR))
    assert modes == [False]
