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
            "--env-id ProbeIntegers-v0",
            "--env-id ProbeIntegers-v0: Box(-3, 3, (2,), int64) actions; supported are boxes of",
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
        ("--hidden-sizes 64 0", "--hidden-sizes (64, 0): must be between 1 and 10000"),
        ("--seed -1", "--seed -1: must be between 0 and 4294967296"),
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


DEEP, TABLES, ALL = [*SCRIPTS], ["bandit", "tabular"], [*SCRIPTS, "bandit", "tabular", "rlhf"]
HUGE, LONG_WORD = 10**20, "x" * 5_000

# Scripts, flags as a list of words, and what stderr must say.
BAD_INPUTS = [
    # What the command line cannot read
    (ALL, ["--colour", "red"], "--colour"),
    (ALL, ["surplus"], "surplus"),
    (ALL, ["-x"], "-x"),
    (ALL, ["--seed"], "--seed"),
    (ALL, ["--seed", ""], "--seed"),
    (ALL, ["--seed", "one"], "--seed"),
    (ALL, ["--seed", "1.5"], "--seed"),
    (ALL, ["--seed", "1e3"], "--seed"),
    (ALL, ["--seed", "0x10"], "--seed"),
    (ALL, ["--seed", "nan"], "--seed"),
    (ALL, ["--seed", "²"], "--seed"),
    (ALL, ["--seed", "1", "2"], "2"),
    (ALL, ["--seed", LONG_WORD], "--seed"),
    (ALL, [f"--{LONG_WORD}"], "xxxx"),
    (DEEP, ["--gamma", "0,9"], "--gamma"),
    (DEEP, ["--gamma", "99%"], "--gamma"),
    (DEEP, ["--gamma", "half"], "--gamma"),
    (DEEP, ["--track", "yes"], "yes"),
    (DEEP, ["--hidden-sizes", "64,64"], "--hidden-sizes"),
    (DEEP, ["--hidden-sizes", "[64]"], "--hidden-sizes"),
    (["bandit", "tabular"], ["--figure", "9.9"], "--figure"),
    # Flags of another script
    (["vpg", "a2c", "trpo", "dqn"], ["--clip-coef", "0.2"], "--clip-coef"),
    (["vpg", "a2c", "ppo", "dqn"], ["--max-kl", "0.01"], "--max-kl"),
    (["vpg", "a2c", "trpo", "ppo"], ["--buffer-size", "100"], "--buffer-size"),
    (["a2c", "trpo", "ppo", "dqn"], ["--form", "reward-to-go"], "--form"),
    (TABLES, ["--learning-rate", "0.1"], "--learning-rate"),
    (DEEP, ["--agents", "greedy"], "--agents"),
    # Numbers outside their limits
    (ALL, ["--seed", "-1"], "--seed -1: must be "),
    (DEEP, ["--seed", f"{HUGE}"], f"--seed {HUGE}: must be between 0 and 4294967296"),
    (DEEP, ["--num-envs", "0"], "--num-envs 0: must be at least 1"),
    (DEEP, ["--num-envs", f"{HUGE}"], "--total-timesteps "),
    (DEEP, ["--num-steps", "0"], "--num-steps 0: must be at least 1"),
    (DEEP, ["--num-steps", f"-{HUGE}"], f"--num-steps -{HUGE}: must be at least 1"),
    (DEEP, ["--num-steps", f"{HUGE}"], "--total-timesteps "),
    (DEEP, ["--total-timesteps", "0"], "--total-timesteps 0: must be at least 1"),
    (DEEP, ["--total-timesteps", "1"], "--total-timesteps 1: must be at least one rollout, "),
    (DEEP, ["--gamma", "inf"], "--gamma inf: must be between 0 and 1"),
    (DEEP, ["--gamma=-inf"], "--gamma -inf: must be between 0 and 1"),
    (DEEP, ["--gamma", "nan"], "--gamma nan: must be between 0 and 1"),
    (DEEP, ["--gamma", "1e30"], "--gamma 1e+30: must be between 0 and 1"),
    (DEEP, ["--learning-rate", "nan"], "--learning-rate nan: must be at least 0"),
    (DEEP, ["--learning-rate=-inf"], "--learning-rate -inf: must be at least 0"),
    (DEEP, ["--max-grad-norm", "-1"], "--max-grad-norm -1.0: must be at least 0"),
    (DEEP, ["--max-grad-norm=-1e30"], "--max-grad-norm -1e+30: must be at least 0"),
    (DEEP, ["--hidden-sizes", "64", "0"], "--hidden-sizes (64, 0): must be between 1 and 10000"),
    (DEEP, ["--hidden-sizes", f"{HUGE}"], f"--hidden-sizes ({HUGE},): must be between 1 and 10000"),
    (DEEP, ["--eval-episodes", "-1"], "--eval-episodes -1: must be at least 1"),
    (DEEP, ["--checkpoint-every", "0"], "--checkpoint-every 0: must be at least 1"),
    (["ppo", "rlhf"], ["--clip-coef", "1e308"], "--clip-coef 1e+308: must be between 0 and 1000000"),
    (["dqn"], ["--buffer-size", f"{HUGE}"], f"--buffer-size {HUGE}: needs "),
    (["dqn"], ["--batch-size", f"{HUGE}"], f"--batch-size {HUGE}: must be between 1 and 100000"),
    (["dqn"], ["--n-step", f"{HUGE}"], f"--n-step {HUGE}: must be between 1 and 1000"),
    (["dqn"], ["--learning-starts", f"{HUGE}"], "--learning-starts"),
    (TABLES, ["--runs", "0"], "--runs 0: must be at least 1"),
    (TABLES, ["--steps", f"-{HUGE}"], f"--steps -{HUGE}: must be at least "),
    (["bandit"], ["--mean", "inf"], "--mean inf: must be finite"),
    (["bandit"], ["--mean", "1e999"], "--mean inf: must be finite"),
    (["bandit"], ["--runs", f"{HUGE}"], f"--runs times --num-arms {10 * HUGE}: must be between 1 and 100000000"),
    (["bandit"], ["--num-arms", f"{10**8}"], "--runs times --num-arms 20000000000: must be between 1 and 100000000"),
    (["tabular"], ["--runs", f"{HUGE}"], f"--runs times states times actions {64 * HUGE}: must be between 1 and 10000"),
    (["tabular"], ["--figure", "6.3", "--runs", f"{10**6}"], "--runs times states times actions 1920000000: must be "),
    (["tabular"], ["--env-id", "Blackjack-v1", "--runs", f"{HUGE}"], "--runs times states times actions 140800000000"),
    (["tabular"], ["--max-episode-steps", f"{HUGE}"], f"--max-episode-steps {HUGE}: must be between 1 and 1000000"),
    (["tabular"], ["--agents", f"n-step-sarsa:n={HUGE}"], f"--agents n-step-sarsa:n={HUGE}: n {HUGE}: must be between"),
    (["rlhf"], ["--d-model", f"{HUGE}"], f"--d-model {HUGE}: must be between 1 and 4096"),
    (["rlhf"], ["--num-layers", f"{HUGE}"], f"--num-layers {HUGE}: must be between 1 and 100"),
    (["rlhf"], ["--num-comparisons", f"{HUGE}"], f"--num-comparisons {HUGE}: must be between 64 and 100000"),
    (["rlhf"], ["--rounds", f"{HUGE}"], f"--rounds {HUGE}: must be between 1 and 100"),
    (["rlhf"], ["--batch-size", f"{HUGE}"], f"--batch-size {HUGE}: must be between 1 and 100000"),
    (["rlhf"], ["--eval-responses", f"{HUGE}"], f"--eval-responses {HUGE}: must be between 1 and 100000"),
    (["rlhf"], ["--num-heads", f"{HUGE}"], f"--num-heads {HUGE}: must divide --d-model 64"),
    (["rlhf"], ["--algorithm", "grpo", "--group-size", "3"], "--group-size 3: must divide --batch-size 256"),
    (["rlhf"], ["--kl-coef", "nan"], "--kl-coef nan: must be at least 0"),
    # Environments, agents and devices that do not exist
    (DEEP, ["--env-id", "Nope-v0"], "--env-id Nope-v0: Environment `Nope` doesn't exist"),
    (DEEP, ["--env-id", ""], "--env-id : "),
    (DEEP, ["--env-id", ":CartPole-v1"], "--env-id :CartPole-v1: Empty module name"),
    (DEEP, ["--env-id", "json:CartPole-v9"], "--env-id json:CartPole-v9: Environment version `v9`"),
    (DEEP, ["--env-id", "Größe ✓"], "--env-id Größe ✓: "),
    (DEEP, ["--env-id", "../CartPole-v1"], "--env-id ../CartPole-v1: "),
    (DEEP, ["--env-id", LONG_WORD], "--env-id xxxx"),
    (
        DEEP,
        ["--env-id", "ProbeBinaryActions-v0"],
        "--env-id ProbeBinaryActions-v0: MultiBinary(2) actions and ",
    ),
    (DEEP, ["--env-id", "ProbeDict-v0", "--capture-video"], "--env-id ProbeDict-v0: Dict() takes no arguments"),
    (["tabular"], ["--env-id", ":Taxi-v4"], "--env-id :Taxi-v4"),
    (TABLES, ["--agents", "Größe ✓"], "--agents Größe ✓: unknown agent; use "),
    (TABLES, ["--agents", ""], "--agents : unknown agent; use "),
    (TABLES, ["--agents", LONG_WORD], "--agents xxxx"),
    ([*DEEP, "rlhf"], ["--device", "toaster"], "--device toaster: "),
    ([*DEEP, "rlhf"], ["--device", ""], "--device : "),
    ([*DEEP, "rlhf"], ["--device", "cuda:99"], "--device cuda:99: "),
    # Files and folders
    ([*DEEP, "rlhf"], ["--resume", "nowhere.pt"], "--resume nowhere.pt: not a checkpoint (FileNotFoundError)"),
    ([*DEEP, "rlhf"], ["--resume", "."], "--resume .: not a checkpoint (IsADirectoryError)"),
    ([*DEEP, "rlhf"], ["--resume", __file__], "not a checkpoint (UnpicklingError)"),
    ([*DEEP, "rlhf"], ["--resume", "Größe ✓.pt"], "--resume Größe ✓.pt: not a checkpoint (FileNotFoundError)"),
    ([*DEEP, "rlhf"], ["--resume", LONG_WORD], "not a checkpoint (OSError)"),
    (TABLES, ["--run-dir", __file__], "test_refusals.py: is a file; choose a folder"),
    # Flags that contradict each other
    (DEEP, ["--render", "--capture-video"], "--render: cannot be combined with --capture-video"),
    (["bandit"], ["--figure", "2.4", "--agents", "greedy"], "--figure 2.4: cannot be combined with --agents"),
    (["tabular"], ["--figure", "6.6", "--gamma", "0.9"], "--figure 6.6: cannot be combined with --gamma"),
    (["rlhf"], ["--judge", "os:name"], "--judge os:name: name is not a function; expected my_module:function"),
    (["rlhf"], ["--algorithm", "dpo", "--reward", "judge"], "--reward judge: dpo learns from rankings only"),
    (["rlhf"], ["--kl-target", "5", "--kl-coef", "0"], "--kl-target 5.0: needs a positive --kl-coef; not for dpo"),
    (["rlhf"], ["--algorithm", "dpo", "--kl-target", "5"], "--kl-target 5.0: needs a positive --kl-coef; not for dpo"),
    (["rlhf"], ["--prompt", "how was the soup ?"], "--prompt: needs --resume and a checkpoint"),
]


def test_the_table_has_enough_bad_inputs_and_serves_all_scripts():
    assert len(BAD_INPUTS) >= 60
    assert {name for names, _, _ in BAD_INPUTS for name in names} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_script_refuses_bad_input(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    found = {}
    for names, flags, sentence in BAD_INPUTS:
        if name in names:
            said = refusal(capsys, monkeypatch, *flags, name=name)
            if sentence not in said or "Traceback" in said:
                found[" ".join(flags)] = said
            assert list(tmp_path.iterdir()) == [], flags
    assert found == {}


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
        ("a2c", "--discrete-ent-coef -1", "--discrete-ent-coef -1.0: must be at least 0"),
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
        ("dqn", "--batch-size 0", "--batch-size 0: must be between 1 and 100000"),
        ("dqn", "--gradient-steps 0", "--gradient-steps 0: must be at least 1"),
        ("dqn", "--n-step 0", "--n-step 0: must be between 1 and 1000"),
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
    assert "a checkpoint of ppo 0, not ppo 4" in refusal(capsys, monkeypatch, "--resume", "old.pt")
    assert "a checkpoint of a2c 1, not ppo 4" in refusal(capsys, monkeypatch, "--resume", "a2c.pt")
    flags = "--resume", finished / "checkpoint.pt", "--run-dir", "out"
    assert "the checkpoint is for CartPole-v1" in refusal(capsys, monkeypatch, *flags, "--env-id", "Acrobot-v1")
    assert "its agent does not fit the flags" in refusal(capsys, monkeypatch, *flags, "--hidden-sizes", 8)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_holds_a_run_is_not_overwritten(capsys, monkeypatch, finished):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert f"--run-dir {finished}: contains a run" in refusal(capsys, monkeypatch, "--run-dir", finished)
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("ppo.find_spec", lambda name: None)
    assert "--capture-video: needs moviepy; pip install moviepy" in refusal(capsys, monkeypatch, "--capture-video")
