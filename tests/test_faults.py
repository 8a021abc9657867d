"""Faults of the machine and of files: killed runs, full disks, folders and checkpoints that cannot be used.

Most tests fork. The copy of the process can be killed, and need not import anything again.
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
from pathlib import Path

import psutil
import pytest
import torch

import rlhf
from tests.helpers import FAMILY, SCRIPTS, command, load, metrics
from tests.test_rlhf import SMALL

TINY = {"num_envs": 2, "num_steps": 16, "total_timesteps": 320, "checkpoint_every": 128, "eval_episodes": 1}
TINY |= {"hidden_sizes": (8,)}
SLOW = pytest.mark.slow
STEPS = [0, 128, 256, 320]  # of the checkpoints of such a run
FEW = {"ppo": {"update_epochs": 2, "num_minibatches": 2}, "vpg": {"value_epochs": 2}, "trpo": {"value_epochs": 2}}
FEW |= {"a2c": {}, "dqn": {"learning_starts": 50, "batch_size": 8, "buffer_size": 100, "target_interval": 3}}
RUNS = {name: (importlib.import_module(name), TINY | few) for name, few in FEW.items()}
RUNS |= {f"{name} continuous": (RUNS[name][0], RUNS[name][1] | {"env_id": "Pendulum-v1"}) for name in FAMILY}
RUNS["ppo penalty"] = RUNS["ppo"][0], RUNS["ppo"][1] | {"objective": "penalty"}
RUNS["ppo async"] = RUNS["ppo"][0], RUNS["ppo"][1] | {"async_envs": True}
RUNS |= {f"rlhf {name}": (rlhf, SMALL | {"algorithm": name}) for name in ("ppo", "rloo", "grpo", "dpo")}
OTHERS = ["vpg", "a2c", "trpo", "dqn"]  # their text is that of ppo.py where these tests look


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
    """Exit status and stderr of task(*args) in a copy of this process."""
    read, write = os.pipe()
    pid = fork(task, *args, stderr=write)
    os.close(write)
    with open(read) as file:
        text = file.read()
    return wait(pid), text


def start(module, flags, folder):
    """Train in this process, from the folder's checkpoint if it holds one."""
    checkpoint = folder / "checkpoint.pt"
    resume = str(checkpoint) if checkpoint.exists() else ""
    return module.train(module.Args(**flags | {"run_dir": str(folder), "resume": resume}))


def main(module, *flags):
    """The command line, in this process."""
    sys.argv = [f"{module.__name__}.py", *map(str, flags)]
    module.main()


def as_flags(flags):
    """Flags of a command line; hidden_sizes is a tuple of one number."""
    return command(**{name: value[0] if isinstance(value, tuple) else value for name, value in flags.items()})[2:]


def flatten(value, path=""):
    """{path: leaf} of nested dictionaries and lists."""
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, x in items for key, leaf in flatten(x, f"{path}/{name}").items()}
    return {path: value}


def assert_same_end(folder, whole):
    """Equal rows of metrics, and equal checkpoints to the bit, but for times and the folder's name."""
    assert metrics(folder) == metrics(whole)
    ours, theirs = (flatten(load(path)) for path in (folder, whole))
    assert ours.keys() == theirs.keys()
    times = {"/seconds", "/metrics_size", "/args/run_dir", "/args/resume"}
    assert [key for key in ours.keys() - times if not same(ours[key], theirs[key])] == []


def same(x, y):
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(name): the folder of an undisturbed run; each is made once."""
    folders = {}

    def make(name, **flags):
        key = name, *flags.items()
        if key not in folders:
            module, given = RUNS[name]
            folders[key] = tmp_path_factory.mktemp("whole")
            assert wait(fork(start, module, given | flags, folders[key])) == 0
        return folders[key]

    return make


# Killed


def kill_again_and_again(name, folder, chance, longest):
    """Train and kill -9 after random seconds, until the run ends by itself; returns the number of kills."""
    for kills in range(1_000):
        pid = fork(start, *RUNS[name], folder)
        time.sleep(chance.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        status = wait(pid)
        if status == 0:
            return kills
        assert status == -signal.SIGKILL
    raise AssertionError("no progress")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "ppo continuous", "dqn", "rlhf ppo", "rlhf dpo"])
def test_a_run_killed_again_and_again_ends_like_one_never_interrupted(tmp_path, whole, name):
    begin = time.monotonic()
    undisturbed = whole(name)
    longest = time.monotonic() - begin
    assert kill_again_and_again(name, tmp_path / "run", random.Random(1), longest) > 0
    assert_same_end(tmp_path / "run", undisturbed)


def train_and_die(module, flags, folder, number, moment):
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
    start(module, flags, folder)


def check_death_in_save(name, folder, whole, number, moment):
    """A run that is killed in a save leaves the checkpoint before or the new one, and ends like one never killed."""
    module, flags = RUNS[name]
    assert wait(fork(train_and_die, module, flags, folder, number, moment)) == -signal.SIGKILL
    saved = number if moment == "after renaming" else number - 1
    assert (folder / "checkpoint.pt").exists() == (saved >= 0)
    if module is not rlhf and saved >= 0:
        assert load(folder)["step"] == STEPS[saved]
    assert wait(fork(start, module, flags, folder)) == 0
    assert_same_end(folder, whole(name))


@pytest.mark.parametrize("moment", [0.5, "before renaming"])
def test_a_run_killed_in_a_save_goes_on_from_the_last_complete_one(tmp_path, whole, moment):
    for number in (0, 2):
        check_death_in_save("ppo", tmp_path / str(number), whole, number, moment)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo continuous", "a2c", "trpo", "vpg", "dqn", "rlhf ppo", "rlhf dpo"])
def test_every_script_killed_in_a_save_goes_on(tmp_path, whole, name):
    moments = (0.9,) if "rlhf" in name else (0.0, 0.9, 1.0, "after renaming")  # rlhf.py takes seconds each time
    for number, moment in itertools.product(range(len(STEPS)), moments):
        check_death_in_save(name, tmp_path / f"{number} {moment}", whole, number, moment)


@pytest.mark.slow
def test_no_process_is_left_when_a_run_with_environments_in_processes_is_killed(tmp_path):
    argv = command(*as_flags(RUNS["ppo async"][1] | {"run_dir": "out", "total_timesteps": 10**7}))
    process = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: (tmp_path / "out/metrics.csv").exists() and metrics(tmp_path / "out"))
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= TINY["num_envs"]
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_alive(child) for child in children), seconds=10)


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "takes too long"
        time.sleep(0.03)


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# A full disk


def fill_disk(module, fault, number, argv):
    """The command line on a disk that is full when a file is written for the number-th time, counted from 0."""
    save, writerow, write_text, count = torch.save, csv.DictWriter.writerow, Path.write_text, itertools.count()

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

    def full_write_text(path, text):
        if path.name == fault:
            path.write_bytes(text[:10].encode())
            raise OSError(28, "No space left on device")
        return write_text(path, text)

    if isinstance(fault, float):
        torch.save = full_save
    elif fault == "metrics.csv":
        csv.DictWriter.writerow = full_writerow
    else:
        Path.write_text = full_write_text
    main(module, *argv)


def check_full_disk(module, fault, number, folder):
    """Status 1 and one sentence; the checkpoint can be loaded, and the run goes on from it."""
    flags = RUNS[module.__name__][1]
    status, text = outcome(fill_disk, module, fault, number, as_flags(flags | {"run_dir": folder}))
    (sentence,) = [line for line in text.splitlines() if not line.startswith("replay buffer: ")]
    assert status == 1, text
    assert sentence.startswith(f"{module.__name__}.py: ")
    if isinstance(fault, float):
        assert f"cannot write {folder}/checkpoint.pt.new; the disk is full" in sentence
    else:
        assert "File too large" in sentence or "No space left on device" in sentence
    return load(folder) if (folder / "checkpoint.pt").exists() else None


@pytest.mark.parametrize(
    ("name", "fault"),
    [("ppo", 0.5), *(pytest.param(name, part, marks=SLOW) for name in SCRIPTS for part in (0.0, 0.9))],
)
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, whole, name, fault):
    module, flags = RUNS[name]
    for number in range(1, len(STEPS)):
        folder = tmp_path / str(number)
        assert check_full_disk(module, fault, number, folder)["step"] == STEPS[number - 1]
    assert wait(fork(start, module, flags, folder)) == 0  # after space was made
    assert_same_end(folder, whole(name))


def test_a_disk_that_is_full_from_the_start_leaves_no_checkpoint(tmp_path):
    assert check_full_disk(RUNS["ppo"][0], 0.5, 0, tmp_path) is None


@pytest.mark.parametrize("name", ["ppo", pytest.param("dqn", marks=SLOW)])
def test_a_row_of_metrics_that_is_cut_by_a_full_disk_is_written_again(tmp_path, whole, name):
    module, flags = RUNS[name]
    assert check_full_disk(module, "metrics.csv", 6, tmp_path)["step"] == 128
    assert wait(fork(start, module, flags, tmp_path)) == 0
    assert_same_end(tmp_path, whole(name))


def test_a_disk_that_is_full_at_the_evaluation_says_so(tmp_path, whole):
    assert check_full_disk(RUNS["ppo"][0], "eval.json", 0, tmp_path)["step"] == 320
    assert_same_end(tmp_path, whole("ppo"))


def test_a_folder_that_is_removed_during_the_run_is_named(tmp_path):
    def train(folder):
        module = RUNS["ppo"][0]
        save = module.Run.save

        def removing(run):
            save(run)
            os.rename(folder, tmp_path / "gone")

        module.Run.save = removing
        main(module, *as_flags(RUNS["ppo"][1] | {"run_dir": folder}))

    status, text = outcome(train, tmp_path / "out")
    sentence = f"ppo.py: cannot write {tmp_path}/out/checkpoint.pt.new; the disk is full or the folder gone\n"
    assert (status, text) == (1, sentence)


def test_the_error_of_an_environment_keeps_its_traceback(tmp_path):
    def train(folder):
        def step(env, act):
            raise ConnectionResetError("the simulator is gone")

        module = RUNS["ppo"][0]
        module.gym.wrappers.TimeLimit.step = step
        main(module, *as_flags(RUNS["ppo"][1] | {"run_dir": folder}))

    _, text = outcome(train, tmp_path)
    assert "Traceback" in text
    assert text.endswith("ConnectionResetError: the simulator is gone\n")
    assert load(tmp_path)["step"] == 0


def test_an_error_of_the_bandit_is_one_sentence(tmp_path):
    module = importlib.import_module("bandit")
    status, text = outcome(fill_disk, module, "args.json", 0, as_flags({"run_dir": tmp_path, "runs": 2, "steps": 5}))
    assert (status, text) == (2, f"bandit.py: --run-dir {tmp_path}: [Errno 28] No space left on device\n")

    def fill(folder):
        def full(*args):
            raise OSError(28, "No space left on device")

        module.write = full
        main(module, *as_flags({"run_dir": folder, "runs": 2, "steps": 5}))

    assert outcome(fill, tmp_path / "2") == (1, "bandit.py: [Errno 28] No space left on device\n")


# Folders that cannot be used


@pytest.mark.parametrize("name", [*SCRIPTS, "bandit"])
@pytest.mark.parametrize("folder", ["/proc/new", "file", "file/new"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, name, folder):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    module, flags = importlib.import_module(name), ("--runs=2", "--steps=5") if name == "bandit" else ()
    status, text = outcome(main, module, *flags, f"--run-dir={folder}")
    assert status == 2, text
    (sentence,) = [line for line in text.splitlines() if not line.startswith("replay buffer: ")]
    assert sentence.startswith(f"{name}.py: --run-dir {folder}: ")
    assert [path.name for path in Path().iterdir()] == ["file"]
    assert Path("file").read_text() == "kept"


# Checkpoints that cannot be used


class Bomb:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return (Path("exploded").touch, ())


class Shell:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


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


def bombs(whole, content):
    """Files that run code when they are unpickled without care."""
    for bomb in (Bomb(), Shell(), Eval()):
        yield pickle.dumps(bomb)
        yield pickle.dumps(content | {"agent": bomb})
        yield with_pickle(whole, pickle.dumps(bomb, 2))
        yield with_pickle(whole, pickle.dumps({"format": content["format"], "args": bomb}, 2))
        yield saved(content | {"agent": bomb})
        yield saved(content | {"args": content["args"] | {"seed": bomb}})
        yield saved(content | {"step": bomb}, _use_new_zipfile_serialization=False)


def refusal(module, path, *flags):
    """The sentence that refuses a checkpoint."""
    before = sorted(Path().rglob("*"))
    status, text = outcome(main, module, f"--resume={path}", *flags)
    assert status == 2, text
    (sentence,) = [line for line in text.splitlines() if not line.startswith("replay buffer: ")]
    assert sentence.startswith(f"{module.__name__}.py: --resume {path}: ")
    assert sorted(Path().rglob("*")) == before
    return sentence


@pytest.mark.parametrize("name", ["ppo", *(pytest.param(name, marks=SLOW) for name in (*OTHERS, "rlhf ppo"))])
def test_no_code_of_a_checkpoint_is_run(tmp_path, monkeypatch, whole, name):
    monkeypatch.chdir(tmp_path)
    content = load(whole(name))
    for data in bombs((whole(name) / "checkpoint.pt").read_bytes(), content):
        Path("bomb.pt").write_bytes(data)
        assert "not a checkpoint" in refusal(RUNS[name][0], "bomb.pt")


def test_the_bombs_of_these_tests_explode(tmp_path, monkeypatch, whole):
    """Without weights_only, most of them; those that are not in torch's format only with pickle itself."""
    monkeypatch.chdir(tmp_path)
    exploded = Path("exploded")
    for data in bombs((whole("ppo") / "checkpoint.pt").read_bytes(), load(whole("ppo"))):
        for explode in (lambda file: torch.load(file, weights_only=False), pickle.load):
            try:
                explode(io.BytesIO(data))
            except Exception:
                continue
            break
        assert exploded.exists()
        exploded.unlink()


@pytest.mark.parametrize("name", ["ppo", *(pytest.param(name, marks=SLOW) for name in (*OTHERS, "rlhf ppo"))])
def test_a_file_that_is_not_a_whole_checkpoint_is_refused(tmp_path, monkeypatch, whole, name):
    monkeypatch.chdir(tmp_path)
    data = (whole(name) / "checkpoint.pt").read_bytes()
    foreign = [b"", b"text\n", os.urandom(1_000), pickle.dumps([1]), saved([1]), saved(torch.zeros(3)), saved({})]
    foreign += [data[: int(part * len(data))] for part in (0.01, 0.5, 0.9, 0.999)] + [data[:-1], data[1:]]
    foreign += [saved(load(whole(name)) | {"format": None})]
    for wrong in foreign:
        Path("wrong.pt").write_bytes(wrong)
        assert "checkpoint" in refusal(RUNS[name][0], "wrong.pt")
    assert "not a checkpoint (FileNotFoundError)" in refusal(RUNS[name][0], "nowhere.pt")
    assert "not a checkpoint (IsADirectoryError)" in refusal(RUNS[name][0], tmp_path)


@pytest.mark.parametrize("name", ["ppo", *(pytest.param(name, marks=SLOW) for name in OTHERS)])
def test_a_checkpoint_of_a_changed_script_is_refused(tmp_path, monkeypatch, whole, name):
    """Its format says that it fits, but it has a flag or lacks a part that this script does not know or needs."""
    monkeypatch.chdir(tmp_path)
    content = load(whole(name))
    parts = [part for part, value in content.items() if isinstance(value, dict) and part != "args"]
    assert {"agent", "optimizer"} <= set(parts)
    for part in parts:
        torch.save({key: value for key, value in content.items() if key != part}, "part.pt")
        assert f"its {part} does not fit the flags" in refusal(RUNS[name][0], "part.pt")
        torch.save(content | {part: {}}, "part.pt")
        assert f"its {part} does not fit the flags" in refusal(RUNS[name][0], "part.pt")
    torch.save(content | {"args": content["args"] | {"new_flag": 1}}, "flag.pt")
    assert "flags of another version" in (sentence := refusal(RUNS[name][0], "flag.pt"))
    assert "'new_flag'" in sentence
    torch.save({key: value for key, value in content.items() if key != "args"}, "args.pt")
    assert "flags of another version ('args')" in refusal(RUNS[name][0], "args.pt")


# Ctrl-C


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def interrupted(module, moment, argv):
    """The command line with Ctrl-C at a moment."""
    count = itertools.count()

    def after(owner, name, number, times=1):
        original = getattr(owner, name)

        def function(*args, **kwargs):
            result = original(*args, **kwargs)
            if next(count) in range(number, number + times):
                interrupt()
            return result

        setattr(owner, name, function)

    places = {
        "collecting": (module.gym.vector.SyncVectorEnv, "step", 100),
        "updating": (torch.Tensor, "backward", 8),
        "in the optimizer": (torch.Tensor, "lerp_", 31),
        "saving": (torch, "save", 1),
        "saving twice": (torch, "save", 1, 2),
        "renaming": (os, "replace", 1),
        "evaluating": (module.gym.wrappers.TimeLimit, "step", 5 + TINY["total_timesteps"]),
    }
    after(*places[moment])
    main(module, *argv)


@pytest.mark.parametrize("name", ["ppo", *(pytest.param(name, marks=SLOW) for name in OTHERS)])
@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("collecting", 192),
        ("updating", None),
        ("in the optimizer", None),
        ("saving", 128),
        ("saving twice", 0),
        ("renaming", 128),
        ("evaluating", 320),
    ],
)
def test_ctrl_c_leaves_a_checkpoint_wherever_it_comes(tmp_path, name, moment, step):
    module, flags = RUNS[name]
    status, text = outcome(interrupted, module, moment, as_flags(flags | {"run_dir": tmp_path}))
    assert status == 130, text
    assert "Traceback" not in text
    found = load(tmp_path)["step"]
    assert found == step if step is not None else 0 <= found < 320
    says = f"stopped at step {found}; continue with --resume {tmp_path}/checkpoint.pt" in text
    assert says == (moment not in ("evaluating", "saving twice"))
    assert wait(fork(start, module, flags, tmp_path)) == 0
    assert load(tmp_path)["step"] == 320


# Workers


def find_workers(process):
    """{rank: process} of torchrun's workers."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            found[int(child.environ()["RANK"])] = child
        except (KeyError, psutil.Error):
            continue
    return found


def start_workers(folder, name="ppo", **flags):
    flags = RUNS[name][1] | {"run_dir": "out", "total_timesteps": 10**7} | flags
    _, *argv = command(*as_flags(flags), script=f"{name}.py")
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *argv]
    process = subprocess.Popen(argv, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: (folder / "out/metrics.csv").exists() and len(metrics(folder / "out")) > 3)
    return process


def check_killed_worker(folder, name, rank, delay=0.0):
    """Kill a worker; returns how many seconds later torchrun ended. The other worker is gone too, with a message."""
    process = start_workers(folder, name)
    workers = find_workers(process)
    assert sorted(workers) == [0, 1]
    time.sleep(delay)
    start = time.monotonic()
    workers[rank].kill()
    _, text = process.communicate(timeout=60)
    seconds = time.monotonic() - start
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL) received" in text
    assert not any(is_alive(worker) for worker in workers.values())
    assert load(folder / "out")["step"] % 128 == 0
    return seconds


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_a_killed_worker_ends_the_others_within_a_minute(tmp_path, name, rank):
    assert check_killed_worker(tmp_path, name, rank) < 60


@pytest.mark.slow
def test_workers_end_when_the_folder_cannot_be_written(tmp_path):
    _, *argv = command(run_dir="/proc/new")
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *argv]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "ppo.py: --run-dir /proc/new: " in done.stderr
