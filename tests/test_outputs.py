"""What a run leaves behind, and that the same flags leave the same.

What rests on text that all scripts share is tested on ppo.py (test_family.py compares the texts), the rest on each.
"""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

import ppo
from tests.helpers import (
    FAMILY,
    ROOT,
    SCRIPTS,
    SHORT,
    VARIANTS,
    assert_same_agent,
    command,
    evaluation,
    load,
    metrics,
    run,
    train,
)

pytestmark = pytest.mark.slow


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

    result = evaluation(folder)
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
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
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
    saved = load(tmp_path)
    assert len(saved["recent"]) == 20
    assert float(metrics(tmp_path)[-1]["episodic_return"]) == pytest.approx(np.mean(saved["recent"]))


def test_the_action_learned_from_is_the_one_sampled_not_the_one_clipped_for_the_environment(tmp_path, spy):
    acts = spy(ppo, "update", note=lambda agent, optimizer, penalty, batch, lr, args: batch.act)
    train(tmp_path, env_id="Pendulum-v1")
    assert torch.cat(acts).abs().max() > 1  # the environment's actions end at 1


def test_tracking_works_offline_and_without_an_account(tmp_path):
    done = run(*command("--track", run_dir="out", **SHORT), cwd=tmp_path, WANDB_MODE="offline", WANDB_API_KEY="")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb"))
    assert done.stdout.splitlines()[-1].startswith("eval: ")


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("anneal_lr", [True, False])
def test_the_learning_rate_falls_linearly_to_0_or_stays(tmp_path, spy, name, anneal_lr):
    """10 rollouts, so the last one learns at a tenth of the initial rate."""
    module = importlib.import_module(name)
    rates = spy(module.Adam, "step", note=lambda optimizer, loss, lr: lr)
    flags = {"learning_starts": 1} if name == "dqn" else {}
    train(tmp_path, name, learning_rate=0.01, anneal_lr=anneal_lr, **flags)
    rates = list(dict.fromkeys(rates))  # one of each rollout
    assert rates == pytest.approx([0.01 * (1 - i / 10) for i in range(10)] if anneal_lr else [0.01])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_on_cuda_can_be_resumed_there_and_evaluated_on_a_cpu(tmp_path, variant):
    agent = train(tmp_path, variant, device="cuda")
    assert {x.device.type for x in agent.state_dict().values()} == {"cuda"}
    resume = str(tmp_path / "checkpoint.pt")
    again = train(tmp_path / "longer", variant, device="cuda", resume=resume, total_timesteps=2_560)
    assert {x.device.type for x in again.state_dict().values()} == {"cuda"}
    again = train(tmp_path / "cpu", variant, resume=resume)
    assert_same_agent(agent.cpu(), again)


# The same again


SAME = [*((name, env_id) for name in FAMILY for env_id in ("CartPole-v1", "Pendulum-v1")), ("dqn", "CartPole-v1")]


@pytest.mark.parametrize(("name", "env_id"), SAME)
def test_the_same_seed_gives_the_same_run(tmp_path, name, env_id):
    one, two = (train(tmp_path / folder, name, env_id=env_id) for folder in "ab")
    assert_same_agent(one, two)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_no_seed_of_an_environment_is_used_twice(tmp_path, spy):
    """Not by two environments, not after a checkpoint, not by the evaluation, not in a run with the next seed."""
    seeds = spy(CartPoleEnv, "reset", note=lambda self, seed=None, options=None: seed)
    for seed in (1, 2):
        train(tmp_path / str(seed), seed=seed)
    used = [seed for seed in seeds if seed is not None]  # None: the next episode of the same environment
    assert len(used) == 2 * (3 * 4 + 2)  # two runs; three resets of four environments, two episodes of evaluation
    assert len(set(used)) == len(used)
    assert metrics(tmp_path / "1") != metrics(tmp_path / "2")
