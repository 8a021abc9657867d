"""Runs that are killed, interrupted or out of disk space at every moment, and checkpoints made to do harm.

    python -m pytest tests/campaigns/faults.py

Most tests fork: the copy of this process can be killed, and need not import anything again.
"""

import csv
import importlib
import io
import itertools
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
import zipfile
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch

from tests.helpers import SCRIPTS, TINY, assert_same_end, command, contents, load, metrics, wait_for

STEPS = [0, 128, 256, 320]  # of the checkpoints of a run of TINY
RUNS = {name: (importlib.import_module(name), TINY[name]) for name in SCRIPTS}
RUNS["ppo continuous"] = RUNS["ppo"][0], TINY["ppo"] | {"env_id": "Pendulum-v1"}
torch.optim.Adam([torch.zeros(1)])  # imports much the first time: here, not in each copy


def fork(task, *args, stderr=None):
    """Call task(*args) in a copy of this process; returns its id. stderr: file descriptor; default: none."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY) if stderr is None else stderr, 2)
        sys.stdout, sys.stderr = open(os.devnull, "w"), open(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        task(*args)
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(pid):
    """Exit status of a process; minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(task, *args):
    """Exit status and stderr of task(*args) in a copy of this process; without what dqn.py says at its start."""
    read, write = os.pipe()
    pid = fork(task, *args, stderr=write)
    os.close(write)
    with open(read) as file:
        lines = [line for line in file if not line.startswith("replay buffer: ")]
    return wait(pid), "".join(lines)


def start(name, folder):
    """Train in this process, from the folder's checkpoint if it holds one."""
    module, flags = RUNS[name]
    checkpoint = folder / "checkpoint.pt"
    resume = str(checkpoint) if checkpoint.exists() else ""
    module.train(module.Args(**flags, run_dir=str(folder), resume=resume))


def main(name, *more, **flags):
    """The command line, in this process."""
    module = importlib.import_module(name.split()[0])
    sys.argv = [f"{module.__name__}.py", *more, *command(**RUNS.get(name, (None, {}))[1] | flags)[2:]]
    module.main()


def saved_step(folder):
    """Step of the folder's checkpoint, None without one."""
    return load(folder)["counters"][0] if (folder / "checkpoint.pt").exists() else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(name): the folder of an undisturbed run; each is made once."""

    @cache
    def make(name):
        folder = tmp_path_factory.mktemp("whole")
        assert wait(fork(start, name, folder)) == 0
        return folder

    return make


# Killed


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_again_and_again_ends_like_one_never_interrupted(tmp_path, whole, name):
    """After random times, until the run ends by itself."""
    begin, chance = time.monotonic(), random.Random(1)
    undisturbed = whole(name)
    longest = time.monotonic() - begin
    for kills in itertools.count():
        pid = fork(start, name, tmp_path / "run")
        time.sleep(chance.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        if wait(pid) == 0:
            break
        assert kills < 1_000, "no progress"
    assert kills > 0
    assert_same_end(tmp_path / "run", undisturbed)


def train_and_die(name, folder, number, moment):
    """Train; kill -9 in a save, counted from 0: when a fraction of the file is written, or before or after renaming."""
    save, replace, count = torch.save, os.replace, itertools.count()

    def dying_save(saved, path):
        save(saved, path)
        if next(count) == number:
            os.truncate(path, int(moment * os.path.getsize(path)))
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_replace(source, target):
        last = next(count) == number
        if not last or moment == "after renaming":
            replace(source, target)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    if isinstance(moment, float):
        torch.save = dying_save
    else:
        os.replace = dying_replace
    start(name, folder)


SAVES = [*itertools.product([*SCRIPTS, "ppo continuous"], [0.0, 0.9, 1.0, "before renaming", "after renaming"])]


@pytest.mark.parametrize(("name", "moment"), SAVES)
def test_a_run_killed_in_any_save_goes_on_from_the_last_complete_one(tmp_path, whole, name, moment):
    for number in range(len(STEPS)):
        folder = tmp_path / str(number)
        assert wait(fork(train_and_die, name, folder, number, moment)) == -signal.SIGKILL
        saved = number if moment == "after renaming" else number - 1
        assert (folder / "checkpoint.pt").exists() == (saved >= 0)
        if saved >= 0:
            assert saved_step(folder) == STEPS[saved]
        assert wait(fork(start, name, folder)) == 0
        assert_same_end(folder, whole(name))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_a_killed_worker_ends_the_other_within_a_minute(tmp_path, name, rank):
    flags = TINY[name] | {"run_dir": "out", "total_timesteps": 10**7}
    argv = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    argv = [sys.executable, *argv, *command(**flags, script=f"{name}.py")[1:]]
    process = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: (tmp_path / "out/metrics.csv").exists() and len(metrics(tmp_path / "out")) > 3)
    children = psutil.Process(process.pid).children(recursive=True)
    (worker,) = [child for child in children if child.environ().get("RANK") == str(rank)]
    worker.kill()
    _, text = process.communicate(timeout=60)
    assert process.returncode != 0 and "Signal 9 (SIGKILL) received" in text
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert saved_step(tmp_path / "out") % 256 == 0


def test_workers_end_when_the_folder_cannot_be_written(tmp_path):
    argv = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command(run_dir="/proc/new")[1:]]
    done = subprocess.run([sys.executable, *argv], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "ppo.py: [Errno 2] No such file or directory: '/proc/new'" in done.stderr


# Ctrl-C

MOMENTS = {  # whose function sends the signal when it has been called so often; the step of the checkpoint
    "collecting": (lambda module: (module.gym.vector.SyncVectorEnv, "step"), [100], 192),
    "updating": (lambda module: (torch.Tensor, "backward"), [6], None),
    "saving": (lambda module: (torch, "save"), [1], 128),
    "saving twice": (lambda module: (torch, "save"), [1, 2], 0),
    "renaming": (lambda module: (os, "replace"), [1], 128),
    "evaluating": (lambda module: (module.gym.wrappers.TimeLimit, "step"), [325], 320),
}


def interrupted(name, moment, folder):
    """The command line with Ctrl-C at a moment."""
    owner, function = MOMENTS[moment][0](RUNS[name][0])
    original, count = getattr(owner, function), itertools.count()

    def interrupting(*args, **kwargs):
        result = original(*args, **kwargs)
        if next(count) in MOMENTS[moment][1]:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    setattr(owner, function, interrupting)
    main(name, run_dir=folder)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_leaves_a_checkpoint_wherever_it_comes(tmp_path, name, moment):
    status, text = outcome(interrupted, name, moment, tmp_path)
    assert status == 130, text
    assert "Traceback" not in text
    found, step = saved_step(tmp_path), MOMENTS[moment][2]
    assert found == step if step is not None else 0 <= found < 320
    said = f"stopped; continue with --resume {tmp_path}/checkpoint.pt" in text
    assert said == (moment not in ("evaluating", "saving twice"))
    assert wait(fork(start, name, tmp_path)) == 0
    assert saved_step(tmp_path) == 320


# A full disk


def fill_disk(name, fault, number, folder):
    """The command line on a disk that is full when a file is written for the number-th time, counted from 0.

    fault: the fraction of a checkpoint that fits, or "metrics.csv", of which a part of a row fits.
    """
    save, writerow, count = torch.save, csv.DictWriter.writerow, itertools.count()

    def limit(size):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit raises OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def full_save(saved, path):
        if next(count) == number:
            last = Path(path).with_suffix("")
            limit(int(fault * last.stat().st_size) if last.exists() else 1_000)
        return save(saved, path)

    def full_writerow(writer, row):
        if next(count) == number:
            limit(300)  # ends within a row
        return writerow(writer, row)

    if isinstance(fault, float):
        torch.save = full_save
    else:
        csv.DictWriter.writerow = full_writerow
    main(name, run_dir=folder)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("fault", "number", "step"),
    [
        *((part, number, STEPS[number - 1]) for part in (0.0, 0.5, 0.9) for number in (1, 2, 3)),
        (0.5, 0, None),
        ("metrics.csv", 6, 128),
    ],
)
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, whole, name, fault, number, step):
    """When space was made, the run goes on as if the disk had not been full."""
    status, text = outcome(fill_disk, name, fault, number, tmp_path)
    assert status != 0, text
    assert saved_step(tmp_path) == step
    if step is not None:
        assert wait(fork(start, name, tmp_path)) == 0
        assert_same_end(tmp_path, whole(name))


# Checkpoints made to do harm


class Bomb:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return (Path("exploded").touch, ())


class Eval:
    def __reduce__(self):
        return (eval, ("open('exploded', 'w').close()",))


def with_pickle(whole, data):
    """A checkpoint whose pickle is replaced by data; the tensors stay."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            archive.writestr(name, data if name.endswith("data.pkl") else old.read(name))
    return new.getvalue()


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def bombs(folder):
    """Files that run code when they are unpickled without care."""
    whole, content = (folder / "checkpoint.pt").read_bytes(), load(folder)
    for bomb in (Bomb(), Eval()):
        yield pickle.dumps(bomb)
        yield pickle.dumps(content | {"agent": bomb})
        yield with_pickle(whole, pickle.dumps(bomb, 2))
        yield with_pickle(whole, pickle.dumps(content | {"args": bomb}, 2))
        yield saved(content | {"agent": bomb})
        yield saved(content | {"args": content["args"] | {"seed": bomb}})
        yield saved(content | {"counters": bomb}, _use_new_zipfile_serialization=False)


def refusal(name, path):
    """The sentence that refuses a checkpoint; nothing is written."""
    before, script = contents(Path.cwd()), name.split()[0]
    status, text = outcome(lambda: main(script, f"--resume={path}"))
    assert status == 2 and "Traceback" not in text, text
    sentence = text.splitlines()[-1]  # torch may have warned before
    assert sentence.startswith(f"{script}.py: --resume {path}: ")
    assert contents(Path.cwd()) == before
    return sentence


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_code_of_a_checkpoint_is_run(tmp_path, monkeypatch, whole, name):
    monkeypatch.chdir(tmp_path)
    for data in bombs(whole(name)):
        Path("bomb.pt").write_bytes(data)
        assert "not a checkpoint" in refusal(name, "bomb.pt")


def test_the_bombs_of_these_tests_explode(tmp_path, monkeypatch, whole):
    """Without weights_only, most of them; those that are not in torch's format only with pickle itself."""
    monkeypatch.chdir(tmp_path)
    exploded = Path("exploded")
    for data in bombs(whole("ppo")):
        for explode in (lambda file: torch.load(file, weights_only=False), pickle.load):
            try:
                explode(io.BytesIO(data))
            except Exception:
                continue
            break
        assert exploded.exists()
        exploded.unlink()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_file_that_is_not_a_whole_checkpoint_of_this_version_is_refused(tmp_path, monkeypatch, whole, name):
    monkeypatch.chdir(tmp_path)
    data, content = (whole(name) / "checkpoint.pt").read_bytes(), load(whole(name))
    wrong = [b"", b"text\n", os.urandom(1_000), pickle.dumps([1]), saved([1]), saved(torch.zeros(3)), saved({})]
    wrong += [data[: int(part * len(data))] for part in (0.01, 0.5, 0.9, 0.999)] + [data[:-1], data[1:]]
    cases = [(x, "checkpoint") for x in wrong]
    cases.append((saved(content | {"args": content["args"] | {"new_flag": 1}}), "version"))
    for part in content.keys() - {"args", "counters"}:
        cases.append((saved({key: x for key, x in content.items() if key != part}), f"its {part} does not fit"))
        if part != "replay":  # empty if it is large
            cases.append((saved(content | {part: {}}), f"its {part} does not fit"))
    for data, words in cases:
        Path("wrong.pt").write_bytes(data)
        assert words in refusal(name, "wrong.pt")
