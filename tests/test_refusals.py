"""Bad input is refused in one sentence that names the flag, with exit status 2, and nothing is written."""

import importlib
import pickle
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import FAMILY, SCRIPTS, command, run, train


def refusal(capsys, monkeypatch, *flags, name="ppo"):
    """What the script says on stderr when it refuses flags, in one line."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main()
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--env-id Nope-v0", "--env-id Nope-v0: Environment `Nope` doesn't exist"),
        ("--env-id CartPole-v9", "--env-id CartPole-v9: Environment version `v9` for environment `CartPole` doesn't"),
        ("--env-id nowhere:Nope-v0", "--env-id nowhere:Nope-v0: No module named 'nowhere'"),
        (
            "--env-id ProbeBinaryActions-v0",
            "--env-id ProbeBinaryActions-v0: MultiBinary(2) actions and ",
        ),
        (
            "--env-id ProbeGraphObservations-v0",
            "supported are Box, Discrete, MultiDiscrete actions and observations that can be flattened",
        ),
        ("--num-envs 0", "--num-envs 0: must be at least 1"),
        ("--num-steps -1", "--num-steps -1: must be at least 1"),
        ("--total-timesteps 100", "--total-timesteps 100: must be at least one rollout, 2048 steps"),
        ("--num-minibatches 7", "--num-minibatches 7: cannot split 2048 steps into equal parts of 2 or more"),
        ("--num-minibatches 2048", "cannot split 2048 steps into equal parts of 2 or more"),
        ("--update-epochs 0", "--update-epochs 0: must be at least 1"),
        ("--learning-rate -0.1", "--learning-rate -0.1: must be at least 0"),
        ("--learning-rate nan", "--learning-rate nan: must be at least 0"),
        ("--gamma 1.5", "--gamma 1.5: must be between 0 and 1"),
        ("--gae-lambda -1", "--gae-lambda -1.0: must be between 0 and 1"),
        ("--hidden-sizes 64 0", "--hidden-sizes (64, 0): must be at least 1"),
        ("--seed -1", "--seed -1: must be at least 0"),
        ("--eval-episodes 0", "--eval-episodes 0: must be at least 1"),
        ("--checkpoint-every 0", "--checkpoint-every 0: must be at least 1"),
        ("--device cuda:99", "--device cuda:99: "),
        ("--device toaster", "--device toaster: "),
        ("--render --capture-video", "--render: cannot be combined with --capture-video"),
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
        (
            "--env-id ProbeBinaryActions-v0",
            "--env-id ProbeBinaryActions-v0: MultiBinary(2) actions and ",
        ),
        ("--num-steps 0", "--num-steps 0: must be at least 1"),
        ("--max-grad-norm -1", "--max-grad-norm -1.0: must be at least 0"),
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
        *(
            (name, "--num-envs 1 --num-steps 1", "--num-steps 1: with --num-envs 1, must be at least 2")
            for name in FAMILY[:3]
        ),
        *((name, "--total-timesteps 10", "--total-timesteps 10: must be at least one rollout, ") for name in FAMILY),
        ("dqn", "--total-timesteps 10 --learning-starts 0", "--learning-starts 0: must be at least 1"),
        ("vpg", "--form best", "--form"),
        ("vpg", "--value-epochs 0", "--value-epochs 0: must be at least 1"),
        ("a2c", "--ent-coef -1", "--ent-coef -1.0: must be at least 0"),
        ("trpo", "--max-kl -1", "--max-kl -1.0: must be at least 0"),
        ("trpo", "--cg-iters 0", "--cg-iters 0: must be at least 1"),
        ("trpo", "--cg-damping nan", "--cg-damping nan: must be at least 0"),
        ("trpo", "--line-search-steps 0", "--line-search-steps 0: must be at least 1"),
        ("trpo", "--line-search-shrink 1.5", "--line-search-shrink 1.5: must be between 0 and 1"),
        ("dqn", "--env-id Pendulum-v1", "supported are Discrete actions and observations that can be flattened"),
        (
            "dqn",
            "--env-id ProbeMultiDiscrete-v0",
            "--env-id ProbeMultiDiscrete-v0: MultiDiscrete([2 4], start=[0 1]) act",
        ),
        (
            "dqn",
            "--buffer-size 63 --learning-starts 1",
            "--buffer-size 63: must hold a rollout (64)",
        ),
        (
            "dqn",
            "--buffer-size 999",
            "--buffer-size 999: must hold a rollout (64) and at least --learning-starts (1000)",
        ),
        (
            "dqn",
            "--buffer-size 1000 --num-envs 3",
            "--buffer-size 1000: must hold a rollout (24) and at least --learning-starts (1000)",
        ),
        ("dqn", "--total-timesteps 1000", "--learning-starts 1000: not reached within --total-timesteps"),  # 960 are
        ("dqn", "--buffer-size 1000000000000", "--buffer-size 1000000000000: needs "),
        ("dqn", "--batch-size 0", "--batch-size 0: must be at least 1"),
        ("dqn", "--gradient-steps 0", "--gradient-steps 0: must be at least 1"),
        ("dqn", "--n-step 0", "--n-step 0: must be at least 1"),
        ("dqn", "--target-interval 0", "--target-interval 0: must be at least 1"),
        ("dqn", "--tau 1.5", "--tau 1.5: must be between 0 and 1"),
        ("dqn", "--epsilon-start 1.5", "--epsilon-start 1.5: must be between 0 and 1"),
        ("dqn", "--epsilon-end nan", "--epsilon-end nan: must be between 0 and 1"),
        ("dqn", "--exploration-fraction -1", "--exploration-fraction -1.0: must be between 0 and 1"),
    ],
)
def test_flags_of_one_script_are_checked(capsys, monkeypatch, tmp_path, name, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(capsys, monkeypatch, *flags.split(), name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
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
    assert "a checkpoint of ppo 0, not ppo 3" in refusal(capsys, monkeypatch, "--resume", "old.pt")
    assert "a checkpoint of a2c 1, not ppo 3" in refusal(capsys, monkeypatch, "--resume", "a2c.pt")
    flags = "--resume", finished / "checkpoint.pt", "--run-dir", "out"
    assert "the checkpoint is for CartPole-v1" in refusal(capsys, monkeypatch, *flags, "--env-id", "Acrobot-v1")
    assert "its agent does not fit the flags" in refusal(capsys, monkeypatch, *flags, "--hidden-sizes", 8)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_holds_a_run_is_not_overwritten(capsys, monkeypatch, finished):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert f"--run-dir {finished}: contains a run" in refusal(capsys, monkeypatch, "--run-dir", finished)
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize(("flag", "module"), [("--track", "wandb"), ("--capture-video", "moviepy")])
def test_a_missing_extra_is_named(capsys, monkeypatch, flag, module):
    monkeypatch.setattr("ppo.find_spec", lambda name: None)
    assert f"{flag}: needs {module}; pip install {module}" in refusal(capsys, monkeypatch, flag)
