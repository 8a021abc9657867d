"""python -m tests.test_family --sync copies what is shared, and loses nobody's work.

The scripts here are small ones in a repository of their own.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests import family
from tests.helpers import FAMILY, ROOT

GUIDE = ROOT / ".github/CONTRIBUTING.md"
SCRIPT = '''"""{name}.py"""

CHECKPOINT = "{name} 1"
LIMITS = {{"gamma": (0, 1)}}


@dataclass
class Args:
    num_steps: int = {steps}  # T, steps

    env_id: str = "CartPole-v1"  # an environment
    num_envs: int = {envs}  # N, environments


# lambda-weighted
@torch.no_grad()
def gae(rew):
    return rew


def update(agent):
    return "{name}"


def train(args):
    return {train}


# From here on: shared by all scripts of the family, the same text in each.


class Run:
    pass


# as torchrun sets them
RANK, WORKERS = 0, 1


def collect(env):
    return {wrap}


if __name__ == "__main__":
    main()
'''
SIZES = {"vpg": (10, 4), "a2c": (20, 8), "trpo": (30, 16), "ppo": (40, 32), "dqn": (50, 64)}


def git(root, *command):
    subprocess.run(["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)


@pytest.fixture
def repository(tmp_path):
    """Five scripts that share gae and all that is below the fold; trpo.py and ppo.py also share train."""
    for name, (steps, envs) in SIZES.items():
        train, wrap = name if name in ("vpg", "a2c") else "env", "env.unwrapped" if name == "dqn" else "env"
        text = SCRIPT.format(name=name, steps=steps, envs=envs, train=train, wrap=wrap)
        if name == "dqn":
            text = text.replace("shared by all scripts of the family, the same text in each", "the text of ppo.py")
        (tmp_path / f"{name}.py").write_text(text)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "start")
    return tmp_path


def edit(root, name, old, new):
    path = root / f"{name}.py"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def texts(root):
    return {name: (root / f"{name}.py").read_text() for name in SIZES}


def sync(root, script="ppo.py"):
    family.main(["--sync", script], root)


def test_an_edit_below_the_fold_reaches_all_scripts(repository):
    before = texts(repository)
    edit(repository, "ppo", "    pass\n", "    step = 0\n")
    sync(repository)
    for name, text in texts(repository).items():
        assert text == before[name].replace("    pass\n", "    step = 0\n")


def test_a_new_definition_below_the_fold_reaches_the_policy_gradients_and_none_is_left_over(repository):
    edit(repository, "ppo", "class Run:\n    pass\n", "def load():\n    return 1\n")
    sync(repository)
    text = (repository / "ppo.py").read_text()
    for name in FAMILY:
        ours = (repository / f"{name}.py").read_text()
        assert ours[family.fold(ours)[1] :] == text[family.fold(text)[1] :]
    assert "load" not in (repository / "dqn.py").read_text()


def test_an_edit_of_a_shared_function_or_constant_reaches_all_scripts_with_its_comment(repository):
    edit(repository, "a2c", "# lambda-weighted\n@torch.no_grad()\ndef gae(rew):\n", "# exact\ndef gae(rew, val):\n")
    edit(repository, "a2c", "# as torchrun sets them\nRANK, WORKERS = 0, 1", "# see torchrun\nRANK, WORKERS = 1, 2")
    sync(repository, "a2c.py")
    for text in texts(repository).values():
        assert "\n\n# exact\ndef gae(rew, val):\n    return rew\n" in text
        assert "lambda-weighted" not in text
        assert "no_grad" not in text
        assert "\n\n# see torchrun\nRANK, WORKERS = 1, 2\n" in text


def test_shared_flags_are_copied_but_for_the_defaults_that_are_a_scripts_own(repository):
    edit(repository, "ppo", "# N, environments", "# N, environments of each worker\n    seed: int = 1  # start")
    edit(repository, "ppo", "# T, steps", "# T, steps of a rollout")
    sync(repository)
    for name, text in texts(repository).items():
        steps, envs = SIZES[name]
        assert f"    num_steps: int = {steps}  # T, steps of a rollout\n\n" in text
        assert f"    num_envs: int = {envs}  # N, environments of each worker\n    seed: int = 1  # start\n\n" in text


def test_what_is_a_scripts_own_stays(repository):
    before = texts(repository)
    edit(repository, "ppo", 'return "ppo"', "return 2")
    edit(repository, "ppo", '"ppo 1"', '"ppo 2"')
    edit(repository, "ppo", '"gamma": (0, 1)', '"gamma": (0, 1), "clip_coef": (0, 1)')
    edit(repository, "ppo", "int = 40", "int = 41")
    edit(repository, "dqn", "env.unwrapped", "env.env")
    sync(repository)
    sync(repository, "dqn.py")
    for name in ("vpg", "a2c", "trpo"):
        assert texts(repository)[name] == before[name]


def test_of_two_scripts_whose_loop_was_the_same_the_loop_stays_the_same(repository):
    edit(repository, "ppo", "return env\n\n\n# From", "return envs\n\n\n# From")
    sync(repository)
    for name in ("trpo", "dqn"):
        assert "def train(args):\n    return envs\n" in (repository / f"{name}.py").read_text()
    for name in ("vpg", "a2c"):
        assert f"def train(args):\n    return {name}\n" in (repository / f"{name}.py").read_text()


@pytest.mark.parametrize(
    ("name", "old", "new", "what"),
    [
        ("vpg", "    pass\n", "    other = 0\n", "vpg.py: the text below the fold (Run)"),
        ("vpg", "# as torchrun sets", "# so torchrun sets", "vpg.py: the text below the fold (RANK, WORKERS)"),
        ("dqn", "    pass\n", "    other = 0\n", "dqn.py: Run"),
        ("trpo", "    return rew\n", "    return -rew\n", "trpo.py: gae"),
    ],
)
def test_a_different_uncommitted_change_is_not_overwritten(repository, capsys, name, old, new, what):
    edit(repository, "ppo", "    pass\n", "    step = 0\n")
    edit(repository, "ppo", "    return rew\n", "    return rew + 0\n")
    edit(repository, name, old, new)
    before = texts(repository)
    with pytest.raises(SystemExit) as stop:
        sync(repository)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"--sync ppo.py: these uncommitted changes would be lost: {what}. Commit or undo")
    assert captured.out == ""
    assert texts(repository) == before

    git(repository, "commit", "-qam", "on purpose")
    edit(repository, "ppo", "    step = 0\n", "    step = 1\n")
    edit(repository, "ppo", "    return rew + 0\n", "    return rew + 1\n")
    sync(repository)
    assert new not in (repository / f"{name}.py").read_text()
    assert "    step = 1\n" in (repository / f"{name}.py").read_text()


def test_uncommitted_changes_of_what_is_not_shared_are_kept(repository):
    edit(repository, "vpg", 'return "vpg"', "return 2")
    edit(repository, "ppo", "    pass\n", "    step = 0\n")
    sync(repository)
    text = (repository / "vpg.py").read_text()
    assert "return 2" in text
    assert "step = 0" in text


def test_the_same_edit_made_by_hand_is_no_obstacle(repository):
    for name in ("ppo", "vpg"):
        edit(repository, name, "    pass\n", "    step = 0\n")
    sync(repository)
    assert all("step = 0" in text for text in texts(repository).values())


def test_an_edit_can_be_synced_again_and_again_before_it_is_committed(repository, capsys):
    edit(repository, "ppo", "    pass\n", "    step = 0\n")
    sync(repository)
    for i in range(3):
        edit(repository, "ppo", f"    step = {i}\n", f"    step = {i + 1}\n")
        sync(repository)
    assert all("    step = 3\n" in text for text in texts(repository).values())
    edit(repository, "vpg", "    step = 3\n", "    step = 4\n")
    edit(repository, "ppo", "    step = 3\n", "    step = 5\n")
    with pytest.raises(SystemExit):
        sync(repository)
    assert "vpg.py: the text below the fold (Run)" in capsys.readouterr().err


def test_without_a_commit_to_compare_with_nothing_is_overwritten(repository, capsys):
    edit(repository, "ppo", "    pass\n", "    step = 0\n")
    subprocess.run(["rm", "-r", repository / ".git"], check=True)
    before = texts(repository)
    with pytest.raises(SystemExit) as stop:
        sync(repository)
    assert stop.value.code == 2
    assert "would be lost" in capsys.readouterr().err
    assert texts(repository) == before


def test_an_unknown_script_is_refused(repository, capsys):
    with pytest.raises(SystemExit) as stop:
        sync(repository, "nope.py")
    assert stop.value.code == 2
    assert "--sync nope.py: not one of vpg.py, a2c.py, trpo.py, ppo.py, dqn.py" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_of_the_guide_runs(repository):
    """In a folder that holds the scripts and the tests."""
    shutil.copytree(ROOT / "tests", repository / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    edit(repository, "ppo", "    pass\n", "    step = 0\n")
    (line,) = re.findall(r"^python (-m tests.test_family --sync \S+)", GUIDE.read_text(), re.MULTILINE)
    command = [sys.executable, *line.split()]
    done = subprocess.run(command, cwd=repository, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vpg.py: copied the text below the fold\n" in done.stdout
    assert all("step = 0" in text for text in texts(repository).values())
