"""What a run leaves behind, and that it can be repeated, interrupted, resumed, spread over processes and misused."""

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import ppo

SCRIPT = Path(ppo.__file__)
SHORT = {"num_envs": 4, "num_steps": 32, "num_minibatches": 2, "update_epochs": 2, "total_timesteps": 1_280}
SHORT |= {"checkpoint_every": 512, "eval_episodes": 2}


def command(*flags, script=SCRIPT, **named):
    named = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
    return [sys.executable, script, *named, *flags]


def run(*argv, cwd, **env):
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parent / "tests")} | env
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def train(folder, **flags):
    return ppo.train(ppo.Args(run_dir=str(folder), **SHORT | flags))


def metrics(folder):
    """Rows of metrics.csv without the columns that tell the time."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name not in ("seconds", "steps_per_second")} for row in rows]


def assert_same_agent(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def load_agent(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["agent"]


# What a run leaves


def test_a_run_leaves_its_flags_metrics_checkpoint_and_evaluation(tmp_path):
    done = run(*command(**SHORT, seed=3), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("CartPole-v1__ppo__3__")
    assert {path.name for path in folder.iterdir()} == {"args.json", "metrics.csv", "checkpoint.pt", "eval.json"}
    assert json.loads((folder / "args.json").read_text())["seed"] == 3
    rows = metrics(folder)
    assert [int(row["global_step"]) for row in rows] == [128 * i for i in range(1, 11)]
    assert {"episodic_return", "episodic_length", "policy_loss", "value_loss", "entropy", "kl"} <= rows[0].keys()

    result = json.loads((folder / "eval.json").read_text())
    assert result.keys() == {"mean", "std", "episodes", "returns", "global_step", "seconds"}
    assert result["mean"] == np.mean(result["returns"])
    assert result["global_step"] == 1_280
    summary = f"eval: {result['mean']:.1f} +- {result['std']:.1f} over 2 episodes (runs/{folder.name})"
    assert done.stdout.splitlines() == [summary]


def test_help_explains_every_flag():
    text = subprocess.run(
        [*command("--help")], capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "200"}
    )
    for name in ppo.Args.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text.stdout
    assert "clipped ratio (Eq. 7) or adaptive KL penalty (Eq. 8)" in text.stdout


def test_importing_the_script_runs_nothing_and_imports_no_tracker(tmp_path):
    code = "import sys, ppo; sys.exit('wandb' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(SCRIPT.parent)).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_the_script_works_alone_in_an_empty_folder(tmp_path):
    copy = shutil.copy(SCRIPT, tmp_path / "mine.py")
    done = run(*command(script=copy, run_dir="out", **SHORT), cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    again = run(*command(script=copy, resume="out/checkpoint.pt"), cwd=tmp_path, PYTHONPATH="")
    assert again.stdout == done.stdout


def test_episodes_are_counted_as_they_end(tmp_path):
    """CartPole pays 1 a step, so that return equals length; and the mean is over the last 20 episodes."""
    train(tmp_path)
    for row in metrics(tmp_path):
        assert row["episodic_return"] == row["episodic_length"]
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(saved["recent"]) == 20
    assert float(metrics(tmp_path)[-1]["episodic_return"]) == pytest.approx(np.mean(saved["recent"]))


def test_the_action_learnt_from_is_the_one_sampled_not_the_one_clipped_for_the_environment(tmp_path, monkeypatch):
    seen, update = [], ppo.update
    monkeypatch.setattr(
        ppo,
        "update",
        lambda agent, optimizer, batch, args: seen.append(batch[1]) or update(agent, optimizer, batch, args),
    )
    train(tmp_path, env_id="Pendulum-v1")
    assert torch.cat(seen).abs().max() > 1  # the environment's actions end at 1


def test_tracking_works_offline_and_without_an_account(tmp_path):
    done = run(*command("--track", run_dir="out", **SHORT), cwd=tmp_path, WANDB_MODE="offline", WANDB_API_KEY="")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb"))
    assert done.stdout.splitlines()[-1].startswith("eval: ")


# The same again


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_same_seed_gives_the_same_run(tmp_path, env_id):
    one, two = train(tmp_path / "1", env_id=env_id), train(tmp_path / "2", env_id=env_id)
    assert_same_agent(one, two)
    assert metrics(tmp_path / "1") == metrics(tmp_path / "2")


def test_another_seed_gives_another_run_in_other_environments(tmp_path):
    train(tmp_path / "1", seed=1), train(tmp_path / "2", seed=2)
    assert metrics(tmp_path / "1") != metrics(tmp_path / "2")
    seeds = [set(np.random.SeedSequence((seed, 0, 0)).generate_state(17).tolist()) for seed in range(100)]
    assert len(set.union(*seeds)) == 1_700


def test_environments_in_processes_of_their_own_give_the_same_run(tmp_path):
    one, two = train(tmp_path / "1"), train(tmp_path / "2", async_envs=True)
    assert_same_agent(one, two)


# Interrupted and resumed


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the run ended too early or takes too long"
        time.sleep(0.01)


@pytest.mark.parametrize("objective", ["clip", "penalty"])
def test_a_run_killed_and_resumed_ends_bit_for_bit_like_one_never_interrupted(tmp_path, objective):
    flags = SHORT | {"total_timesteps": 12_800, "checkpoint_every": 3_000, "objective": objective}
    whole = train(tmp_path / "whole", **flags)

    killed = tmp_path / "killed"
    process = subprocess.Popen(command(run_dir=killed, **flags), cwd=tmp_path, stderr=subprocess.DEVNULL)
    rows = killed / "metrics.csv"
    wait_for(lambda: rows.exists() and rows.read_text().count("\n") > 60, process)  # past the cut at step 6,016
    process.kill()
    process.wait()
    assert 0 < torch.load(killed / "checkpoint.pt", weights_only=True)["step"] < 12_800

    resumed = run(*command(resume=killed / "checkpoint.pt"), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert metrics(killed) == metrics(tmp_path / "whole")
    for name, x in whole.state_dict().items():
        assert torch.equal(load_agent(killed)[name], x), name
    one, two = (json.loads((folder / "eval.json").read_text()) for folder in (killed, tmp_path / "whole"))
    assert one["returns"] == two["returns"]


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
    assert json.loads((tmp_path / "2/eval.json").read_text())["global_step"] == 2_560


@pytest.mark.parametrize("flags", [[], ["--async-envs"]])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, flags):
    argv = command(*flags, run_dir="out", **SHORT | {"total_timesteps": 1_000_000})
    process = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    rows = tmp_path / "out/metrics.csv"
    wait_for(lambda: rows.exists() and rows.read_text().count("\n") > 10, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the children too
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    step = torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)["step"]
    assert f"stopped at step {step}; go on with --resume out/checkpoint.pt" in stderr
    assert "Traceback" not in stderr
    again = run(*command(*flags, resume="out/checkpoint.pt", total_timesteps=step + 256), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert int(metrics(tmp_path / "out")[-1]["global_step"]) == step + 256


def test_a_number_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(tmp_path, capsys):
    with pytest.raises(FloatingPointError, match=r"is nan at step 1280: .* Last good checkpoint: .*checkpoint.pt"):
        train(tmp_path, env_id="ProbeBroken-v0", checkpoint_every=100)
    assert all(x.isfinite().all() for x in load_agent(tmp_path).values())
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1_152


def test_rows_after_the_checkpoint_are_written_again(tmp_path):
    """The only checkpoint is that of step 0: resumed, the run writes all its rows anew, under their heading."""
    flags = {"env_id": "ProbeBroken-v0", "checkpoint_every": 10_000}
    with pytest.raises(FloatingPointError):
        train(tmp_path, **flags)
    before = metrics(tmp_path)
    with pytest.raises(FloatingPointError):
        ppo.train(ppo.Args(resume=str(tmp_path / "checkpoint.pt"), **SHORT | flags))
    assert metrics(tmp_path) == before
    assert int(before[0]["global_step"]) == 128


# Several processes


def test_two_workers_train_one_agent(tmp_path):
    """Each steps environments of its own; their parameters stay equal; and together they learn."""
    (tmp_path / "worker.py").write_text(
        "import os, sys, torch, ppo\n"
        "agent = ppo.train(ppo.Args(env_id='CartPole-v1', total_timesteps=65_536, num_envs=8, run_dir='out'))\n"
        "torch.save(agent.state_dict(), f\"agent{os.environ['RANK']}.pt\")\n"
    )
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "worker.py"]
    done = run(*argv, cwd=tmp_path, PYTHONPATH=str(SCRIPT.parent))
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"agent{rank}.pt", weights_only=True) for rank in range(2))
    for name in one:
        assert torch.equal(one[name], two[name]), name
    assert one["obs_norm.count"] == 32 * 1024  # of each worker
    assert int(metrics(tmp_path / "out")[-1]["global_step"]) == 65_536
    assert json.loads((tmp_path / "out/eval.json").read_text())["mean"] >= 475


# Misused


def refusal(capsys, monkeypatch, *flags):
    """What the script says on stderr when it refuses flags, in one line."""
    monkeypatch.setattr(sys, "argv", ["ppo.py", *map(str, flags)])
    with pytest.raises(SystemExit) as exit:
        ppo.main()
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--env-id Nope-v0", "--env-id Nope-v0: Environment `Nope` doesn't exist"),
        ("--env-id CartPole-v9", "--env-id CartPole-v9: Environment version `v9` for environment `CartPole` doesn't"),
        ("--env-id nowhere:Nope-v0", "--env-id nowhere:Nope-v0: No module named 'nowhere'"),
        ("--env-id ProbeBinaryActions-v0", "--env-id ProbeBinaryActions-v0: MultiBinary(2) actions"),
        ("--env-id ProbeGraphObservations-v0", "supported are Box, Discrete and MultiDiscrete actions"),
        ("--num-envs 0", "--num-envs 0: must lie between 1 and inf"),
        ("--num-steps -1", "--num-steps -1: must lie between 1 and inf"),
        ("--total-timesteps 100", "--total-timesteps 100: one rollout is 2048 steps already"),
        ("--num-minibatches 7", "--num-minibatches 7: must cut 2048 steps into equal parts"),
        ("--num-minibatches 2048", "--num-minibatches 2048: must cut 2048 steps into equal parts above 1"),
        ("--update-epochs 0", "--update-epochs 0: must lie between 1 and inf"),
        ("--learning-rate -0.1", "--learning-rate -0.1: must lie between 0 and inf"),
        ("--learning-rate nan", "--learning-rate nan: must lie between 0 and inf"),
        ("--gamma 1.5", "--gamma 1.5: must lie between 0 and 1"),
        ("--gae-lambda -1", "--gae-lambda -1.0: must lie between 0 and 1"),
        ("--hidden-sizes 64 0", "--hidden-sizes (64, 0): must lie between 1 and inf"),
        ("--seed -1", "--seed -1: must lie between 0 and inf"),
        ("--eval-episodes 0", "--eval-episodes 0: must lie between 1 and inf"),
        ("--checkpoint-every 0", "--checkpoint-every 0: must lie between 1 and inf"),
        ("--device cuda:99", "--device cuda:99: "),
        ("--device toaster", "--device toaster: "),
        ("--render --capture-video", "--render: not together with --capture-video"),
        ("--objective both", "--objective"),
        ("--learning-rte 1", "--learning-rte"),
        ("--resume nowhere.pt", "--resume nowhere.pt: not a checkpoint (FileNotFoundError)"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(capsys, monkeypatch, tmp_path, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, monkeypatch, *flags.split())
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_has_no_traceback(tmp_path):
    done = run(*command(env_id="Nope-v0"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("ppo.py: --env-id Nope-v0: ")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_checkpoints_that_do_not_fit_are_refused(capsys, monkeypatch, tmp_path, finished):
    monkeypatch.chdir(tmp_path)
    whole = (finished / "checkpoint.pt").read_bytes()
    Path("half.pt").write_bytes(whole[: len(whole) // 2])
    Path("bomb.pt").write_bytes(pickle.dumps(Bomb()))
    saved = torch.load(finished / "checkpoint.pt", weights_only=True)
    torch.save(saved | {"format": "ppo 0"}, "old.pt")
    torch.save(saved | {"format": "dqn 1"}, "dqn.pt")
    torch.save([1, 2], "list.pt")
    before = sorted(tmp_path.iterdir())

    for name in ("half.pt", "bomb.pt", "list.pt"):
        assert f"--resume {name}: not a checkpoint" in refusal(capsys, monkeypatch, "--resume", name)
    assert "a checkpoint of ppo 0, not ppo 1" in refusal(capsys, monkeypatch, "--resume", "old.pt")
    assert "a checkpoint of dqn 1, not ppo 1" in refusal(capsys, monkeypatch, "--resume", "dqn.pt")
    flags = "--resume", finished / "checkpoint.pt", "--run-dir", "out"
    assert "the checkpoint is for CartPole-v1" in refusal(capsys, monkeypatch, *flags, "--env-id", "Acrobot-v1")
    assert "the checkpoint has other networks" in refusal(capsys, monkeypatch, *flags, "--hidden-sizes", 8)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_holds_a_run_is_not_overwritten(capsys, monkeypatch, finished):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert f"--run-dir {finished}: holds a run" in refusal(capsys, monkeypatch, "--run-dir", finished)
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize(("flag", "module"), [("--track", "wandb"), ("--capture-video", "moviepy")])
def test_a_missing_extra_is_named(capsys, monkeypatch, flag, module):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert f"{flag}: pip install {module}" in refusal(capsys, monkeypatch, flag)
