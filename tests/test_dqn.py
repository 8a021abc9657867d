"""Deep Q-learning: targets by hand, a buffer that never mixes episodes, and Q* of a small process."""

import re
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import dqn
from tests.helpers import generators, make_agent, metrics


def make(**flags):
    """Agent, optimizer and flags."""
    agent, args = make_agent(dqn, **flags)
    return agent, dqn.Adam(agent.parameters(), args), args


def make_batch(size, obs=torch.randn, ret=1.0, terminated=False):
    """A batch of random observations, or zeros, in which action 0 was taken and all returns are the same."""
    zeros, ones = torch.zeros(size, dtype=torch.int64), torch.ones(size)
    return dqn.Batch(obs(size, 4), zeros, ret * ones, obs(size, 4), zeros.bool() | terminated, ones)


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
    """One batch of transitions of up to n steps; rewards are not scaled."""
    args = dqn.Args(gradient_steps=1, batch_size=size, n_step=n, gamma=gamma)
    (batch,) = replay.sample(args, dqn.RewardNorm(()))
    return batch


# Targets


def test_target_by_hand():
    """Reward 1, then half of the next state's best value by the target network, 3, unless the state is terminal."""
    next_q = torch.tensor([[2.0, 3.0], [2.0, 3.0]])
    terminated = torch.tensor([False, True])
    ones = torch.ones(2)
    assert dqn.td_target(ones, ones / 2, terminated, next_q, next_q.argmax(-1)).tolist() == [1 + 3 / 2, 1]


def test_double_target_by_hand():
    """The network prefers action 0, so the target network's value of action 0 counts, though 3 is more."""
    q, next_q = torch.tensor([[9.0, 8.0]]), torch.tensor([[2.0, 3.0]])
    target = dqn.td_target(torch.ones(1), torch.full((1,), 0.5), torch.tensor([False]), next_q, q.argmax(-1))
    assert target.item() == 1 + 2 / 2


@pytest.mark.parametrize(("double_q", "best"), [(True, 0), (False, 1)])
def test_an_update_asks_the_network_or_the_target_network_for_the_next_action(spy, double_q, best):
    agent, optimizer, args = make(double_q=double_q)
    constant = {"network": [9.0, 8.0], "target": [2.0, 3.0]}
    for name, outputs in constant.items():
        last = getattr(agent, name)[-1]
        torch.nn.init.zeros_(last.weight)
        last.bias.data.copy_(torch.tensor(outputs))
    chosen = spy(dqn, "td_target", note=lambda *args: args[-1])
    dqn.td_step(agent, optimizer, make_batch(3), args.learning_rate, args)
    assert [act.tolist() for act in chosen] == [[best] * 3]


def test_only_the_value_of_the_action_taken_moves_and_no_gradient_reaches_the_target():
    agent, optimizer, args = make(tau=0.0)
    before = [p.clone() for p in agent.target.parameters()]
    last = agent.network[-1]
    bias = last.bias.clone()
    dqn.td_step(agent, optimizer, make_batch(5), args.learning_rate, args)
    assert all(p.grad is None for p in agent.target.parameters())
    assert all(torch.equal(p, q) for p, q in zip(before, agent.target.parameters()))
    assert last.bias[0] != bias[0]
    assert last.bias[1] == bias[1]


def test_the_target_moves_a_little_each_time_or_becomes_a_copy_at_intervals():
    batch = make_batch(5)
    agent, optimizer, args = make(tau=0.25)
    start = agent.target[0].weight.clone()
    dqn.td_step(agent, optimizer, batch, args.learning_rate, args)
    expected = start + 0.25 * (agent.network[0].weight - start)
    torch.testing.assert_close(agent.target[0].weight, expected)

    agent, optimizer, args = make(tau=1.0, target_interval=3)
    copies = []
    for _ in range(6):
        dqn.td_step(agent, optimizer, batch, args.learning_rate, args)
        copies.append(torch.equal(agent.target[0].weight, agent.network[0].weight))
    assert copies == [False, False, True] * 2


def test_large_errors_pull_no_harder_than_an_error_of_one():
    """Mnih et al. (2015) clip the error's derivative to [-1, 1]."""
    norms = []
    for reward in (0.5, 1e3, 1e6):
        agent, optimizer, args = make()
        torch.nn.init.zeros_(agent.network[-1].weight)
        batch = make_batch(1, torch.zeros, reward, terminated=True)
        _, _, grad_norm = dqn.td_step(agent, optimizer, batch, args.learning_rate, args)
        norms.append(grad_norm.item())
    assert norms == pytest.approx([0.5, 1, 1])


# Replay


def test_n_steps_by_hand():
    rew = np.array([[1.0, 2.0, 4.0]] * 3)
    last = np.array([[False, False, True], [False, True, False], [True, False, True]])
    ret, steps = dqn.n_step_return(rew, last, 0.5)
    assert ret.tolist() == [1 + 2 / 2 + 4 / 4, 1 + 2 / 2, 1]
    assert steps.tolist() == [3, 2, 1]


def test_the_oldest_steps_are_overwritten():
    replay = make_replay(4)
    for t in range(0, 12, 3):  # three steps at a time into four rows
        steps = np.arange(t, t + 3)[:, None]
        replay.add(rollout(steps, steps, steps < 0, steps < 0))
    assert len(replay) == 4
    obs = sample(replay, 1_000, n=1).obs
    assert sorted(set(obs.flatten().tolist())) == [8, 9, 10, 11]


def test_sampling_is_uniform():
    replay = make_replay(12, num_envs=3)
    steps = np.arange(12).reshape(4, 3)
    replay.add(rollout(steps, steps, steps < 0, steps < 0))
    torch.manual_seed(0)
    obs = sample(replay, 12_000, n=3).obs
    counts = np.bincount(obs.flatten().long(), minlength=12)
    assert np.abs(counts - 1_000).max() < 4 * 1_000**0.5


@given(generators, st.integers(1, 3), st.integers(1, 6), st.integers(4, 9))
@settings(max_examples=60, deadline=None)
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

        obs, _, ret, next_obs, end, discount = sample(replay, 32, n, gamma)
        for i in range(32):
            t, env = divmod(int(obs[i]), num_envs)
            assert total - rows <= t < total
            expected, steps = 0.0, 0
            for u in range(t, min(t + n, total)):
                expected += gamma**steps * history[u][0][env]
                steps += 1
                if history[u][2][env]:
                    break
            assert ret[i] == pytest.approx(expected)
            assert discount[i] == pytest.approx(gamma**steps)
            assert next_obs[i] == u * num_envs + env + 0.5  # the successor of the last step counted
            assert end[i] == history[u][1][env]


def filled_replay():
    """11 steps of three environments, in a buffer of 5 steps each; every fourth step ends an episode."""
    replay = make_replay(15, num_envs=3)
    for t in range(11):
        ids, end = np.arange(3 * t, 3 * t + 3)[None], np.full((1, 3), t % 4 == 3)
        replay.add(rollout(ids, ids % 10, end, end))
    return replay


def test_every_stored_step_can_begin_a_sample_which_goes_on_to_the_end_or_to_the_newest_step():
    """Of steps 0 to 10, 6 to 10 are stored, and 7 is an end: samples of up to 3 steps are 6-7, 7, 8-10, 9-10, 10."""
    allowed = set()
    for env in range(3):
        for steps in [(6, 7), (7,), (8, 9, 10), (9, 10), (10,)]:
            ids = [3 * step + env for step in steps]
            ret = sum(0.5**i * (number % 10) for i, number in enumerate(ids))
            allowed.add((ids[0], ret, ids[-1] + 0.5, steps[-1] == 7, 0.5 ** len(ids)))
    batch = sample(filled_replay(), 3_000, n=3, gamma=0.5)
    columns = batch.obs, batch.ret, batch.next_obs, batch.terminated, batch.discount
    assert set(zip(*(column.flatten().tolist() for column in columns))) == allowed


def test_a_restored_buffer_returns_what_was_saved_and_goes_on_with_it():
    replay, restored = filled_replay(), make_replay(15, num_envs=3)
    restored.load_state_dict(replay.state_dict())
    for _ in range(2):
        batches = []
        for buffer in (replay, restored):
            torch.manual_seed(0)
            batches.append(sample(buffer, 100, n=3))
        assert [name for name, one, two in zip(dqn.Batch._fields, *batches) if not torch.equal(one, two)] == []
        assert batches[0].obs.min() > 0
        ids = np.arange(100, 106).reshape(2, 3)
        for buffer in (replay, restored):
            buffer.add(rollout(ids, ids, ids < 0, ids < 0))


def test_images_are_kept_as_bytes():
    replay = make_replay(6, 2, spaces.Box(0, 255, (3, 40, 36), np.uint8))
    image = torch.randint(256, (1, 2, 3, 40, 36), dtype=torch.uint8)
    zero = torch.zeros(1, 2)
    replay.add(dqn.Rollout(image, zero.long(), zero, image, zero.bool(), zero.bool()))
    assert replay.obs.dtype == replay.next_obs.dtype == torch.uint8
    assert torch.equal(replay.obs[:2], image[0])
    assert sample(replay, 5, n=3).obs.dtype == torch.uint8


def test_a_buffer_larger_than_the_memory_is_refused_and_a_large_one_is_not_saved_in_checkpoints(capsys):
    """A step takes 4 + 4 bytes for the observations here, 8 for the action, 4 for the reward, 2 for flags: 22."""
    with pytest.raises(
        dqn.InputError, match=r"--buffer-size 1000000000000: needs 20,489.1 GiB; this machine has .* per worker"
    ):
        make_replay(10**12)
    assert make_replay(1_000).state_dict().keys() >= {"obs", "count"}
    assert "not saved" not in capsys.readouterr().err
    large = make_replay(50_000_000)  # the system gives memory when it is first written to
    assert large.state_dict() == {}
    assert "replay buffer: 1,049.0 MiB; not saved in checkpoints" in capsys.readouterr().err


# Acting and learning


def train(tmp_path, **flags):
    return dqn.train(dqn.Args(run_dir=str(tmp_path / "run"), eval_episodes=1, **flags))


@pytest.mark.slow
def test_random_actions_are_drawn_for_each_environment(tmp_path, monkeypatch, spy):
    """The network says 0 all the time; a third of the random actions are 0 too."""
    monkeypatch.setattr(dqn.QNetwork, "act", lambda self, obs, greedy=False: np.zeros(len(obs), int))
    acts = spy(dqn.ReplayBuffer, "add", note=lambda replay, rollout: rollout.act)
    flags = {"epsilon_start": 0.3, "epsilon_end": 0.3, "learning_starts": 20_480, "total_timesteps": 20_480}
    train(tmp_path, env_id="Acrobot-v1", **flags)
    other = torch.cat(acts) > 0  # [steps, N]
    assert other.float().mean() == pytest.approx(0.3 * 2 / 3, abs=0.01)
    assert other.all(1).float().mean() < 0.01


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


def test_without_replay_and_target_network_it_is_online_q_learning(tmp_path, monkeypatch, spy):
    """The flags that the docstring names: each update uses the latest transition and the latest values."""
    words = re.search(r"online Q-learning.*? table: (.*?)\.", dqn.__doc__, re.DOTALL).group(1).split()

    def note(agent, optimizer, batch, lr, args):
        assert torch.equal(agent.network[0].weight, agent.target[0].weight)
        return agent.updates.item() + 1, batch.obs.clone()

    seen = spy(dqn, "td_step", note)
    monkeypatch.setattr(sys, "argv", ["dqn.py", *words, "--total-timesteps=200", f"--run-dir={tmp_path / 'run'}"])
    dqn.main()
    assert [count for count, _ in seen] == list(range(1, 201))
    assert len(torch.unique(torch.cat([obs for _, obs in seen]), dim=0)) == 200
