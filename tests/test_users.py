"""What users of such scripts ran into: other people's environments, sweeps, resuming, turning things off.

All is in the text that the scripts share, so ppo.py stands for all.
"""

import json
import socket
import sys
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ppo
from tests.environments import RewardFromBoth
from tests.helpers import ROOT, SHORT, TINY, command, evaluation, make_agent, metrics, run
from tests.helpers import train_tiny as train


class Flags(RewardFromBoth):
    """The sign among bits; dtype uint8, but no image."""

    observation_space = spaces.Box(0, 1, (8,), np.uint8)

    def observe(self):
        bits = self.np_random.integers(0, 2, 8).astype(np.uint8)
        bits[3] = self.sign > 0
        return bits


class Infos(RewardFromBoth):
    """The infos of one step cannot be merged with those of another."""

    def step(self, act):
        obs, rew, terminated, truncated, _ = super().step(act)
        moves = np.arange(self.np_random.integers(0, 4))
        return obs, rew, terminated, truncated, {"legal": moves if self.sign > 0 else None, "why": {"x": [self.t]}}


class Mission(gym.Space):
    """A space that Gymnasium does not know."""


class Port(RewardFromBoth):
    """Only one can exist at a time, as with a robot or a simulator on a fixed port."""

    def __init__(self):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 47_011))

    def close(self):
        self.socket.close()


class Tiny(RewardFromBoth):
    def reward(self, act):
        return 1e-5


class Sentinel(RewardFromBoth):
    """1e20 for nothing in sight."""

    def observe(self):
        return np.array([self.sign, 1e20], np.float32)


class Frames(RewardFromBoth):
    def __init__(self, shape):
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def observe(self):
        return np.full(self.observation_space.shape, 200 * (self.sign > 0), np.uint8)


for env in (Flags, Infos, Port, Tiny, Sentinel, Frames):
    gym.register(f"Users{env.__name__}-v0", env)
space = spaces.Dict(x=spaces.Box(0, 1, (2,)), mission=Mission())
gym.register("UsersMission-v0", type("Own", (RewardFromBoth,), {"observation_space": space}))


# Environments


def test_bytes_that_are_no_image_are_scaled_like_all_numbers():
    agent, _ = make_agent(ppo, "UsersFlags-v0")
    agent.obs_norm.update(torch.tensor([[0] * 8, [1] * 8], dtype=torch.uint8))
    assert agent.obs_norm(torch.ones(1, 8, dtype=torch.uint8)).tolist()[0] == pytest.approx([1] * 8, abs=1e-4)


@pytest.mark.parametrize("async_envs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_infos_need_not_fit_together(tmp_path, async_envs):
    train(tmp_path, env_id="UsersInfos-v0", async_envs=async_envs)


def test_a_space_that_gymnasium_does_not_know_is_refused():
    with pytest.raises(ppo.InputError, match="--env-id UsersMission-v0"):
        ppo.make_env("UsersMission-v0")


@pytest.mark.parametrize(
    ("shape", "becomes", "warns"),
    [
        ((84, 84), (1, 84, 84), False),
        ((4, 64, 64, 3), (4 * 64 * 64 * 3,), True),
        ((7, 7, 3), (147,), False),
    ],
)
def test_a_gray_image_gets_a_channel_and_many_numbers_get_a_warning(recwarn, shape, becomes, warns):
    env = ppo.make_env("UsersFrames-v0", json.dumps({"shape": shape}))
    assert env.observation_space.shape == becomes == env.reset(seed=1)[0].shape
    assert any("numbers" in str(warning.message) for warning in recwarn) == warns


def test_the_evaluation_environment_is_made_when_those_of_training_are_closed(tmp_path):
    train(tmp_path, env_id="UsersPort-v0", num_envs=1, num_steps=32)
    assert evaluation(tmp_path)["episodes"] == 1


def test_arguments_of_the_environment_are_json(tmp_path):
    train(tmp_path, env_id="FrozenLake-v1", env_kwargs='{"map_name": "8x8", "is_slippery": false}')
    assert ppo.make_env("FrozenLake-v1", '{"map_name": "8x8"}').observation_space.shape == (64,)
    for kwargs in "{", "[1]", '{"size": 8}':
        with pytest.raises(ppo.InputError, match="--env-kwargs"):
            ppo.make_env("FrozenLake-v1", kwargs)


@pytest.mark.slow
def test_many_environments_finish_their_episodes_because_checkpoints_do_not_end_them(tmp_path):
    """1,024 environments of episodes up to 500 steps; none is cut by a checkpoint after 100,000 steps of all."""
    seen = {"num_envs": 1_024, "num_steps": 16, "total_timesteps": 1_024 * 16 * 12, "update_epochs": 1}
    ppo.train(ppo.Args(run_dir=str(tmp_path), eval_episodes=0, **seen))
    assert ppo.load(tmp_path / "checkpoint.pt")["counters"][0] == seen["total_timesteps"]
    assert max(float(row["episodic_length"]) for row in metrics(tmp_path)[7:]) > 16 * 6  # beyond 98,304 steps of all


# Turning things off


def test_without_normalization_the_agent_sees_the_numbers_as_they_are():
    agent, _ = make_agent(ppo, norm_obs=False, norm_reward=False)
    x, rew, done = torch.full((2, 4), 1e3), torch.full((3, 2), 50.0), torch.zeros(3, 2, dtype=torch.bool)
    agent.obs_norm.update(x)
    agent.reward_norm.update(rew, done, 0.9)
    assert torch.equal(agent.obs_norm(x), x)
    assert torch.equal(agent.reward_norm(rew), rew)


def test_a_number_too_large_for_the_statistics_is_named_as_an_observation(tmp_path):
    with pytest.raises(FloatingPointError, match="observations"):
        train(tmp_path, env_id="UsersSentinel-v0")


def test_no_evaluation_if_no_episodes_are_asked_for(tmp_path, capsys):
    train(tmp_path, eval_episodes=0)
    assert not (tmp_path / "eval.json").exists()
    assert "eval:" not in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["max_grad_norm", "learning_rate"])
def test_zero_is_refused_where_it_would_only_stop_learning(flag):
    with pytest.raises(ppo.InputError, match=flag.replace("_", "-")):
        ppo.Args(**{flag: 0.0})


# Folders and resuming


def test_two_runs_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ppo.time, "strftime", lambda form: "20260101-000000")
    for _ in range(2):
        ppo.train(ppo.Args(**TINY["ppo"]))
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_start_that_failed_does_not_block_the_folder(tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(ppo.Run, "reset", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path)
    train(tmp_path)
    with pytest.raises(ppo.InputError, match="contains a run"):
        train(tmp_path)


def test_a_run_resumed_from_python_has_the_flags_of_its_checkpoint(tmp_path):
    train(tmp_path / "a", gamma=0.9, num_envs=4)
    args = ppo.Args(resume=str(tmp_path / "a/checkpoint.pt"), run_dir=str(tmp_path / "b"), total_timesteps=640)
    ppo.train(args)
    before, after = (json.loads((tmp_path / name / "args.json").read_text()) for name in "ab")
    assert {name for name in before if before[name] != after[name]} == {"resume", "run_dir", "total_timesteps"}
    assert asdict(args)["total_timesteps"] == int(metrics(tmp_path / "b")[-1]["global_step"]) == 640


def test_training_continues_on_another_environment_with_the_same_spaces(tmp_path):
    train(tmp_path / "a", env_id="CartPole-v0")
    again = {"resume": str(tmp_path / "a/checkpoint.pt"), "run_dir": str(tmp_path / "b")}
    longer = ppo.train(ppo.Args(env_id="CartPole-v1", total_timesteps=640, **again))
    assert longer.obs_norm.count == 640
    with pytest.raises(ppo.InputError, match="agent does not fit"):
        ppo.train(ppo.Args(env_id="Acrobot-v1", total_timesteps=640, **again | {"run_dir": str(tmp_path / "c")}))


# What is shown


def test_small_returns_are_shown_with_digits(tmp_path, capsys):
    train(tmp_path, env_id="UsersTiny-v0")
    assert "eval: 1e-05 +- " in capsys.readouterr().out


@pytest.mark.slow
def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path):
    done = run(*command(**SHORT, run_dir="run"), cwd=tmp_path)
    assert "/1.28k" in done.stderr
    assert "evaluation" in done.stderr


def test_the_loop_in_the_readme_acts_in_the_environments_own_units():
    """make_env rescales actions: the agent's 1 is Pendulum's torque of 2."""
    agent, _ = make_agent(ppo, "Pendulum-v1")
    env = ppo.make_env("Pendulum-v1")
    obs, _ = env.reset(seed=1)
    env.step(np.ones_like(agent.act(obs[None], greedy=True)[0]))
    assert env.unwrapped.last_u == 2


MAIN = """
import multiprocessing, gymnasium, ppo

class Own(gymnasium.Wrapper):
    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    gymnasium.register("Own-v0", Own)
    ppo.train(ppo.Args(env_id="Own-v0", async_envs=True, run_dir="run", **FLAGS))
"""


@pytest.mark.slow
def test_new_processes_know_an_environment_that_only_the_main_module_registers(tmp_path):
    (tmp_path / "main.py").write_text(MAIN.replace("FLAGS", repr(TINY["ppo"])))
    done = run(sys.executable, "main.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
