"""What ddpg.py and sac.py share: control of continuous actions from replayed transitions."""

import importlib
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.helpers import CONTINUOUS, evaluation, make_agent, vector

every_script = pytest.mark.parametrize("name", CONTINUOUS)


class Linear(gym.Env):
    """x' = x + u; the reward is -(x^2 + u^2), the episode is cut after 5 steps. The best action is -K x."""

    observation_space = spaces.Box(-10, 10, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x, {}

    def step(self, act):
        rew = -float(self.x[0] ** 2 + act[0] ** 2)
        self.x = self.x + act
        return self.x, rew, False, False, {}


class Room(gym.Env):
    """Two actions, each with bounds of its own; the environment keeps what reaches it."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(np.array([0, -2], np.float32), np.array([5, 1], np.float32))
    arrived = []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, act):
        self.arrived.append(act)
        return self.observation_space.sample(), 0.0, False, False, {}


gym.register("Linear-v0", Linear, max_episode_steps=5)
gym.register("Room-v0", Room, max_episode_steps=50)


def make(module, **flags):
    """Agent, its two optimizers (SGD) and flags."""
    agent, args = make_agent(module, learning_starts=0, **flags)
    actor = agent.policy_parameters() if hasattr(agent, "log_alpha") else agent.actor.parameters()
    return agent, torch.optim.SGD(actor, 0.01), torch.optim.SGD(agent.critics.parameters(), 0.01), args


def make_batch(module, size=5, act_size=1):
    """A batch of random observations in which random actions were taken for a reward of 1."""
    obs, next_obs, ones = torch.randn(size, 3), torch.randn(size, 3), torch.ones(size)
    return module.Batch(obs, torch.rand(size, act_size), ones, next_obs, ones < 0, 0.9 * ones)


class Replay(list):
    """A buffer that returns these batches."""

    def sample(self, args, agent):
        return self


def train(module, tmp_path, **flags):
    return module.train(module.Args(run_dir=str(tmp_path / "run"), **{"eval_episodes": 1} | flags))


# Targets


@every_script
def test_a_terminal_state_is_worth_nothing_and_a_time_limit_is_worth_its_value(name):
    """y = ret + gamma^n V(s'), with 2 steps of gamma 1/2; the first episode was cut, the second is over."""
    module = importlib.import_module(name)
    ret, discount, terminated = torch.tensor([3.0, 3.0]), torch.tensor([0.25, 0.25]), torch.tensor([False, True])
    assert module.td_target(ret, discount, terminated, torch.tensor([8.0, 8.0])).tolist() == [5, 3]


@every_script
def test_target_networks_move_by_tau(name):
    agent, *_ = make(importlib.import_module(name))
    parts = [(agent.critics, agent.target_critics)]
    parts += [(agent.actor, agent.target_actor)] if name == "ddpg" else []
    for network, target in parts:
        torch.testing.assert_close(vector(network.parameters()), vector(target.parameters()))
        for param in network.parameters():
            param.data += 1
    for moves in range(1, 4):
        agent.update_targets(0.25)
        for network, target in parts:
            gap = vector(network.parameters()) - vector(target.parameters())
            torch.testing.assert_close(gap, torch.full_like(gap, 0.75**moves))


@every_script
def test_the_targets_are_not_trained(name):
    agent, *_ = make(importlib.import_module(name))
    trained = {id(param) for part in (agent.actor, agent.critics) for param in part.parameters()}
    held = {key for key, param in agent.named_parameters() if not param.requires_grad}
    assert held == {key for key, _ in agent.named_parameters() if key.startswith("target_")}
    assert not trained & {id(param) for key, param in agent.named_parameters() if key in held}


# Steps


@every_script
def test_the_actors_step_leaves_the_critics_alone_and_adds_nothing_to_their_gradients(name):
    module = importlib.import_module(name)
    agent, actor_optimizer, critic_optimizer, args = make(module, **{"policy_delay": 1} if name == "ddpg" else {})
    before, gradients = vector(agent.actor.parameters()), []
    batch = make_batch(module)
    step = actor_optimizer.step

    def watched():
        gradients.append(torch.cat([param.grad.flatten() for param in agent.critics.parameters()]))
        step()

    actor_optimizer.step = watched
    torch.manual_seed(0)
    module.update(agent, actor_optimizer, critic_optimizer, Replay([batch]), args)
    assert not torch.equal(vector(agent.actor.parameters()), before)

    agent, _, critic_optimizer, args = make(module)
    torch.manual_seed(0)
    module.td_loss(agent, batch, args)[0].backward()
    torch.testing.assert_close(gradients[0], torch.cat([x.grad.flatten() for x in agent.critics.parameters()]))


@every_script
def test_the_critics_of_a_frozen_actor_are_trained(name):
    module = importlib.import_module(name)
    agent, *optimizers, args = make(module, **{"policy_delay": 1} if name == "ddpg" else {"tune_alpha": False})
    agent.actor.requires_grad_(False)
    before = [vector(part.parameters()) for part in (agent.actor, agent.critics, agent.target_critics)]
    module.update(agent, *optimizers, Replay([make_batch(module)]), args)
    actor, *others = [vector(part.parameters()) for part in (agent.actor, agent.critics, agent.target_critics)]
    assert torch.equal(actor, before[0])
    assert not any(torch.equal(*pair) for pair in zip(others, before[1:]))


@every_script
def test_both_critics_are_trained_toward_the_same_target(name):
    """Their outputs are constant: 1 and 5. The target is 1 + 0.9 times the smaller value 2 of the two targets, 2 and 4.

    Huber's loss counts errors beyond 1 as |e| - 1 / 2: 1.8 - 0.5 for the first and 2.2 - 0.5 for the second.
    """
    module = importlib.import_module(name)
    agent, *_, args = make(module, **{"alpha": 1e-30} if name == "sac" else {})
    for nets, values in (agent.critics, (1.0, 5.0)), (agent.target_critics, (2.0, 4.0)):
        for net, value in zip(nets, values):
            torch.nn.init.zeros_(net.layers[-1].weight)
            torch.nn.init.constant_(net.layers[-1].bias, value)
    batch = make_batch(module)
    loss, q = module.td_loss(agent, batch, args)
    assert loss.item() == pytest.approx(1.3 + 1.7)
    assert q.tolist() == [1] * 5
    loss.backward()
    assert [net.layers[-1].bias.grad.item() for net in agent.critics] == pytest.approx([-1, 1])


@every_script
def test_with_one_critic_its_target_alone_counts(name):
    module = importlib.import_module(name)
    agent, *_, args = make(module, twin_q=False)
    assert len(agent.critics) == len(agent.target_critics) == 1
    loss, q = module.td_loss(agent, make_batch(module), args)
    assert loss.ndim == 0 and q.shape == (5,)


@every_script
def test_gradients_are_clipped_to_max_grad_norm_and_reported_as_they_were(name):
    module = importlib.import_module(name)
    agent, *optimizers, args = make(module, max_grad_norm=1e-4, **{"policy_delay": 1} if name == "ddpg" else {})
    assert module.update(agent, *optimizers, Replay([make_batch(module)]), args)["grad_norm"] > 1e-2
    for part in agent.actor, agent.critics:
        norm = torch.cat([param.grad.flatten() for param in part.parameters()]).norm()
        assert norm.item() == pytest.approx(1e-4, rel=1e-2)


@every_script
def test_losses_are_means_over_the_gradient_steps_of_an_update(name):
    module = importlib.import_module(name)
    agent, actor_optimizer, critic_optimizer, args = make(module, **{"policy_delay": 1} if name == "ddpg" else {})
    for optimizer in actor_optimizer, critic_optimizer:
        optimizer.param_groups[0]["lr"] = 0.0  # nothing is learned
    batches = [make_batch(module, size) for size in (5, 7, 9)]

    def update(*replayed):
        return module.update(agent, actor_optimizer, critic_optimizer, Replay(replayed), args)

    torch.manual_seed(0)
    found = update(*batches)
    torch.manual_seed(0)
    parts = [update(batch) for batch in batches]
    assert found == {key: pytest.approx(np.mean([part[key] for part in parts])) for key in found}
    q = [agent.critics[0](batch.obs, batch.act).mean().item() for batch in batches]
    assert found["q_value"] == pytest.approx(np.mean(q))


@every_script
def test_nothing_is_learned_before_learning_starts(name):
    module = importlib.import_module(name)
    agent, *optimizers, args = make(module)
    args.learning_starts = 2
    before = vector(agent.parameters())
    found = module.update(agent, *optimizers, Replay([make_batch(module)]), args)
    assert set(found.values()) == {None}
    assert torch.equal(vector(agent.parameters()), before)
    assert found.keys() == module.update(agent, *optimizers, Replay([make_batch(module)] * 2), args).keys()


# Acting


def rollouts(module, warm_up, num_steps=16, count=1, **flags):
    """Rollouts of 2 environments of 2 actions, all from the same observations."""
    agent, args = make_agent(module, "Room-v0", num_envs=2, num_steps=num_steps, **flags)
    envs = module.make_envs(args)
    obs = envs.reset(seed=0)[0]
    steps = args if module.__name__ == "ddpg" else num_steps
    return [module.collect(agent, envs, obs, steps, warm_up)[0] for _ in range(count)]


@every_script
def test_random_actions_of_the_start_are_uniform_and_held_for_a_rollout(name):
    flags = {"noise_hold": 3} if name == "ddpg" else {}
    acts = [found.act for found in rollouts(importlib.import_module(name), True, 3, 400, **flags)]
    assert all(torch.equal(act, act[:1].expand(3, 2, 2)) for act in acts)
    columns = torch.stack([act[0].flatten() for act in acts]).T.numpy()
    for column in columns:
        assert np.histogram(column, 4, (-1, 1))[0] == pytest.approx([100] * 4, abs=36)
    assert np.abs(np.corrcoef(columns) - np.eye(4)).max() < 0.2  # between environments and components


@every_script
@pytest.mark.parametrize("warm_up", [True, False])
def test_actions_reach_the_environment_on_its_own_scale_and_are_stored_on_that_of_the_agent(name, warm_up):
    module = importlib.import_module(name)
    Room.arrived.clear()
    for number, found in enumerate(rollouts(module, warm_up, count=20)):
        arrived = torch.tensor(np.array(Room.arrived[32 * number : 32 * (number + 1)])).view(16, 2, 2)
        assert found.act.abs().max() <= 1
        torch.testing.assert_close(arrived, (found.act + 1) / 2 * torch.tensor([5, 3]) - torch.tensor([0, 2]))


@every_script
def test_the_next_observation_is_the_true_successor(name):
    module = importlib.import_module(name)
    (found,) = rollouts(module, True, 60)
    assert found.done.nonzero()[:, 0].tolist() == [49, 49] and not found.terminated.any()
    following = found.obs[1:][~found.done[:-1]]
    assert torch.equal(following, found.next_obs[:-1][~found.done[:-1]])
    assert (found.obs[50] != found.next_obs[49]).all()


@every_script
def test_greedy_actions_draw_no_random_number(name):
    agent, _ = make_agent(importlib.import_module(name), "ProbeMatrix-v0")
    obs, state = torch.randn(4, *agent.obs_norm.mean.shape).numpy(), torch.get_rng_state()
    act = agent.act(obs, greedy=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert act.shape == (4, 2, 3) and np.array_equal(act, agent.act(obs, greedy=True))


@every_script
def test_a_policy_needs_bounds(name):
    module = importlib.import_module(name)
    for space in "Unbounded", "OneBound":
        with pytest.raises(module.InputError, match=f"--env-id Probe{space}-v0.*bounds"):
            make_agent(module, f"Probe{space}-v0")


@every_script
def test_the_buffer_must_hold_a_rollout_and_learning_must_start(name, monkeypatch):
    """Rollouts have 8 steps of 8 environments; the buffer holds multiples of 8."""
    module = importlib.import_module(name)
    fits = {"num_envs": 8, "num_steps": 8, "buffer_size": 104, "learning_starts": 104, "total_timesteps": 128}
    module.Args(**fits | {"num_steps": 13})
    for wrong in {"buffer_size": 103}, {"num_steps": 14}, {"total_timesteps": 127}, {}:
        monkeypatch.setattr(module, "WORKERS", 1 if wrong else 2)  # two collect 64 steps each
        with pytest.raises(module.InputError, match="--buffer-size|--learning-starts"):
            module.Args(**fits | wrong)


@every_script
@pytest.mark.parametrize(("rew", "end", "ret", "steps"), [([1, 2, 4], [0, 0, 0], 3, 3), ([1, 2, 4], [0, 1, 0], 2, 2)])
def test_the_n_step_return_ends_with_the_episode(name, rew, end, ret, steps):
    """With gamma 1/2: 1 + 2/2 + 4/4."""
    found = importlib.import_module(name).n_step_return(np.array([rew]), np.array([end], bool), 0.5)
    assert [x.tolist() for x in found] == [[ret], [steps]]


# Runs

FOUR = {
    "num_envs": 4,
    "num_steps": 8,
    "batch_size": 8,
    "hidden_sizes": (8,),
    "eval_episodes": 0,
}  # 32 steps each


@every_script
def test_actions_are_random_until_learning_starts(tmp_path, spy, name):
    """It starts with the third rollout, when 96 transitions are stored; the actions of the fourth are the agent's."""
    module = importlib.import_module(name)
    warm_ups = spy(module, "collect", note=lambda *args: args[-1])
    learned = spy(module, "update", results=True)
    train(module, tmp_path, learning_starts=96, total_timesteps=160, **FOUR)
    assert warm_ups == [True, True, True, False, False]
    assert [metrics["td_loss"] is None for metrics in learned] == [True, True, False, False, False]


@every_script
def test_a_run_resumed_without_its_buffer_fills_a_new_one_by_the_actions_of_the_agent(tmp_path, spy, name, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "MAX_SAVED_BYTES", 0)
    flags = FOUR | {"learning_starts": 64}
    train(module, tmp_path, total_timesteps=96, **flags)
    warm_ups = spy(module, "collect", note=lambda *args: args[-1])
    learned = spy(module, "update", results=True)
    module.train(module.Args(resume=str(tmp_path / "run/checkpoint.pt"), total_timesteps=192))
    assert warm_ups == [False] * 3
    assert [metrics["td_loss"] is None for metrics in learned] == [True, False, False]


@every_script
@pytest.mark.parametrize(("anneal_lr", "fractions"), [(True, [3 / 4, 2 / 4, 1 / 4]), (False, [1])])
def test_both_learning_rates_fall_linearly(tmp_path, spy, name, anneal_lr, fractions):
    module, steps = importlib.import_module(name), []
    note = lambda optimizer: (id(optimizer), optimizer.param_groups[0]["lr"])  # noqa: E731
    steps = spy(torch.optim.Adam, "step", note)
    flags = {"learning_starts": 64, "total_timesteps": 128, "learning_rate": 0.01, "anneal_lr": anneal_lr}
    train(module, tmp_path, **FOUR | flags)
    assert len({optimizer for optimizer, _ in steps}) == 2
    for number in {optimizer for optimizer, _ in steps}:
        rates = [rate for optimizer, rate in steps if optimizer == number]
        assert list(dict.fromkeys(rates)) == pytest.approx([0.01 * fraction for fraction in fractions])


@every_script
def test_statistics_are_those_of_all_that_was_seen_and_all_of_it_is_stored(tmp_path, spy, name):
    module = importlib.import_module(name)
    rollouts, added = spy(module, "collect", results=True), spy(module.ReplayBuffer, "add", note=lambda *args: args)
    agent = train(module, tmp_path, learning_starts=64, total_timesteps=128, gamma=0.5, **FOUR)
    obs, norm = torch.cat([found.obs.flatten(0, 1) for found, _ in rollouts]), module.RewardNorm((), True)
    torch.testing.assert_close(agent.obs_norm.mean, obs.mean(0))
    for found, _ in rollouts:
        norm.update(found.rew, found.done, 0.5)
    torch.testing.assert_close(agent.reward_norm.state_dict(), norm.state_dict())
    assert [stored is found for (_, stored), (found, _) in zip(added, rollouts)] == [True] * 4
    for column, part in zip(added[0][0].columns, zip(*(found for found, _ in rollouts))):
        np.testing.assert_array_equal(column[:128], torch.cat(part).flatten(0, 1))


# Learning

PROBES = [
    ("ProbeContinuousRewardFromObservation-v0", {}, {(1, 0): 1, (-1, 0): -1}, 0.1),
    ("ProbeContinuousRewardOneStepLate-v0", {"gamma": 0.5}, {(1, 0): 0.5, (1, 1): 1, (-1, 0): -0.5, (-1, 1): -1}, 0.1),
    (
        "ProbeContinuousTimeLimit-v0",
        {"gamma": 0.9, "tau": 0.05},
        {(1, 0): 10},
        1,
    ),  # 1 / (1 - gamma)
]


@pytest.mark.slow
@every_script
@pytest.mark.parametrize(("env_id", "flags", "expected", "error"), PROBES)
def test_values_are_those_of_the_probes(tmp_path, name, env_id, flags, expected, error):
    """In units of reward; the entropy has a part in sac.py's, about 0.02 standard deviations a nat."""
    module = importlib.import_module(name)
    agent = train(module, tmp_path, env_id=env_id, total_timesteps=8_192, **flags)
    obs = torch.tensor(list(expected), dtype=torch.float32)
    q = agent.q(obs, torch.zeros(len(obs), 1)) * agent.reward_norm.std
    assert q.tolist() == pytest.approx(list(expected.values()), abs=error)


@pytest.mark.slow
@every_script
def test_actions_find_their_place_between_bounds(tmp_path, name):
    train(importlib.import_module(name), tmp_path, env_id="ProbeContinuous-v0", total_timesteps=8_192)
    assert evaluation(tmp_path / "run")["mean"] == pytest.approx(0, abs=0.1)


@pytest.mark.slow
@every_script
def test_actions_depend_on_the_image(tmp_path, name):
    """After 400 gradient steps on few images the critics are not yet curved in the action, but its sign is right."""
    images = {"batch_size": 16, "total_timesteps": 2_560, "learning_starts": 1_000, "learning_rate": 1e-3}
    agent = train(importlib.import_module(name), tmp_path, env_id="ProbeContinuousImage-v0", **images)
    both = np.zeros((2, 3, 40, 36), np.uint8)
    both[0, ..., 18:] = both[1, ..., :18] = 200  # right, then left
    right, left = agent.act(both, greedy=True)[:, 0]
    assert right > 0.25 and left < -0.25


@pytest.mark.slow
@every_script
def test_the_gain_of_a_linear_quadratic_problem_is_learned(tmp_path, name):
    """K = 0.588 for gamma 0.9: the value -P x^2 has P = 1 + gamma P / (1 + gamma P), K = gamma P / (1 + gamma P)."""
    module, gamma, P = importlib.import_module(name), 0.9, 1.0
    for _ in range(100):
        P = 1 + gamma * P / (1 + gamma * P)
    flags = {"gamma": gamma, "hidden_sizes": (32, 32), "batch_size": 64, "num_steps": 5, "gradient_steps": 20}
    flags |= {"learning_rate": 3e-3, "tau": 0.02, "n_step": 1, "total_timesteps": 8_000}
    flags |= {"num_envs": 8, "learning_starts": 1_000}
    agent = train(module, tmp_path, env_id="Linear-v0", **flags)
    x = np.linspace(-0.8, 0.8, 33, dtype=np.float32)[:, None]
    gain = gamma * P / (1 + gamma * P)
    assert gain == pytest.approx(0.588403, abs=1e-6)
    assert np.abs(agent.act(x, greedy=True) + gain * x).max() < 0.2


@pytest.mark.slow
@every_script
def test_no_return_continues_over_a_checkpoint_which_resets_the_environments(tmp_path, spy, name):
    """Episodes of 10 steps, a checkpoint after 16 steps of each environment: ends after steps 10, 16, 16 + 10."""
    module = importlib.import_module(name)
    buffers = spy(module.ReplayBuffer, "add", note=lambda replay, *_: replay)
    flags = {"total_timesteps": 256, "checkpoint_every": 16, "learning_starts": 64, "gradient_steps": 1}
    flags["num_envs"] = 8
    train(module, tmp_path, env_id="ProbeContinuousTimeLimit-v0", **flags)
    for env in range(8):
        assert (np.flatnonzero(buffers[0].columns.done[env : 8 * 32 : 8]) + 1).tolist() == [10, 16, 26]


@every_script
def test_an_environment_may_get_arguments(tmp_path, name):
    module = importlib.import_module(name)
    agent, _ = make_agent(module, "Pendulum-v1", env_kwargs=json.dumps({"g": 9.81}))
    assert agent.act_shape == (1,)
