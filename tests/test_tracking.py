"""--track never stops a run in the middle and never asks for anything: it works, refuses at the start, or says once
that it has stopped. No test needs the network."""

import importlib
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import pytest

import bandit
from tests.helpers import SCRIPTS, SHORT, assert_same_agent, command, evaluation, metrics, run, train

NO_ACCOUNT = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
SMALL = dict.fromkeys(SCRIPTS, SHORT) | {"bandit": {"runs": 3, "steps": 10, "agents": "greedy"}}


class Tracker(SimpleNamespace):
    """In place of the module wandb: the run that init returns raises an error when what it is told to is called."""

    def __init__(self, fails, error):
        super().__init__(fails=fails, error=error, calls=[], summary={}, __spec__="found")

    def call(self, name):
        self.calls.append(name)
        if name == self.fails and self.calls.count(name) == (2 if name == "log" else 1):
            raise self.error

    def init(self, **options):
        self.stdin = sys.stdin
        self.call("init")
        return self

    def log(self, row, step=None):
        self.call("log")

    def finish(self):
        self.call("finish")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.call("finish")


@pytest.fixture
def tracker(monkeypatch):
    def install(fails="", error=None):
        fake = Tracker(fails, error or ConnectionError("the server is gone"))
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return install


@pytest.mark.parametrize(("name", "fails"), [*((name, "log") for name in SCRIPTS), ("ppo", "finish")])
def test_a_run_goes_on_when_tracking_fails_and_says_so_once(tmp_path, capsys, tracker, name, fails):
    plain = train(tmp_path / "plain", name)
    capsys.readouterr()
    fake = tracker(fails)
    assert_same_agent(train(tmp_path / "out", name, track=True), plain)
    assert metrics(tmp_path / "out") == metrics(tmp_path / "plain")
    assert evaluation(tmp_path / "out")["returns"] == evaluation(tmp_path / "plain")["returns"]
    captured = capsys.readouterr()
    assert captured.err.count("--track: no longer logging: the server is gone") == captured.err.count("--track") == 1
    assert captured.out.startswith("eval: ")
    assert fake.calls == ["init", "log", "log"] if fails == "log" else fake.calls[-1] == "finish"


@pytest.mark.parametrize("name", SCRIPTS)
def test_tracking_that_cannot_start_is_refused_before_anything_is_written(tmp_path, tracker, name):
    tracker("init", TimeoutError("no answer"))
    module = importlib.import_module(name)
    with pytest.raises(module.InputError, match="--track: no answer; .* WANDB_MODE=offline"):
        train(tmp_path / "out", name, track=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    module = importlib.import_module(name)
    with pytest.raises(module.InputError, match="--track: .*wandb.*; pip install wandb; "):
        train(tmp_path / "out", name, track=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_tracker_cannot_ask_for_input(tmp_path, tracker, name):
    before, fake = sys.stdin, tracker()
    train(tmp_path, name, track=True)
    assert fake.stdin is None
    assert sys.stdin is before


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_the_bandits_results_are_saved_before_tracking_can_fail(tmp_path, capsys, tracker, fails):
    before, fake = sys.stdin, tracker(fails)
    _, folder = bandit.train(
        bandit.Args(**SMALL["bandit"] | {"agents": ("greedy",)}, run_dir=str(tmp_path / "out"), track=True)
    )
    assert (folder / "table.csv").exists()
    assert capsys.readouterr().err.count("--track: not logged to Weights & Biases: the server is gone") == 1
    assert fake.stdin is None
    assert sys.stdin is before


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_without_an_api_key_nothing_waits_for_one_at_a_terminal(tmp_path, name):
    flags = command(**SMALL[name], script=f"{name}.py", run_dir="out", track=True)
    terminal, end = pty.openpty()
    env = NO_ACCOUNT | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "TERM": "xterm"}
    with subprocess.Popen(flags, stdin=end, stdout=end, stderr=end, env=env, cwd=tmp_path) as process:
        os.close(end)
        try:
            status, text = process.wait(timeout=120), b""
        finally:
            process.kill()  # otherwise one that waits for input would be waited for
        try:
            while part := os.read(terminal, 10_000):
                text += part
        except OSError:  # the terminal is closed
            pass
    os.close(terminal)
    text = text.decode()
    assert "Traceback" not in text
    assert text.count("--track") == 1
    assert "API key" in text or "api_key" in text
    if name in SCRIPTS:
        assert status == 2
        assert not (tmp_path / "out").exists()
    else:
        assert status == 0
        assert (tmp_path / "out/table.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_tracking_without_an_account(tmp_path, mode):
    done = run(*command("--track", run_dir="out", **SHORT), cwd=tmp_path, WANDB_MODE=mode, WANDB_API_KEY="")
    assert done.returncode == 0, done.stderr
    assert bool(list((tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb"))) == (mode == "offline")
    assert done.stdout.splitlines()[-1].startswith("eval: ")
    assert "--track" not in done.stderr
