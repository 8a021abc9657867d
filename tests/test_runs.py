"""Runs: what they leave, how they stop and go on, what they refuse; several workers; spaces.

Where the scripts share a text, which test_house.py compares, one stands for all. tests/campaigns goes further.
"""

import csv
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import cache

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

import dqn
import ppo
import rlhf
from tests import helpers
from tests.environments import ACTION_SPACES
from tests.helpers import CONTINUOUS, ROOT, SCRIPTS, SHORT, TINY, TINY_RLHF, command, evaluation, load, metrics
from tests.helpers import train_tiny as train

TABLES = {"bandit": {"runs": 3, "steps": 10, "agents": "greedy"}}
TABLES |= {"tabular": {"runs": 2, "steps": 100, "agents": "sarsa"}}
ALL = TINY | TABLES | {"rlhf": TINY_RLHF}  # the shortest run of each script


def saved_step(folder):
    return load(folder)["counters"][0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(variant): the folder of an undisturbed run; each is trained once."""

    @cache
    def make(variant="ppo"):
        folder = tmp_path_factory.mktemp("whole") / "run"
        train(folder, variant)
        return folder

    return make


# What a run leaves


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_script_works_alone_in_an_empty_folder(tmp_path, name):
    """Its results go to a folder in runs/; --track, which chapters do not have, works offline, without an account."""
    copy, track = shutil.copy(ROOT / f"{name}.py", tmp_path / "mine.py"), name == "ppo"
    env = {"PYTHONPATH": "", "WANDB_MODE": "offline", "WANDB_API_KEY": ""}
    argv = command(*["--track"] * track, script=copy, **ALL[name])
    done = helpers.run(*argv, cwd=tmp_path, **env)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"runs/{folder.name}" in done.stdout.splitlines()[-1]
    assert bool(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == track


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_leaves_its_flags_its_metrics_a_checkpoint_and_an_evaluation(whole, name):
    folder = whole(name)
    assert {path.name for path in folder.iterdir()} == {"args.json", "metrics.csv", "checkpoint.pt", "eval.json"}
    assert json.loads((folder / "args.json").read_text())["num_envs"] == 2
    rows = metrics(folder)
    assert [int(row["global_step"]) for row in rows] == [32 * i for i in range(1, 11)]
    replay = {"dqn": {"epsilon"}, "ddpg": {"policy_loss"}, "sac": {"policy_loss", "entropy", "alpha"}}
    losses = {"td_loss", "q_value"} | replay[name] if name in replay else {"policy_loss", "value_loss", "entropy"}
    assert {"episodic_length", "grad_norm"} | losses <= rows[0].keys()
    assert float(rows[-1]["episodic_return"]) == pytest.approx(np.mean(load(folder)["counters"][2], 0)[0])
    result = evaluation(folder)
    assert result.keys() == {"mean", "std", "episodes", "returns", "global_step", "seconds"}
    assert (result["episodes"], result["global_step"], result["mean"]) == (1, 320, np.mean(result["returns"]))


def test_no_seed_of_an_environment_is_used_twice(tmp_path, spy):
    """Not by two environments, not after a checkpoint, not by the evaluation, not in a run with the next seed."""
    seeds = spy(CartPoleEnv, "reset", note=lambda self, seed=None, options=None: seed)
    for seed in (1, 2):
        train(tmp_path / str(seed), seed=seed, eval_episodes=3)
    used = [seed for seed in seeds if seed is not None]  # None: the next episode of the same environment
    assert len(used) == 2 * (3 * 2 + 3)  # two runs; three resets of two environments, three episodes of evaluation
    assert len(set(used)) == len(used)


@pytest.mark.slow
def test_an_agent_can_be_watched_in_a_window_and_on_film(main, monkeypatch, tmp_path):
    pytest.importorskip("moviepy")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    train(tmp_path)
    window, film = (main("ppo", flag, resume=tmp_path / "checkpoint.pt") for flag in ("--render", "--capture-video"))
    assert window[1] == film[1]  # the same evaluation
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert video.stat().st_size > 1_000


def test_a_film_that_cannot_be_made_costs_no_training(main, monkeypatch, tmp_path):
    """One sentence and exit status 2; the agent is in the checkpoint."""
    monkeypatch.setitem(sys.modules, "moviepy", None)
    status, _, text = main("ppo", "--capture-video", **TINY["ppo"], run_dir=tmp_path)
    assert status == 2 and "ppo.py: MoviePy is not installed" in text
    assert saved_step(tmp_path) == 320


# Stopped and resumed


class Killed(BaseException):
    """Ends a run at once, without the checkpoint that Ctrl-C leaves."""


REPORTS = {name: [3, 6, 1] for name in [*SCRIPTS, "ppo penalty"]} | {"vpg total-return": [1, 3, 1]}


@pytest.mark.parametrize("variant", REPORTS)
def test_a_run_killed_and_resumed_ends_bit_for_bit_like_one_never_interrupted(tmp_path, monkeypatch, whole, variant):
    """Killed three times, when it has written so many rows since its start: those after the checkpoint come again.

    Before a checkpoint beyond step 0, after one, and with less in the file than before.
    """
    script = importlib.import_module(variant.split()[0])
    report, left, resume = script.Run.report, [], ""

    def stop(*args, **numbers):
        report(*args, **numbers)
        left.pop()
        if not left:
            raise Killed

    monkeypatch.setattr(script.Run, "report", stop)
    for number in REPORTS[variant]:
        left[:] = range(number)
        with pytest.raises(Killed):
            train(tmp_path, variant, resume=resume)
        resume = str(tmp_path / "checkpoint.pt")
    monkeypatch.undo()
    train(tmp_path, variant, resume=resume)
    helpers.assert_same_end(tmp_path, whole(variant))


def test_the_flags_of_a_resumed_run_are_those_of_its_checkpoint_unless_given_again(main, tmp_path):
    """A finished run goes on with a larger budget, into another folder."""
    train(tmp_path / "1", seed=3)
    assert main("ppo", resume=tmp_path / "1/checkpoint.pt", run_dir=tmp_path / "2", total_timesteps=384)[0] == 0
    args = json.loads((tmp_path / "2/args.json").read_text())
    assert (args["seed"], args["num_envs"], args["total_timesteps"]) == (3, 2, 384)
    assert [int(row["global_step"]) for row in metrics(tmp_path / "2")] == [352, 384]
    assert saved_step(tmp_path / "2") == evaluation(tmp_path / "2")["global_step"] == 384


@pytest.mark.parametrize(("name", "flags"), [("ppo", {"objective": "penalty"}), ("vpg", {"form": "reward-to-go"})])
def test_a_finished_run_is_only_evaluated_again_or_goes_on_with_another_objective(tmp_path, whole, name, flags):
    shutil.copytree(whole(name), tmp_path, dirs_exist_ok=True)
    resume = str(tmp_path / "checkpoint.pt")
    train(tmp_path, name, resume=resume)
    helpers.assert_same_end(tmp_path, whole(name))
    train(tmp_path, name, resume=resume, total_timesteps=640, **flags)
    with open(tmp_path / "metrics.csv", newline="") as file:
        heading, *rows = csv.reader(file)
    assert len(rows) > 10
    assert {len(row) for row in rows} == {len(heading)}


def test_a_replay_buffer_too_large_for_checkpoints_is_filled_again(tmp_path, monkeypatch):
    """The resumed run learns as soon as it has collected 50 transitions."""
    monkeypatch.setattr(dqn, "MAX_SAVED_BYTES", 0)
    train(tmp_path / "1", "dqn")
    assert load(tmp_path / "1")["replay"] == {}
    train(tmp_path / "2", "dqn", resume=str(tmp_path / "1/checkpoint.pt"), total_timesteps=480)
    assert [row["td_loss"] == "" for row in metrics(tmp_path / "2")] == [True, False, False, False, False]


def start_process(folder, **flags):
    """A run with environments in processes, from the command line; returned when it has written a few rows."""
    process = subprocess.Popen(
        command("--async-envs", run_dir="out", **SHORT | flags),
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    helpers.wait_for(lambda: (folder / "out/metrics.csv").exists() and len(metrics(folder / "out")) > 14)
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_continue_and_exits_with_130(tmp_path, main):
    process, _ = start_process(tmp_path, total_timesteps=1_000_000)
    os.killpg(process.pid, signal.SIGINT)  # to the environments' processes too, as from a terminal
    text = process.communicate(timeout=120)[1]
    assert process.returncode == 130, text
    assert "stopped; continue with --resume out/checkpoint.pt" in text
    step = saved_step(tmp_path / "out")
    assert step == int(metrics(tmp_path / "out")[-1]["global_step"])
    assert main("ppo", resume=tmp_path / "out/checkpoint.pt", total_timesteps=step + 256)[0] == 0
    assert int(metrics(tmp_path / "out")[-1]["global_step"]) == step + 256


@pytest.mark.slow
def test_kill_9_leaves_no_process_and_a_run_that_goes_on_as_if_it_had_not_been_killed(tmp_path):
    """Nor do environments in processes change anything: the undisturbed run has them in one."""
    flags = {"total_timesteps": 6_400, "checkpoint_every": 375}
    process, children = start_process(tmp_path, **flags)
    assert len(children) >= SHORT["num_envs"]
    process.kill()
    process.communicate()
    assert 0 < saved_step(tmp_path / "out") < 6_400
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    resume = str(tmp_path / "out/checkpoint.pt")
    resumed = helpers.train(tmp_path / "out", **flags, async_envs=True, resume=resume)
    helpers.assert_same_agent(resumed, helpers.train(tmp_path / "whole", **flags))
    assert metrics(tmp_path / "out") == metrics(tmp_path / "whole")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_on_cuda_can_be_resumed_there_and_evaluated_on_a_cpu(tmp_path, name):
    agent, resume = train(tmp_path, name, device="cuda"), str(tmp_path / "checkpoint.pt")
    again = train(tmp_path / "longer", name, device="cuda", resume=resume, total_timesteps=640)
    assert {x.device.type for x in [*agent.state_dict().values(), *again.state_dict().values()]} == {"cuda"}
    helpers.assert_same_agent(agent.cpu(), train(tmp_path / "cpu", name, resume=resume))


# Numbers that are not finite, and other errors of environments


@pytest.mark.parametrize(
    ("name", "flags", "wrong", "step"),
    [
        ("vpg", {"env_id": "ProbeNanObservation-v0"}, "observations", 96),  # from the 40th step on
        ("a2c", {"env_id": "ProbeInfiniteObservation-v0"}, "observations", 96),
        ("trpo", {"env_id": "ProbeNanReward-v0"}, "rewards", 96),
        ("ppo", {"env_id": "ProbeInfiniteReward-v0"}, "rewards", 96),
        ("dqn", {"env_id": "ProbeNanLastObservation-v0"}, "td_loss", 96),
        ("ddpg", {"learning_rate": 1e30}, "td_loss", 64),
        ("sac", {"learning_rate": 1e30}, "td_loss", 64),
        ("ppo", {"learning_rate": 1e30}, "policy_loss", 32),
    ],
)
def test_a_number_that_is_not_finite_is_named_and_never_saved(main, tmp_path, name, flags, wrong, step):
    """One sentence and exit status 1; the checkpoint is the last good one."""
    status, _, text = main(name, **TINY[name] | {"checkpoint_every": 16, "run_dir": tmp_path} | flags)
    assert status == 1
    names, rest = re.search(rf"{name}.py: (\[.*\]) not finite at step {step}; (.*)", text).groups()
    assert f"'{wrong}'" in names and rest.endswith(f"last good checkpoint: {tmp_path}/checkpoint.pt")
    assert saved_step(tmp_path) == step - 32
    numbers = [x for x in helpers.flatten(load(tmp_path)).values() if isinstance(x, torch.Tensor)]
    assert all(x.isfinite().all() for x in numbers)


def test_an_error_of_the_environment_keeps_its_traceback(main, spy, tmp_path):
    closed = spy(gym.vector.SyncVectorEnv, "close")
    with pytest.raises(ZeroDivisionError, match="the environment's own words"):
        main("ppo", **TINY["ppo"] | {"env_id": "ProbeRaises-v0", "run_dir": tmp_path, "checkpoint_every": 10_000})
    assert saved_step(tmp_path) == 0  # that of the start
    assert len(closed) == 1


# Refusals

DEEP, HUGE = "vpg a2c trpo ppo dqn ddpg sac", 10**20
WRONG = [  # flags that are refused one at a time, in a sentence that names the flag
    (f"{DEEP} bandit tabular rlhf", "--colour=red --seed --seed=one --seed=1.5"),
    (f"{DEEP} rlhf", "--resume=nowhere.pt --resume=. --resume=text --resume=half.pt --resume=list.pt --resume=bomb.pt"),
    (f"{DEEP} rlhf", "--resume=other.pt --run-dir=run --device=toaster --device=cuda:99"),
    (DEEP, "--checkpoint-every=0"),
    (f"{DEEP} rlhf", "--learning-rate=-0.1 --learning-rate=nan --max-grad-norm=-1"),
    (DEEP, "--max-grad-norm=0 --learning-rate=0 --num-envs=0 --num-steps=-1 --total-timesteps=1 --gamma=0,9"),
    (DEEP, "--env-id= --env-id=nowhere:X-v0 --env-id=Nope-v0 --env-kwargs={ --hidden-sizes=64,64"),
    ("vpg a2c trpo ppo", "--env-id=ProbeIntegers-v0 --env-id=ProbeGraphObservations-v0"),
    ("vpg", "--form=best --value-epochs=0"),
    ("a2c", "--critic-learning-rate=0"),
    ("trpo", "--max-kl=0 --cg-iters=0 --line-search-steps=0 --value-epochs=0"),
    ("ppo", "--num-minibatches=0 --num-minibatches=7 --num-minibatches=2048 --update-epochs=0 --objective=both"),
    ("dqn", "--batch-size=0 --gradient-steps=0 --n-step=0 --tau=0 --target-interval=0 --buffer-size=999"),
    ("ddpg sac", "--batch-size=0 --gradient-steps=0 --n-step=0 --tau=0 --buffer-size=999"),
    ("ddpg", "--policy-delay=0 --noise-hold=0"),
    ("sac", "--alpha=0"),
    ("bandit tabular rlhf", "--seed=-1"),
    ("bandit tabular", f"--runs=0 --runs={HUGE} --steps=-1 --agents= --figure=9.9 --run-dir=text --run-dir=results"),
    ("bandit", f"--num-arms=0 --num-arms={10**8} --mean=nan --agents --agents=greedy:initial=NaN --agents=ucb:c"),
    ("bandit", "--agents=nobody --agents=ucb:c=Infinity --agents=ucb:c=-1 --agents=thompson:prior_std=0"),
    ("tabular", "--gamma=1.5 --gamma=nan --agents=sarsa:alpha=2 --agents=batch-td --bins=3"),
    ("tabular", "--agents=nobody --env-id=Nowhere-v0 --env-kwargs={ --env-kwargs=[1]"),
    ("rlhf", "--learning-rate=0"),
    ("rlhf", "--kl-coef=-1 --num-ranked=1 --num-comparisons=1 --num-heads=5 --judge=nothing --judge=os:name"),
]
REFUSED = [  # flags that are refused together, and what the sentence must say
    (f"{DEEP} bandit tabular rlhf", "--run-dir=text/new", "text/new"),
    (DEEP, "--env-id=ProbeBinaryActions-v0", "--env-id MultiBinary"),
    (DEEP, f"--num-steps={HUGE}", "--total-timesteps rollout"),
    (DEEP, "--render --capture-video", "--render --capture-video"),
    ("vpg a2c trpo", "--num-steps=1 --num-envs=1", "--num-steps"),
    ("ppo", "--resume=run/checkpoint.pt --run-dir=out --hidden-sizes=64", "--resume agent"),
    ("dqn", "--env-id=Pendulum-v1", "--env-id Box"),
    ("ddpg sac", "--env-id=CartPole-v1", "--env-id Discrete"),
    ("ddpg sac", "--env-id=ProbeHalfBounded-v0", "--env-id ProbeHalfBounded-v0 bounds"),
    ("dqn ddpg sac", "--learning-starts=1000 --total-timesteps=1000", "--learning-starts"),  # 960 are collected
    ("bandit", "--figure=2.4 --num-arms=3", "--figure --num-arms"),
    ("tabular", "--figure=6.6 --gamma=0.9", "--figure --gamma"),
    ("tabular", "--agents=value-iteration --env-id=Blackjack-v1", "--agents model"),
    ("tabular", "--env-id=CartPole-v1 --bins 3 3 --low 0 0 --high 1 1", "--bins 4"),
    ("rlhf", "--group-size=3 --algorithm=grpo", "--group-size --batch-size"),
    ("rlhf", "--prompt='how was the soup ?'", "--prompt --resume"),
    ("rlhf", "--kl-target=3 --kl-coef=0", "--kl-target --kl-coef"),
    ("rlhf", "--resume=rlhf.pt --algorithm=rloo", "--resume --algorithm"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whole):
    """Files that cannot be used, a run of ppo.py, the results of a table; other.pt: of another version."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "text").write_text("kept")
    (folder / "results").mkdir()
    (folder / "results/table.csv").touch()
    shutil.copytree(whole(), folder / "run")
    saved = load(folder / "run")
    data = (folder / "run/checkpoint.pt").read_bytes()
    (folder / "half.pt").write_bytes(data[: len(data) // 2])
    bomb = type("Bomb", (), {"__reduce__": lambda self: (open, ("exploded", "w"))})()  # unpickled, it leaves a file
    args = rlhf.Args(**TINY_RLHF | {"d_model": 16})
    wrong = {"list": [1, 2], "bomb": saved | {"agent": bomb}}
    wrong["other"] = saved | {"args": saved["args"] | {"new_flag": 1}}
    wrong["rlhf"] = {"args": vars(args), "made": [], "rows": [], "seconds": 0.0}
    for name, content in wrong.items():
        torch.save(content, folder / f"{name}.pt")
    return folder


@pytest.mark.parametrize("name", ALL)
def test_bad_input_is_refused_in_a_sentence_that_names_the_flag(main, monkeypatch, folder, name):
    """Exit status 2, no traceback, and nothing is written."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "400")
    rows = [(names, flag, flag.split("=")[0]) for names, flags in WRONG for flag in flags.split()] + REFUSED
    before, found = helpers.contents(folder), {}
    for names, flags, words in rows:
        if name in names.split():
            status, out, text = main(name, *shlex.split(flags))
            missing = [word for word in words.split() if word not in text]
            if (status, out, missing) != (2, "", []) or "Traceback" in text:
                found[flags] = status, out, text
            assert helpers.contents(folder) == before, flags
    assert found == {}


@pytest.mark.slow
def test_on_the_command_line_a_refusal_is_one_line_on_stderr(tmp_path):
    done = helpers.run(*command("--env-id=Nope-v0"), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("ppo.py: --env-id Nope-v0, ")


# Several workers

WORKER = """
import importlib, os, pathlib, sys, torch
import torch.distributed as dist
from tests.helpers import VARIANTS, train_tiny

store, rank, size = next(dist.rendezvous("env://"))
init = dist.init_process_group
for variant in sys.argv[1:]:
    prefixed = dist.PrefixStore(variant, store)  # one process group after another
    dist.init_process_group = lambda: init(store=prefixed, rank=rank, world_size=size)
    torch.save(train_tiny(variant, variant).state_dict(), f"{variant} {rank}.pt")
    threads = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], "such a thread could abort Python when it exits"
"""


@pytest.mark.slow
def test_two_workers_train_one_agent(tmp_path):
    """Each steps environments of its own; their parameters stay equal to the bit."""
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun = sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    variants = [*SCRIPTS, "ppo penalty", "vpg total-return"]
    done = helpers.run(*torchrun, "worker.py", *variants, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    for variant in variants:
        one, other = (torch.load(tmp_path / f"{variant} {rank}.pt", weights_only=True) for rank in (0, 1))
        assert [key for key in one if not torch.equal(one[key], other[key])] == [], variant
        assert one["obs_norm.count"] == evaluation(tmp_path / variant)["global_step"] / 2, variant  # of each worker


# Spaces


@pytest.mark.parametrize(
    ("env_id", "actions", "arrive"),
    [
        ("Pendulum-v1", [[-3.0], [-1.0], [-0.5], [0.0], [1.0], [9.0]], [[-2], [-2], [-1], [0], [2], [2]]),
        ("ProbeHalfBounded-v0", [[-3.0], [0.5], [40.0]], [[0], [0.5], [40]]),  # clipped at 0, not scaled
        ("ProbeShifted-v0", [0, 1], [5, 6]),
        ("ProbeMultiDiscrete-v0", [[0, 0], [1, 3]], [[0, 1], [1, 4]]),
    ],
)
def test_actions_arrive_as_the_environment_wants_them(spy, env_id, actions, arrive):
    """Bounded ones are clipped to [-1, 1] and rescaled; choices count from 0."""
    env = ppo.make_env(env_id)
    arrived = spy(type(env.unwrapped), "step", note=lambda env, act: np.asarray(act).tolist())
    env.reset(seed=0)
    for act in actions:
        env.step(np.array(act, env.action_space.dtype))
    assert arrived == arrive


@pytest.mark.parametrize(
    ("name", "space"),
    [
        *(("ppo", space) for space in ACTION_SPACES),
        *(("dqn", space) for space in ("OneAction", "FromMinusOne")),
        *itertools.product(CONTINUOUS, ["Odd", "Double", "Scalar", "Matrix"]),
    ],
)
def test_every_action_is_in_its_space(tmp_path, name, space):
    """The environment raises AssertionError for any other; bounds included, which rounding could miss."""
    train(tmp_path, name, env_id=f"Probe{space}-v0", total_timesteps=96)


@pytest.mark.parametrize(
    ("env_id", "shape"),
    [
        ("FrozenLake-v1", (16,)),  # one of 16 squares
        ("Blackjack-v1", (32 + 11 + 2,)),  # player's sum, dealer's card, usable ace
        ("ProbeDict-v0", (2 + 2 + 4,)),  # MultiBinary(2), Box(2, 2), Discrete(2)
        ("ProbeImage-v0", (3, 40, 36)),  # 40 high, 36 wide, RGB: channels first
    ],
)
def test_observations_become_vectors_or_images(env_id, shape):
    env = ppo.make_env(env_id)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.shape == obs.shape == shape
    if len(shape) == 3:
        assert np.array_equal(obs.transpose(1, 2, 0), env.unwrapped.observe())
    else:
        inner = env.unwrapped.observation_space
        assert gym.spaces.unflatten(inner, obs) in inner  # nothing is lost


def test_an_environment_without_a_time_limit_gets_one():
    env = ppo.make_env("ProbeEndless-v0")
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(27_000)]
    assert ends == [(False, False)] * 26_999 + [(False, True)]


@pytest.mark.slow
@pytest.mark.optional
@pytest.mark.parametrize(
    ("name", "env_id", "module"),
    [
        ("ppo", "ALE/Pong-v5", "ale_py"),
        ("ppo", "CarRacing-v3", "Box2D"),
        ("dqn", "LunarLander-v3", "Box2D"),
        ("ppo", "HalfCheetah-v5", "mujoco"),
        ("ddpg", "HalfCheetah-v5", "mujoco"),
        ("sac", "HalfCheetah-v5", "mujoco"),
    ],
)
def test_optional_environments_can_be_trained_on(tmp_path, monkeypatch, name, env_id, module):
    pytest.importorskip(module)
    monkeypatch.setattr(f"{name}.evaluate", lambda *args: [0.0])  # whole episodes take long
    agent = train(tmp_path, name, env_id=env_id, total_timesteps=96)
    assert all(x.isfinite().all() for x in agent.state_dict().values())
