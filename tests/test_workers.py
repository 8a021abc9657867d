"""Several processes: environments in processes of their own, and torchrun's workers."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.helpers import ROOT, SCRIPTS, SHORT, VARIANTS, assert_same_agent, command, evaluation, metrics, run, train

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def write_worker(folder, name, flags, before=""):
    """worker.py: train in the folder `out`, then write the agent of this worker to agent<RANK>.pt."""
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(
        f"import os, pathlib, time, torch, {name} as script\n"
        f"{before}\n"
        f"agent = script.train(script.Args(run_dir='out', **{flags}))\n"
        "threads = pathlib.Path('/proc/self/task').glob('*/comm')\n"
        "assert not [path for path in threads if 'gloo' in path.read_text()]\n"
        "torch.save(agent.state_dict(), f\"agent{os.environ['RANK']}.pt\")\n"
    )


def start_workers(folder, *options):
    """Start worker.py in a folder with torchrun; the options say how many, and where they meet."""
    done = run(*TORCHRUN, *options, "worker.py", cwd=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr


def agents(*paths):
    return [torch.load(path, weights_only=True) for path in paths]


def assert_equal(one, *others):
    for other in others:
        assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_environments_in_processes_of_their_own_give_the_same_run(tmp_path):
    one, two = train(tmp_path / "1"), train(tmp_path / "2", async_envs=True)
    assert_same_agent(one, two)
    assert metrics(tmp_path / "1") == metrics(tmp_path / "2")


@pytest.mark.parametrize(
    ("variant", "workers"),
    [*((variant, 2) for variant in (*SCRIPTS, "vpg total-return")), ("ppo", 4), ("dqn", 4)],
)
def test_workers_train_one_agent(tmp_path, variant, workers):
    """Each steps environments of its own; their parameters stay equal to the bit.

    No thread of the process group is left at the end (on Linux): one of them could abort Python when it exits.
    """
    name, more = VARIANTS[variant]
    write_worker(tmp_path, name, SHORT | more)
    start_workers(tmp_path, "--standalone", f"--nproc-per-node={workers}")
    one, *others = agents(*(tmp_path / f"agent{rank}.pt" for rank in range(workers)))
    assert_equal(one, *others)
    steps = int(metrics(tmp_path / "out")[-1]["global_step"])
    assert one["obs_norm.count"] == steps / workers  # of each worker
    rollout = workers * 4 * 32
    assert steps == 1_280 // rollout * rollout or variant == "vpg total-return"
    assert evaluation(tmp_path / "out")["global_step"] == steps


def test_two_launches_that_meet_at_an_address_are_one_run_of_two_workers(tmp_path):
    """As on two machines, with a worker each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    meet = "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}", "--rdzv-id=test"
    folders = [tmp_path / name for name in ("here", "there", "one")]
    for folder in folders:
        write_worker(folder, "ppo", SHORT)
    here, there, one = folders
    more = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE}
    launches = [subprocess.Popen([*TORCHRUN, *meet, "worker.py"], cwd=folder, **more) for folder in (here, there)]
    errors = [launch.communicate(timeout=120)[1] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], errors
    start_workers(one, "--standalone", "--nproc-per-node=2")
    found = [path for folder in (here, there) for path in folder.glob("agent*.pt")]
    assert sorted(path.name for path in found) == ["agent0.pt", "agent1.pt"]
    assert_equal(*agents(one / "agent0.pt", one / "agent1.pt", *found))
    (folder,) = [folder for folder in (here, there) if (folder / "out").exists()]  # only worker 0 writes
    assert metrics(folder / "out") == metrics(one / "out")


def test_a_checkpoint_that_takes_seconds_changes_nothing_for_the_other_worker(tmp_path):
    slow = "save = torch.save\ntorch.save = lambda *args: (time.sleep(2), save(*args))"
    for name, before in ("slow", slow), ("fast", ""):
        write_worker(tmp_path / name, "ppo", SHORT, before)
        start_workers(tmp_path / name, "--standalone", "--nproc-per-node=2")
    assert_equal(*agents(*(tmp_path / name / f"agent{rank}.pt" for name in ("slow", "fast") for rank in range(2))))
    assert metrics(tmp_path / "slow/out") == metrics(tmp_path / "fast/out")
    assert evaluation(tmp_path / "slow/out")["seconds"] > 4  # two checkpoints before the last rollout


def test_two_workers_learn(tmp_path):
    flags = {"total_timesteps": 65_536, "num_envs": 8, "run_dir": "out"}
    _, *argv = command(**flags)
    done = run(*TORCHRUN, "--standalone", "--nproc-per-node=2", *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(metrics(tmp_path / "out")[-1]["global_step"]) == 65_536
    assert evaluation(tmp_path / "out")["mean"] >= 475
