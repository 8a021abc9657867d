import importlib
import os
import sys

import pytest
import torch

import tests.environments  # noqa: F401  registers the probes
from tests.helpers import command

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)

ORDER = "learning probes shared vpg a2c trpo ppo dqn continuous ddpg sac bandit tabular rlhf".split()
ORDER += "ordinary users runs house pages exercises recipes ideas notebook".split()


def pytest_collection_modifyitems(items):
    """The order of a specification: what is learned, the equations of each script, runs, the house."""
    rank = {f"test_{name}": i for i, name in enumerate(ORDER)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(ORDER)))


@pytest.fixture(autouse=True)
def small_numbers():
    """A training flushes denormal numbers to zero for its whole process; hypothesis refuses to work like that."""
    torch.set_flush_denormal(False)


@pytest.fixture
def spy(monkeypatch):
    """spy(owner, "function") lets the function work as before and returns the list of its calls.

    A call is the tuple of its arguments; with note, what note(*arguments) returned just before the call; with
    results=True, what the function returned.
    """

    def install(owner, name, note=lambda *args, **kwargs: args, results=False):
        original, calls = getattr(owner, name), []

        def recorded(*args, **kwargs):
            if not results:
                calls.append(note(*args, **kwargs))
            result = original(*args, **kwargs)
            if results:
                calls.append(result)
            return result

        monkeypatch.setattr(owner, name, recorded)
        return calls

    return install


@pytest.fixture
def main(monkeypatch, capsys):
    """main("ppo", "--track", seed=2): exit status, stdout and stderr of a command line, in this process."""

    def call(script, *words, **flags):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words), *command(**flags)[2:]])
        capsys.readouterr()
        status = 0
        try:
            importlib.import_module(script).main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call
