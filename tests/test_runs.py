"""What a run leaves behind, and that it can be repeated, interrupted, resumed, spread over processes and misused.

What rests on text that all scripts share is tested on ppo.py (test_family.py compares the texts), the rest on each.
"""

import csv
import importlib
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

import dqn
import ppo
from tests.test_family import FAMILY, ROOT, SCRIPTS

SHORT = {"num_envs": 4, "num_steps": 32, "total_timesteps": 1_280, "checkpoint_every": 512, "eval_episodes": 2}
VARIANTS = {name: (name, {}) for name in FAMILY}  # the second objective, and the form with rollouts of changing length
VARIANTS |= {"ppo penalty": ("ppo", {"objective": "penalty"}), "vpg total-return": ("vpg", {"form": "total-return"})}
VARIANTS["dqn"] = "dqn", {"learning_starts": 200, "batch_size": 32, "buffer_size": 1_000, "target_interval": 3}


def command(*flags, script="ppo.py", **named):
    named = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
    return [sys.executable, ROOT / script, *named, *flags]


def run(*argv, cwd, **env):
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")} | env
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def train(folder, variant="ppo", **flags):
    name, more = VARIANTS[variant]
    module = importlib.import_module(name)
    return module.train(module.Args(run_dir=str(folder), **SHORT | more | flags))


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


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_works_alone_in_an_empty_folder_and_leaves_what_the_readme_says(tmp_path, name):
    copy = shutil.copy(ROOT / f"{name}.py", tmp_path / "mine.py")
    done = run(*command(script=copy, **SHORT, seed=3), cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("CartPole-v1__mine__3__")
    assert {path.name for path in folder.iterdir()} == {"args.json", "metrics.csv", "checkpoint.pt", "eval.json"}
    assert json.loads((folder / "args.json").read_text())["seed"] == 3
    rows = metrics(folder)
    assert [int(row["global_step"]) for row in rows] == [128 * i for i in range(1, 11)]
    losses = {"td_loss", "q_value", "epsilon"} if name == "dqn" else {"policy_loss", "value_loss", "entropy"}
    assert {"episodic_return", "episodic_length", "grad_norm"} | losses <= rows[0].keys()

    result = json.loads((folder / "eval.json").read_text())
    assert result.keys() == {"mean", "std", "episodes", "returns", "global_step", "seconds"}
    assert result["mean"] == np.mean(result["returns"])
    assert result["global_step"] == 1_280
    summary = f"eval: {result['mean']:.1f} +- {result['std']:.1f} over 2 episodes (runs/{folder.name})"
    assert done.stdout.splitlines() == [summary]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_every_flag(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as exit:
        module.main()
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for flag in module.Args.__dataclass_fields__:
        assert f"--{flag.replace('_', '-')}" in text
    assert "layers of the networks for vector observations" in text


def test_importing_the_scripts_runs_nothing_and_imports_no_tracker(tmp_path):
    code = f"import sys, {', '.join(SCRIPTS)}; sys.exit('wandb' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).returncode == 0
    assert list(tmp_path.iterdir()) == []


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


SAME = [*((name, env_id) for name in FAMILY for env_id in ("CartPole-v1", "Pendulum-v1")), ("dqn", "CartPole-v1")]


@pytest.mark.parametrize(("name", "env_id"), SAME)
def test_the_same_seed_gives_the_same_run(tmp_path, name, env_id):
    one, two = train(tmp_path / "1", name, env_id=env_id), train(tmp_path / "2", name, env_id=env_id)
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
    assert 0 < torch.load(killed / "checkpoint.pt", weights_only=True)["step"] < 6_400

    resumed = train(killed, variant, resume=str(killed / "checkpoint.pt"), **flags)
    assert metrics(killed) == metrics(tmp_path / "whole")
    assert_same_agent(whole, resumed)
    one, two = (json.loads((folder / "eval.json").read_text()) for folder in (killed, tmp_path / "whole"))
    assert one["returns"] == two["returns"]


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
    assert json.loads((tmp_path / "2/eval.json").read_text())["global_step"] == 2_560


@pytest.mark.parametrize("flags", [[], ["--async-envs"]])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, flags):
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


def test_a_replay_buffer_too_large_for_checkpoints_is_filled_anew(tmp_path, monkeypatch):
    """The resumed run acts as its network says, and learns when it has seen enough again."""
    monkeypatch.setattr(dqn, "KEPT", 0)
    flags = {"learning_starts": 256, "batch_size": 32}
    train(tmp_path / "1", "dqn", **flags)
    assert torch.load(tmp_path / "1/checkpoint.pt", weights_only=True)["replay"] == {}
    flags |= {"resume": str(tmp_path / "1/checkpoint.pt"), "total_timesteps": 2_560}
    train(tmp_path / "2", "dqn", **flags)
    assert [row["td_loss"] == "" for row in metrics(tmp_path / "2")] == [True] + [False] * 9


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


@pytest.mark.parametrize("variant", [*SCRIPTS, "vpg total-return"])
def test_two_workers_train_one_agent(tmp_path, variant):
    """Each steps environments of its own; their parameters stay equal to the bit."""
    name, more = VARIANTS[variant]
    (tmp_path / "worker.py").write_text(
        f"import os, torch, {name} as script\n"
        f"agent = script.train(script.Args(run_dir='out', **{SHORT | more}))\n"
        "torch.save(agent.state_dict(), f\"agent{os.environ['RANK']}.pt\")\n"
    )
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "worker.py"]
    done = run(*argv, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"agent{rank}.pt", weights_only=True) for rank in range(2))
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    steps = int(metrics(tmp_path / "out")[-1]["global_step"])
    assert one["obs_norm.count"] == steps / 2  # of each worker
    assert steps == 1_280 or variant == "vpg total-return"
    assert (tmp_path / "out/eval.json").exists()


def test_two_workers_learn(tmp_path):
    flags = {"total_timesteps": 65_536, "num_envs": 8, "run_dir": "out"}
    _, *argv = command(**flags)
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *argv]
    done = run(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(metrics(tmp_path / "out")[-1]["global_step"]) == 65_536
    assert json.loads((tmp_path / "out/eval.json").read_text())["mean"] >= 475


# Misused


def refusal(capsys, monkeypatch, *flags, name="ppo"):
    """What the script says on stderr when it refuses flags, in one line."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
    with pytest.raises(SystemExit) as exit:
        importlib.import_module(name).main()
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
        ("--num-minibatches 7", "2048 steps do not make 7 equal minibatches"),
        ("--num-minibatches 2048", "2048 steps do not make 2048 equal minibatches above 1"),
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


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--env-id Nope-v0", "--env-id Nope-v0: Environment `Nope` doesn't exist"),
        ("--env-id ProbeBinaryActions-v0", "--env-id ProbeBinaryActions-v0: MultiBinary(2) actions"),
        ("--num-steps 0", "--num-steps 0: must lie between 1 and inf"),
        ("--total-timesteps 10", "--total-timesteps 10: one rollout is"),
        ("--max-grad-norm -1", "--max-grad-norm -1.0: must lie between 0 and inf"),
        ("--device toaster", "--device toaster: "),
        ("--resume nowhere.pt", "--resume nowhere.pt: not a checkpoint (FileNotFoundError)"),
    ],
)
def test_every_script_refuses_bad_input(capsys, monkeypatch, tmp_path, name, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, monkeypatch, *flags.split(), name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        *((name, "--num-envs 1 --num-steps 1", "--num-steps 1: 1 steps do not make") for name in FAMILY),
        ("vpg", "--form best", "--form"),
        ("vpg", "--value-epochs 0", "--value-epochs 0: must lie between 1 and inf"),
        ("a2c", "--ent-coef -1", "--ent-coef -1.0: must lie between 0 and inf"),
        ("trpo", "--max-kl -1", "--max-kl -1.0: must lie between 0 and inf"),
        ("trpo", "--cg-iters 0", "--cg-iters 0: must lie between 1 and inf"),
        ("trpo", "--cg-damping nan", "--cg-damping nan: must lie between 0 and inf"),
        ("trpo", "--line-search-steps 0", "--line-search-steps 0: must lie between 1 and inf"),
        ("trpo", "--line-search-shrink 1.5", "--line-search-shrink 1.5: must lie between 0 and 1"),
        ("dqn", "--env-id Pendulum-v1", "supported are Discrete actions (vpg.py, a2c.py, trpo.py and ppo.py take Box"),
        (
            "dqn",
            "--env-id ProbeMultiDiscrete-v0",
            "--env-id ProbeMultiDiscrete-v0: MultiDiscrete([2 4], start=[0 1]) act",
        ),
        (
            "dqn",
            "--buffer-size 63 --learning-starts 1",
            "--buffer-size 63: less than a rollout, 64, or --learning-starts",
        ),
        ("dqn", "--buffer-size 999", "--buffer-size 999: less than a rollout, 64, or --learning-starts"),
        ("dqn", "--buffer-size 1000 --num-envs 3", "--buffer-size 1000: less than a rollout, 24, or --learning-starts"),
        ("dqn", "--total-timesteps 1000", "--learning-starts 1000: never comes in --total-timesteps"),  # 960 are
        ("dqn", "--buffer-size 1000000000000", "--buffer-size 1000000000000: takes "),
        ("dqn", "--batch-size 0", "--batch-size 0: must lie between 1 and inf"),
        ("dqn", "--gradient-steps 0", "--gradient-steps 0: must lie between 1 and inf"),
        ("dqn", "--n-step 0", "--n-step 0: must lie between 1 and inf"),
        ("dqn", "--target-interval 0", "--target-interval 0: must lie between 1 and inf"),
        ("dqn", "--tau 1.5", "--tau 1.5: must lie between 0 and 1"),
        ("dqn", "--epsilon-start 1.5", "--epsilon-start 1.5: must lie between 0 and 1"),
        ("dqn", "--epsilon-end nan", "--epsilon-end nan: must lie between 0 and 1"),
        ("dqn", "--exploration-fraction -1", "--exploration-fraction -1.0: must lie between 0 and 1"),
    ],
)
def test_flags_of_one_script_are_checked(capsys, monkeypatch, tmp_path, name, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, monkeypatch, *flags.split(), name=name)
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
    torch.save(saved | {"format": "a2c 1"}, "a2c.pt")
    torch.save([1, 2], "list.pt")
    before = sorted(tmp_path.iterdir())

    for name in ("half.pt", "bomb.pt", "list.pt"):
        assert f"--resume {name}: not a checkpoint" in refusal(capsys, monkeypatch, "--resume", name)
    assert "a checkpoint of ppo 0, not ppo 1" in refusal(capsys, monkeypatch, "--resume", "old.pt")
    assert "a checkpoint of a2c 1, not ppo 1" in refusal(capsys, monkeypatch, "--resume", "a2c.pt")
    flags = "--resume", finished / "checkpoint.pt", "--run-dir", "out"
    assert "the checkpoint is for CartPole-v1" in refusal(capsys, monkeypatch, *flags, "--env-id", "Acrobot-v1")
    assert "its agent has other sizes than the flags say" in refusal(capsys, monkeypatch, *flags, "--hidden-sizes", 8)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_holds_a_run_is_not_overwritten(capsys, monkeypatch, finished):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert f"--run-dir {finished}: holds a run" in refusal(capsys, monkeypatch, "--run-dir", finished)
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize(("flag", "module"), [("--track", "wandb"), ("--capture-video", "moviepy")])
def test_a_missing_extra_is_named(capsys, monkeypatch, flag, module):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert f"{flag}: pip install {module}" in refusal(capsys, monkeypatch, flag)
