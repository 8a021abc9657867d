"""Several processes: environments in processes of their own, and torchrun's workers."""

import sys

import pytest
import torch

from tests.helpers import ROOT, SCRIPTS, SHORT, VARIANTS, assert_same_agent, command, evaluation, metrics, run, train

pytestmark = pytest.mark.slow


def test_environments_in_processes_of_their_own_give_the_same_run(tmp_path):
    one, two = train(tmp_path / "1"), train(tmp_path / "2", async_envs=True)
    assert_same_agent(one, two)
    assert metrics(tmp_path / "1") == metrics(tmp_path / "2")


@pytest.mark.parametrize("variant", [*SCRIPTS, "vpg total-return"])
def test_two_workers_train_one_agent(tmp_path, variant):
    """Each steps environments of its own; their parameters stay equal to the bit.

    No thread of the process group is left at the end (on Linux): one of them could abort Python when it exits.
    """
    name, more = VARIANTS[variant]
    (tmp_path / "worker.py").write_text(
        f"import os, pathlib, torch, {name} as script\n"
        f"agent = script.train(script.Args(run_dir='out', **{SHORT | more}))\n"
        "threads = pathlib.Path('/proc/self/task').glob('*/comm')\n"
        "assert not [path for path in threads if 'gloo' in path.read_text()]\n"
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
    assert evaluation(tmp_path / "out")["global_step"] == steps


def test_two_workers_learn(tmp_path):
    flags = {"total_timesteps": 65_536, "num_envs": 8, "run_dir": "out"}
    _, *argv = command(**flags)
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *argv]
    done = run(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(metrics(tmp_path / "out")[-1]["global_step"]) == 65_536
    assert evaluation(tmp_path / "out")["mean"] >= 475
