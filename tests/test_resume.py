"""A run that is interrupted goes on as if nothing had happened, and says how."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import dqn
import ppo
from tests.helpers import SHORT, VARIANTS, assert_same_agent, command, evaluation, load, metrics, run, train

pytestmark = pytest.mark.slow


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the run ended too early or takes too long"
        time.sleep(0.03)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_killed_and_resumed_ends_bit_for_bit_like_one_never_interrupted(tmp_path, variant):
    name, more = VARIANTS[variant]
    flags = SHORT | {"total_timesteps": 6_400, "checkpoint_every": 1_500} | more
    whole = train(tmp_path / "whole", variant, **flags)

    killed = tmp_path / "killed"
    argv = command(script=f"{name}.py", run_dir=killed, **flags)
    process = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.DEVNULL)
    rows = killed / "metrics.csv"
    wait_for(lambda: rows.exists() and any(int(row["global_step"]) > 3_500 for row in metrics(killed)), process)
    process.kill()
    process.wait()
    assert 0 < load(killed)["step"] < 6_400

    resumed = train(killed, variant, resume=str(killed / "checkpoint.pt"), **flags)
    assert metrics(killed) == metrics(tmp_path / "whole")
    assert_same_agent(whole, resumed)
    assert evaluation(killed)["returns"] == evaluation(tmp_path / "whole")["returns"]


def test_the_flags_of_a_resumed_run_are_those_of_its_checkpoint(tmp_path):
    train(tmp_path / "out", seed=3)
    done = run(*command(resume="out/checkpoint.pt"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    args = json.loads((tmp_path / "out/args.json").read_text())
    assert args["seed"] == 3
    assert {name: args[name] for name in SHORT} == SHORT


def test_resuming_a_finished_run_only_evaluates(tmp_path):
    agent = train(tmp_path)
    before = metrics(tmp_path)
    again = ppo.train(ppo.Args(resume=str(tmp_path / "checkpoint.pt"), **SHORT))
    assert_same_agent(agent, again)
    assert metrics(tmp_path) == before


def test_an_agent_can_be_watched_in_a_window_and_on_film(capsys, monkeypatch, tmp_path):
    pytest.importorskip("moviepy")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    train(tmp_path, eval_episodes=1)
    for flag in ("--render", "--capture-video"):
        monkeypatch.setattr(sys, "argv", ["ppo.py", "--resume", str(tmp_path / "checkpoint.pt"), flag])
        ppo.main()
    assert len(set(capsys.readouterr().out.splitlines())) == 1  # the same evaluation three times
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert video.stat().st_size > 1_000


def test_a_finished_run_goes_on_with_a_larger_budget_into_another_folder(tmp_path):
    train(tmp_path / "1")
    flags = {"resume": tmp_path / "1/checkpoint.pt", "run_dir": tmp_path / "2", "total_timesteps": 2_560}
    done = run(*command(**flags), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [int(row["global_step"]) for row in metrics(tmp_path / "2")] == [1_280 + 128 * i for i in range(1, 11)]
    assert evaluation(tmp_path / "2")["global_step"] == 2_560


@pytest.mark.parametrize(("name", "flags"), [("ppo", {"objective": "penalty"}), ("vpg", {"form": "reward-to-go"})])
def test_rows_of_a_run_resumed_with_another_objective_have_the_same_columns(tmp_path, name, flags):
    train(tmp_path, name)
    train(tmp_path, name, resume=str(tmp_path / "checkpoint.pt"), total_timesteps=2_560, **flags)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) > 1 + 10
    assert {len(row) for row in rows} == {len(rows[0])}


@pytest.mark.parametrize("flags", [[], ["--async-envs"]])
def test_ctrl_c_saves_and_says_how_to_continue(tmp_path, flags):
    argv = command(*flags, run_dir="out", **SHORT | {"total_timesteps": 1_000_000})
    process = subprocess.Popen(
        argv,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    rows = tmp_path / "out/metrics.csv"
    wait_for(lambda: rows.exists() and rows.read_text().count("\n") > 10, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the children too
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    step = load(tmp_path / "out")["step"]
    assert f"stopped at step {step}; continue with --resume out/checkpoint.pt" in stderr
    assert "Traceback" not in stderr
    again = run(*command(*flags, resume="out/checkpoint.pt", total_timesteps=step + 256), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert int(metrics(tmp_path / "out")[-1]["global_step"]) == step + 256


def test_a_number_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(tmp_path, capsys):
    with pytest.raises(FloatingPointError, match=r"is nan at step 1280; .*; last good checkpoint: .*checkpoint.pt"):
        train(tmp_path, env_id="ProbeBroken-v0", checkpoint_every=100)
    assert all(x.isfinite().all() for x in load(tmp_path)["agent"].values())
    assert load(tmp_path)["step"] == 1_152


def test_a_replay_buffer_too_large_for_checkpoints_is_filled_again(tmp_path, monkeypatch):
    """The resumed run learns as soon as it has collected enough."""
    monkeypatch.setattr(dqn, "MAX_SAVED_BUFFER_BYTES", 0)
    flags = {"learning_starts": 256, "batch_size": 32}
    train(tmp_path / "1", "dqn", **flags)
    assert load(tmp_path / "1")["replay"] == {}
    flags |= {"resume": str(tmp_path / "1/checkpoint.pt"), "total_timesteps": 2_560}
    train(tmp_path / "2", "dqn", **flags)
    assert [row["td_loss"] == "" for row in metrics(tmp_path / "2")] == [True] + [False] * 9


def test_rows_after_the_checkpoint_are_written_again(tmp_path):
    """The only checkpoint is that of step 0: resumed, the run writes all its rows again, under their heading."""
    flags = {"env_id": "ProbeBroken-v0", "checkpoint_every": 10_000}
    with pytest.raises(FloatingPointError):
        train(tmp_path, **flags)
    before = metrics(tmp_path)
    with pytest.raises(FloatingPointError):
        ppo.train(ppo.Args(resume=str(tmp_path / "checkpoint.pt"), **SHORT | flags))
    assert metrics(tmp_path) == before
    assert int(before[0]["global_step"]) == 128
