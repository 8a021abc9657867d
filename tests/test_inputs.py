"""Whatever the flags: a run that works, or one sentence and exit status 2; 1 for numbers that are not finite.

INPUTS=500 python -m pytest tests/test_inputs.py tries 500 command lines per script, others each time.
"""

import contextlib
import importlib
import io
import os
import sys
import tempfile
import typing
from dataclasses import fields
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.helpers import FAMILY

COUNT = int(os.environ.get("INPUTS", 0))

# Small enough for a run in a fraction of a second, if no flag is wrong.
DEEP = {"num_envs": 2, "num_steps": 8, "total_timesteps": 32, "hidden_sizes": 4, "eval_episodes": 1}
BUDGETS = dict.fromkeys(FAMILY, DEEP)
BUDGETS["ppo"] = DEEP | {"num_minibatches": 2, "update_epochs": 2}
BUDGETS["dqn"] = DEEP | {"learning_starts": 8, "batch_size": 4, "buffer_size": 64}
BUDGETS["bandit"] = {"runs": 2, "steps": 5, "agents": "thompson"}
BUDGETS["tabular"] = {"runs": 2, "steps": 20, "agents": "q-learning"}
BUDGETS["rlhf"] = {"sft_steps": 2, "num_comparisons": 64, "reward_epochs": 1, "iterations": 1, "batch_size": 8}
BUDGETS["rlhf"] |= {"eval_responses": 24, "d_model": 4, "num_layers": 1, "num_heads": 1}

LONG = "total_timesteps update_epochs value_epochs gradient_steps cg_iters eval_episodes steps iterations"
LONG = {*LONG.split(), "sft_steps", "reward_epochs"}  # more of these only takes longer

WHOLE, HUGE = "1 2 3 4 8 16 0 -1 1_0 ten 1e3".split(), "100000000000000000000"
REAL = "0 0.5 1 1e-9 0.99 2 10 -1 -0.0 nan inf 1e30 1e308 0,5".split()
TEXT = ["", "x", "a b", "--", "-", ".", "{}", "%s", "$x$", "Größe ✓", "empty", "empty/new"]
ENV_IDS = ["CartPole-v1", "Pendulum-v1", "Blackjack-v1", "ProbeShifted-v0", "ProbeMultiDiscrete-v0", "ProbeDict-v0"]
ENV_IDS += ["CartPole-v9", "CartPole", "CartPole-v1:", ":CartPole-v1", "nowhere:X-v0", "json:X-v0"]
POOLS = {
    "env_id": ENV_IDS,
    "device": ["cpu", "cpu:0", "cpu:1", "cuda", "cuda:99", "mps", "CPU"],
    "resume": ["checkpoint.pt", "nowhere.pt"],
    "env_kwargs": ["{", "[]", "null", "1", '{"is_slippery": false}', '{"x": 1}', '{"map_name": "9x9"}', '{"desc": []}'],
    "judge": ["json", "json:", ":", "builtins:len", "nowhere:x"],
    "prompt": ["how was the soup ?"],
}
AGENTS = "greedy thompson:prior_std=1e9 ucb:c=1 ucb:c ucb:c=1e308 ucb:=1 : gradient:step_size=1e30"
AGENTS += " sarsa:alpha=1 sarsa:alpha=NaN n-step-sarsa:n=10000000000 dyna-q:planning=-1 value-iteration sarsa-lambda"
POOLS["agents"] = AGENTS.split()


def words(field, hint):
    """Strategy for the words that follow a flag."""
    kinds = typing.get_args(hint) or (hint,)
    pool = POOLS.get(field.name, []) + (TEXT if str in kinds else [])
    if int in kinds:
        pool += WHOLE if field.name in LONG else [*WHOLE, HUGE]
    if float in kinds:
        pool += REAL
    if hint is bool:
        return st.sampled_from([[], [], [], ["no"], ["maybe"]])
    for kind in (hint, *kinds):
        if typing.get_origin(kind) is typing.Literal:
            pool += [*typing.get_args(kind), "best"]
    word = st.sampled_from(pool)
    if typing.get_origin(hint) is tuple:
        return st.lists(word, max_size=3)
    return word.map(lambda word: [word])


def command_lines(name):
    """Strategy for the flags of a script: a small budget, changed by up to four flags."""
    args = importlib.import_module(name).Args
    hints = typing.get_type_hints(args)
    small = {flag: [str(value)] for flag, value in BUDGETS[name].items()}
    flags = {field.name: words(field, hints[field.name]) for field in fields(args)}
    changes = st.lists(st.sampled_from(sorted(flags)), max_size=4, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({flag: flags[flag] for flag in names})
    )
    return changes.map(lambda changes: argv(small | changes))


def argv(flags):
    words = []
    for flag, values in flags.items():
        prefix, values = ("no-", []) if values == ["no"] else ("", values)
        words += [f"--{prefix}{flag.replace('_', '-')}", *values]
    return words


def outcome(name, flags):
    """Exit status, stdout and stderr of a command line, in a folder with an empty folder and a bad checkpoint."""
    out, err, status, before = io.StringIO(), io.StringIO(), 0, os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("empty").mkdir()
        Path("checkpoint.pt").write_bytes(b"PK")
        argv = mock.patch.object(sys, "argv", [f"{name}.py", *flags])
        with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                importlib.import_module(name).main()
            except SystemExit as stop:
                status = stop.code
            finally:
                os.chdir(before)
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("name", BUDGETS)
def test_any_command_line_works_or_is_refused_in_a_sentence(name, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    @settings(
        max_examples=COUNT or (5 if name == "rlhf" else 20),
        deadline=None,
        derandomize=not COUNT,
        database=None,
        phases=[Phase.generate],
    )
    @given(command_lines(name))
    def check(flags):
        status, out, err = outcome(name, flags)
        assert status in (0, 1, 2)
        assert "Traceback" not in err
        if status == 0:
            assert out
            return
        *_, last = err.strip().splitlines()
        by_tyro = "For full helptext" in last or last.strip(" ─╯╰") == ""
        assert last.startswith(f"{name}.py: ") or (status == 2 and by_tyro)

    check()


def test_a_generated_command_line_has_flags_of_its_script():
    assert argv({"num_envs": ["2"], "render": ["no"], "hidden_sizes": []}) == [
        "--num-envs",
        "2",
        "--no-render",
        "--hidden-sizes",
    ]
