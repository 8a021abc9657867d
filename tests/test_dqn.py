"""Deep Q-learning: targets by hand, a buffer that never mixes episodes, and Q* of a small process."""

from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import dqn
from tests.helpers import TINY, generators, make_agent, metrics, vector


def make(**flags):
    """Agent, optimizer and flags."""
    agent, args = make_agent(dqn, **flags)
    return agent, dqn.Adam(agent.parameters(), args), args


def make_batch(size):
    """A batch of random observations in which action 0 was taken for a reward of 1."""
    zeros, ones = torch.zeros(size, dtype=torch.int64), torch.ones(size)
    return dqn.Batch(torch.randn(size, 4), zeros, ones, torch.randn(size, 4), zeros.bool(), ones)


def make_replay(size, num_envs=1, obs_space=None):
    obs_space = obs_space or spaces.Box(-1, 1e6, (1,))
    return dqn.ReplayBuffer(obs_space, dqn.Args(buffer_size=size, num_envs=num_envs))


def rollout(ids, rew, terminated, done):
    """Steps [T, N] whose observation is their number, with the same plus a half for their successor."""
    obs = torch.as_tensor(ids, dtype=torch.float32)[..., None]
    act = torch.zeros(obs.shape[:-1], dtype=torch.int64)
    rew, terminated, done = (torch.as_tensor(x) for x in (rew, terminated, done))
    return dqn.Rollout(obs, act, rew.float(), obs + 0.5, terminated, done)


def sample(replay, size, n, gamma=0.9):
    """(obs, ret, next_obs, terminated, discount) of samples of up to n steps; rewards are not scaled."""
    args = dqn.Args(gradient_steps=1, batch_size=size, n_step=n, gamma=gamma)
    (batch,) = replay.sample(args, dqn.RewardNorm(()))
    columns = batch.obs, batch.ret, batch.next_obs, batch.terminated, batch.discount
    return list(zip(*(column.flatten().tolist() for column in columns)))


# Targets


def test_target_by_hand():
    """Reward 1, then half of the target network's value of the next action, unless the state is terminal."""
    ones, next_q = torch.ones(3), torch.tensor([[2.0, 3.0]] * 3)
    terminated, next_act = torch.tensor([False, False, True]), torch.tensor([0, 1, 1])
    assert dqn.td_target(ones, ones / 2, terminated, next_q, next_act).tolist() == [1 + 2 / 2, 1 + 3 / 2, 1]


@pytest.mark.parametrize(("double_q", "loss"), [(True, 6.5), (False, 6.25)])
def test_a_gradient_step_by_hand(double_q, loss):
    """Q is (9, 8) by the network and (2, 3) by the target network, in all states; actions 0 and 1 were taken.

    The targets are 1 + 2 / 2, or 1 + 3 / 2 without double Q-learning, and 1 at a terminal state. Errors e of 7 (or 6.5)
    and 7 count |e| - 1 / 2.
    """
    agent, optimizer, args = make(double_q=double_q)
    for part, outputs in (agent.network, [9.0, 8.0]), (agent.target, [2.0, 3.0]):
        torch.nn.init.zeros_(part[-1].weight)
        part[-1].bias.data.copy_(torch.tensor(outputs))
    terminated, discount = torch.tensor([False, True]), torch.tensor([0.5, 0.5])
    batch = make_batch(2)._replace(act=torch.tensor([0, 1]), terminated=terminated, discount=discount)
    assert dqn.td_step(agent, optimizer, batch, args.learning_rate, args)[:2].tolist() == [loss, (9 + 8) / 2]


def test_a_gradient_step_moves_only_the_value_of_the_action_taken_and_not_the_target_network():
    agent, optimizer, args = make(tau=0.0)
    target, bias = vector(agent.target.parameters()), agent.network[-1].bias.tolist()
    dqn.td_step(agent, optimizer, make_batch(5), args.learning_rate, args)
    assert torch.equal(vector(agent.target.parameters()), target)
    assert (agent.network[-1].bias != torch.tensor(bias)).tolist() == [True, False]


def test_the_target_moves_a_little_each_time_or_becomes_a_copy_at_intervals():
    batch = make_batch(5)
    agent, optimizer, args = make(tau=0.25)
    start = agent.target[0].weight.clone()
    dqn.td_step(agent, optimizer, batch, args.learning_rate, args)
    expected = start + 0.25 * (agent.network[0].weight - start)
    torch.testing.assert_close(agent.target[0].weight, expected)

    agent, optimizer, args = make(tau=1.0, target_interval=2)
    copies = []
    for _ in range(4):
        dqn.td_step(agent, optimizer, batch, args.learning_rate, args)
        copies.append(torch.equal(agent.target[0].weight, agent.network[0].weight))
    assert copies == [False, True] * 2


# Replay


def test_n_steps_by_hand():
    rew = np.array([[1.0, 2.0, 4.0]] * 3)
    last = np.array([[False, False, True], [False, True, False], [True, False, True]])
    ret, steps = dqn.n_step_return(rew, last, 0.5)
    assert ret.tolist() == [1 + 2 / 2 + 4 / 4, 1 + 2 / 2, 1]
    assert steps.tolist() == [3, 2, 1]


def test_sampling_is_uniform():
    replay = make_replay(12, num_envs=3)
    steps = np.arange(12).reshape(4, 3)
    replay.add(rollout(steps, steps, steps < 0, steps < 0))
    torch.manual_seed(0)
    counts = np.bincount([int(obs) for obs, *_ in sample(replay, 12_000, n=3)], minlength=12)
    assert np.abs(counts - 1_000).max() < 4 * 1_000**0.5


@given(generators, st.integers(1, 3), st.integers(1, 6), st.integers(4, 9))
@settings(max_examples=20, deadline=None)
def test_samples_stay_within_one_episode_and_say_where_it_ended(rng, num_envs, n, rows):
    """Against a plain list of all steps of each environment, through several rounds of overwriting."""
    replay = make_replay(rows * num_envs, num_envs)
    gamma, total, history = 0.5, 0, []  # one tuple of arrays [N] for each step
    while total < 25:
        T = int(rng.integers(1, 5))
        ids = (total + np.arange(T))[:, None] * num_envs + np.arange(num_envs)
        done = rng.random((T, num_envs)) < 0.2
        terminated = done & (rng.random((T, num_envs)) < 0.5)
        rew = rng.integers(-4, 5, (T, num_envs)).astype(float)
        replay.add(rollout(ids, rew, terminated, done))
        history += zip(rew, terminated, done)
        total += T
        if rng.random() < 0.2:  # the environments are reset
            replay.mark_reset()
            history[-1] = (*history[-1][:2], np.ones(num_envs, bool))

        for number, ret, next_obs, end, discount in sample(replay, 16, n, gamma):
            t, env = divmod(int(number), num_envs)
            assert total - rows <= t < total
            expected, steps = 0.0, 0
            for u in range(t, min(t + n, total)):
                expected += gamma**steps * history[u][0][env]
                steps += 1
                if history[u][2][env]:
                    break
            last = u * num_envs + env + 0.5  # the successor of the last step counted
            assert (ret, next_obs, end, discount) == (expected, last, history[u][1][env], gamma**steps)


def test_every_stored_step_can_begin_a_sample_which_goes_on_to_the_end_or_to_the_newest_step():
    """Of steps 0 to 10, 6 to 10 are stored, and 7 is an end: samples of up to 3 steps are 6-7, 7, 8-10, 9-10, 10."""
    replay, allowed = make_replay(15, num_envs=3), set()
    for t in range(11):
        ids, end = np.arange(3 * t, 3 * t + 3)[None], np.full((1, 3), t % 4 == 3)
        replay.add(rollout(ids, ids % 10, end, end))
    for env in range(3):
        for steps in [(6, 7), (7,), (8, 9, 10), (9, 10), (10,)]:
            ids = [3 * step + env for step in steps]
            ret = sum(0.5**i * (number % 10) for i, number in enumerate(ids))
            allowed.add((ids[0], ret, ids[-1] + 0.5, steps[-1] == 7, 0.5 ** len(ids)))
    assert set(sample(replay, 3_000, n=3, gamma=0.5)) == allowed


def test_images_are_kept_as_bytes():
    replay = make_replay(6, 2, spaces.Box(0, 255, (3, 40, 36), np.uint8))
    image = torch.randint(256, (1, 2, 3, 40, 36), dtype=torch.uint8)
    ids, never = np.zeros((1, 2)), np.zeros((1, 2), bool)
    replay.add(rollout(ids, ids, never, never)._replace(obs=image, next_obs=image))
    assert replay.obs.dtype == replay.next_obs.dtype == torch.uint8
    assert torch.equal(replay.obs[:2], image[0])


SIZES = {(64, 1, 128, 1): True, (63, 1, 128, 1): False, (104, 100, 128, 1): True, (103, 100, 128, 1): False}
SIZES |= {(104, 100, 127, 1): False, (104, 100, 128, 2): False}  # 64 steps are collected, by each worker


def test_the_buffer_must_hold_a_rollout_and_learning_must_start(monkeypatch):
    """Rollouts have 64 steps; the buffer holds multiples of 8."""
    for (buffer_size, learning_starts, total, workers), valid in SIZES.items():
        monkeypatch.setattr(dqn, "WORKERS", workers)
        flags = {"buffer_size": buffer_size, "learning_starts": learning_starts, "total_timesteps": total}
        with nullcontext() if valid else pytest.raises(ValueError, match="--buffer-size|--learning-starts"):
            dqn.check_batch(dqn.Args(num_envs=8, num_steps=8, **flags))


# Acting and learning


def train(tmp_path, **flags):
    return dqn.train(dqn.Args(run_dir=str(tmp_path / "run"), **{"eval_episodes": 1} | flags))


def test_random_actions_are_drawn_for_each_environment():
    """The network says 0 all the time; half of the random actions are 0 too."""
    agent, _, args = make(num_envs=4)
    envs, asked = dqn.make_envs(args), []
    agent.act = lambda obs: asked.append(obs) or np.zeros(len(obs), int)
    torch.manual_seed(0)
    obs = envs.reset(seed=0)[0]
    for epsilon in (0.0, 0.4, 1.0):
        other = dqn.collect(agent, envs, obs, 1_000, epsilon)[0].act > 0  # [T, N]
        assert other.float().mean() == pytest.approx(epsilon / 2, abs=0.03)
        assert other.all(1).float().mean() == pytest.approx((epsilon / 2) ** 4, abs=0.03)
    assert 1_000 + 950 < len(asked) <= 2_000  # not where all environments explore


def test_epsilon_falls_linearly_in_environment_steps_and_then_stays(tmp_path):
    flags = {"epsilon_start": 0.9, "epsilon_end": 0.1, "exploration_fraction": 0.5, "learning_starts": 1_280}
    train(tmp_path, total_timesteps=1_280, **flags)
    rows = metrics(tmp_path / "run")
    before = np.array([float(row["global_step"]) - 64 for row in rows])  # when the row's steps began
    expected = np.maximum(0.9 - 0.8 * before / 640, 0.1)
    np.testing.assert_allclose([float(row["epsilon"]) for row in rows], expected)
    assert [row["td_loss"] == "" for row in rows] == [True] * 19 + [False]


def test_losses_are_means_over_the_gradient_steps_of_a_rollout(tmp_path, spy):
    steps = spy(dqn, "td_step", results=True)
    train(tmp_path, **TINY["dqn"] | {"gradient_steps": 3})
    rows = [row for row in metrics(tmp_path / "run") if row["td_loss"]]
    for row, three in zip(rows, torch.stack(steps).split(3), strict=True):
        expected = three.mean(0).tolist()
        assert [float(row[name]) for name in ("td_loss", "q_value", "grad_norm")] == pytest.approx(expected)


def test_no_return_continues_over_a_checkpoint_which_resets_the_environments(tmp_path, spy):
    """Episodes of 10 steps, a checkpoint after 16 steps of each environment: ends after steps 10, 16, 16 + 10."""
    buffers = spy(dqn.ReplayBuffer, "add", note=lambda replay, *_: replay)
    flags = {"total_timesteps": 256, "checkpoint_every": 128, "learning_starts": 64, "gradient_steps": 1}
    train(tmp_path, env_id="ProbeTimeLimit-v0", **flags)
    for env in range(8):
        assert (buffers[0].done[env : 8 * 32 : 8].nonzero().flatten() + 1).tolist() == [10, 16, 26]


class Corridor(gym.Env):
    """Cells 0 to 3, left or right. Moving right from cell 3 ends the episode and pays 10; every other step costs 1."""

    observation_space, action_space = spaces.Discrete(4), spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(4))
        return self.cell, {}

    def step(self, act):
        goal = self.cell == 3 and act == 1
        self.cell = min(max(self.cell + 2 * int(act) - 1, 0), 3)
        return self.cell, 10.0 if goal else -1.0, goal, False, {}


gym.register("Corridor-v0", entry_point=Corridor, max_episode_steps=8)


@pytest.mark.slow
@pytest.mark.parametrize("double_q", [True, False])
def test_q_of_a_small_process_is_that_of_value_iteration(tmp_path, double_q):
    """Actions are random throughout and episodes are cut after 8 steps: neither may show in Q*."""
    gamma, Q = 0.9, np.zeros((4, 2))
    for _ in range(200):
        V = Q.max(1)
        Q = np.array([[-1 + gamma * V[max(s - 1, 0)], 10 if s == 3 else -1 + gamma * V[s + 1]] for s in range(4)])

    flags = {"epsilon_end": 1.0, "n_step": 1, "gamma": gamma, "double_q": double_q, "hidden_sizes": (32,)}
    agent = train(tmp_path, env_id="Corridor-v0", total_timesteps=15_000, tau=0.05, learning_rate=3e-3, **flags)
    learned = agent.q(torch.eye(4)) * agent.reward_norm.std
    np.testing.assert_allclose(learned.detach(), Q, atol=0.15)


def test_without_replay_and_target_network_it_is_online_q_learning(tmp_path, spy):
    """Each update uses the latest transition and the latest values."""
    seen = spy(dqn, "td_step", note=lambda agent, optimizer, batch, *_: batch.obs)
    ones = "num_envs num_steps gradient_steps buffer_size batch_size learning_starts tau n_step".split()
    agent = train(tmp_path, total_timesteps=100, **dict.fromkeys(ones, 1))
    assert len(torch.unique(torch.cat(seen), dim=0)) == 100
    assert torch.equal(agent.network[0].weight, agent.target[0].weight)
