"""Deep Q-learning: targets by hand, a buffer that never mixes episodes, and Q* of a small process."""

import json
from collections import Counter
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

import dqn
from tests.helpers import TINY, generators, make_agent, metrics


def make(lr=1e-3, **flags):
    """Agent, optimizer and flags."""
    agent, args = make_agent(dqn, learning_starts=0, **flags)
    return agent, Adam(agent.network.parameters(), lr), args


def update(agent, optimizer, args, *batches):
    """An update in which the buffer returns these batches; returns the metrics."""
    replay = make_replay(1)
    replay.sample = lambda *_: batches
    return dqn.update(agent, optimizer, replay, args)


def make_batch(size):
    """A batch of random observations in which action 0 was taken for a reward of 1."""
    zeros, ones = torch.zeros(size, dtype=torch.int64), torch.ones(size)
    return dqn.Batch(torch.randn(size, 4), zeros, ones, torch.randn(size, 4), zeros.bool(), ones)


def make_replay(size, num_envs=1, obs_space=None):
    args = dqn.Args(buffer_size=size, num_envs=num_envs, num_steps=1, learning_starts=1)
    return dqn.ReplayBuffer(obs_space or spaces.Box(-1, 1e6, (1,)), spaces.Discrete(2), args)


def rollout(ids, rew, terminated, done):
    """Steps [T, N] whose observation is their number, with the same plus a half for their successor."""
    obs = torch.as_tensor(ids, dtype=torch.float32)[..., None]
    act = torch.zeros(obs.shape[:-1], dtype=torch.int64)
    rew, terminated, done = (torch.as_tensor(x) for x in (rew, terminated, done))
    return dqn.Rollout(obs, act, rew.float(), obs + 0.5, terminated, done)


def sample(replay, size, n, gamma=0.9, obs_norm=lambda obs: obs, reward_norm=lambda rew: rew):
    """(obs, ret, next_obs, terminated, discount) of samples of up to n steps, in two batches."""
    args = dqn.Args(gradient_steps=2, batch_size=size // 2, n_step=n, gamma=gamma)
    agent = SimpleNamespace(obs_norm=obs_norm, reward_norm=reward_norm, device="cpu")
    one, other = replay.sample(args, agent)
    columns = [torch.cat(pair).flatten().tolist() for pair in zip(one, other)]
    return list(zip(columns[0], *columns[2:]))


# Targets


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
    terminated, discount = torch.tensor([False, True]), torch.tensor([0.5, 0.25])
    batch = make_batch(2)._replace(act=torch.tensor([0, 1]), terminated=terminated, discount=discount)
    assert list(update(agent, optimizer, args, batch).values())[:2] == [loss, (9 + 8) / 2]


def test_a_gradient_step_moves_only_the_value_of_the_action_taken():
    agent, optimizer, args = make()
    bias = agent.network[-1].bias.detach().clone()
    update(agent, optimizer, args, make_batch(5))
    assert (agent.network[-1].bias != bias).tolist() == [True, False]


def test_the_target_moves_a_little_each_time_or_becomes_a_copy_at_intervals():
    batch = make_batch(5)
    agent, optimizer, args = make(tau=0.25)
    start = agent.target[0].weight.clone()
    update(agent, optimizer, args, batch)
    expected = start + 0.25 * (agent.network[0].weight - start)
    torch.testing.assert_close(agent.target[0].weight, expected)

    agent, optimizer, args = make(tau=1.0, target_interval=2)
    copies = []
    for _ in range(4):
        update(agent, optimizer, args, batch)
        copies.append(torch.equal(agent.target[0].weight, agent.network[0].weight))
    assert copies == [False, True] * 2


def test_gradients_are_clipped_to_max_grad_norm_and_reported_as_they_were():
    agent, optimizer, args = make(max_grad_norm=1e-3)
    assert update(agent, optimizer, args, make_batch(5))["grad_norm"] > 1e-2
    assert clip_grad_norm_(agent.network.parameters(), 1).item() == pytest.approx(1e-3, rel=1e-3)


def test_losses_are_means_over_the_gradient_steps_of_an_update():
    agent, optimizer, args = make(lr=0.0)  # nothing is learned
    batches = make_batch(5), make_batch(7), make_batch(9)
    found = update(agent, optimizer, args, *batches)
    parts = [list(update(agent, optimizer, args, batch).values()) for batch in batches]
    assert list(found.values()) == pytest.approx(np.mean(parts, 0))


# Replay


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
            replay.end_episodes()
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


def test_every_stored_step_is_as_likely_to_begin_a_sample_which_goes_on_to_the_end_or_to_the_newest_step():
    """Of steps 0 to 10, the buffer holds 6 to 10; 7 is an end. Step t pays t. Samples go over up to 3 steps."""
    replay = make_replay(5)
    for t in range(11):
        replay.add(rollout([[t]], [[t]], [[t % 4 == 3]], [[t % 4 == 3]]))
    torch.manual_seed(0)
    counts = Counter(sample(replay, 5_000, n=3, gamma=0.5))
    assert counts.keys() == {  # obs, ret, next_obs, terminated, discount
        (6, 6 + 7 / 2, 7.5, True, 1 / 4),
        (7, 7, 7.5, True, 1 / 2),
        (8, 8 + 9 / 2 + 10 / 4, 10.5, False, 1 / 8),
        (9, 9 + 10 / 2, 10.5, False, 1 / 4),
        (10, 10, 10.5, False, 1 / 2),
    }
    assert max(abs(count - 1_000) for count in counts.values()) < 4 * 1_000**0.5


def test_a_sample_is_scaled_as_the_network_wants_it():
    replay = make_replay(1)
    replay.add(rollout([[3]], [[2]], [[False]], [[False]]))
    scaled = sample(replay, 2, n=1, obs_norm=lambda obs: 10 * obs, reward_norm=lambda rew: 100 * rew)
    assert scaled == [(30, 200, 35, False, pytest.approx(0.9))] * 2


@pytest.mark.parametrize(("rows", "columns", "learning_rate"), [(9, 11, 2e-3), (10, 10, 2.5e-4)])
def test_vectors_of_100_numbers_have_the_learning_rate_of_images(tmp_path, spy, rows, columns, learning_rate):
    seen = spy(Adam, "step", note=lambda optimizer: optimizer.param_groups[0]["lr"])
    lake = ["S" * columns, *["F" * columns] * (rows - 2), "G" * columns]  # observations are one-hot
    flags = TINY["dqn"] | {"env_id": "FrozenLake-v1", "env_kwargs": json.dumps({"desc": lake})}
    dqn.train(dqn.Args(run_dir=str(tmp_path), anneal_lr=False, **flags))
    assert set(seen) == {learning_rate}


def test_images_are_kept_as_bytes():
    replay = make_replay(6, 2, spaces.Box(0, 255, (3, 40, 36), np.uint8))
    image = torch.randint(256, (1, 2, 3, 40, 36), dtype=torch.uint8)
    ids, never = np.zeros((1, 2)), np.zeros((1, 2), bool)
    replay.add(rollout(ids, ids, never, never)._replace(obs=image, next_obs=image))
    for column in replay.columns.obs, replay.columns.next_obs:
        assert column.dtype == np.uint8
        assert np.array_equal(column[:2], image[0])


def test_the_buffer_of_another_number_of_environments_is_refused():
    """They take turns in it, so the successor of a transition would be another one's."""
    with pytest.raises(ValueError, match="environments"):
        make_replay(8, num_envs=2).load_state_dict(make_replay(8, num_envs=4).state_dict())


@pytest.mark.parametrize("steps", [2, 3, 7])  # of each environment; there is room for 3
def test_a_restored_buffer_holds_the_same_and_overwrites_the_same(steps):
    replay, copy, ids = make_replay(6, 2), make_replay(6, 2), np.arange(14).reshape(7, 1, 2)
    for step in ids[:steps]:
        replay.add(rollout(step, step, step % 4 == 1, step % 2 == 1))
    copy.load_state_dict(replay.state_dict())
    for buffer in replay, copy:
        buffer.add(rollout(ids[0], ids[0], ids[0] < 0, ids[0] < 0))
    assert copy.count == replay.count
    assert all(map(np.array_equal, copy.columns, replay.columns))


def test_a_buffer_too_large_for_checkpoints_is_empty_when_restored(monkeypatch):
    monkeypatch.setattr(dqn, "MAX_SAVED_BYTES", 1)
    replay, copy = make_replay(6), make_replay(6)
    replay.add(rollout([[0]], [[0]], [[False]], [[False]]))
    copy.load_state_dict(replay.state_dict())
    assert (len(replay), len(copy)) == (1, 0)


def test_the_buffer_must_hold_a_rollout_and_learning_must_start(monkeypatch):
    """Rollouts have 8 steps of 8 environments; the buffer holds multiples of 8."""
    fits = {"num_envs": 8, "num_steps": 8, "buffer_size": 104, "learning_starts": 104, "total_timesteps": 128}
    dqn.Args(**fits | {"num_steps": 13})
    for wrong in {"buffer_size": 103}, {"num_steps": 14}, {"total_timesteps": 127}, {}:
        monkeypatch.setattr(dqn, "WORKERS", 1 if wrong else 2)  # two collect 64 steps each
        with pytest.raises(ValueError, match="--buffer-size|--learning-starts"):
            dqn.Args(**fits | wrong)


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


def test_no_return_continues_over_a_checkpoint_which_resets_the_environments(tmp_path, spy):
    """Episodes of 10 steps, a checkpoint after 16 steps of each environment: ends after steps 10, 16, 16 + 10."""
    buffers = spy(dqn.ReplayBuffer, "add", note=lambda replay, *_: replay)
    flags = {"total_timesteps": 256, "checkpoint_every": 16, "learning_starts": 64, "gradient_steps": 1}
    train(tmp_path, env_id="ProbeTimeLimit-v0", **flags)
    for env in range(8):
        assert (np.flatnonzero(buffers[0].columns.done[env : 8 * 32 : 8]) + 1).tolist() == [10, 16, 26]


@pytest.mark.slow
@pytest.mark.parametrize("double_q", [True, False])
def test_q_of_a_small_process_is_that_of_value_iteration(tmp_path, double_q):
    """Actions are random throughout and episodes are cut after 8 steps: neither may show in Q*."""
    lake = {"desc": ["SFF", "FHG"], "is_slippery": False, "max_episode_steps": 8}
    P, gamma, Q = gym.make("FrozenLake-v1", **lake).unwrapped.P, 0.8, np.zeros((6, 4))
    for _ in range(50):
        targets = {(s, a): rew + gamma * Q[after].max() for s in P for a, ((_, after, rew, _),) in P[s].items()}
        Q = np.array(list(targets.values())).reshape(6, 4)

    flags = {"epsilon_end": 1.0, "n_step": 1, "gamma": gamma, "double_q": double_q, "hidden_sizes": (32,)}
    flags |= {"total_timesteps": 15_000, "tau": 0.05, "learning_rate": 3e-3}
    agent = train(tmp_path, env_id="FrozenLake-v1", env_kwargs=json.dumps(lake), **flags)
    learned = agent.q(torch.eye(6)) * agent.reward_norm.std
    np.testing.assert_allclose(learned[:4].detach(), Q[:4], atol=0.02)  # 4 and 5 are terminal


def test_without_replay_and_target_network_it_is_online_q_learning(tmp_path, spy):
    """Each update uses the latest transition and the latest values."""
    samples = spy(dqn.ReplayBuffer, "sample", results=True)
    ones = "num_envs num_steps gradient_steps buffer_size batch_size learning_starts tau n_step".split()
    agent = train(tmp_path, total_timesteps=100, norm_obs=False, **dict.fromkeys(ones, 1))
    assert len(torch.unique(torch.cat([batch.obs for (batch,) in samples]), dim=0)) == 100
    assert torch.equal(agent.network[0].weight, agent.target[0].weight)
