"""Whatever the flags: a run that works, or one sentence and exit status 2; 1 for numbers that are not finite.

    python -m pytest tests/campaigns/command_lines.py

200 command lines of each script, others each time; INPUTS=1000 tries more.
"""

import dataclasses
import importlib
import os
import typing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.helpers import SCRIPTS

COUNT = int(os.environ.get("INPUTS", 200))

# Small enough for a run in a fraction of a second, if no flag is wrong.
DEEP = {"num_envs": 2, "num_steps": 8, "total_timesteps": 32, "hidden_sizes": 4, "eval_episodes": 1}
BUDGETS = dict.fromkeys(SCRIPTS, DEEP)
BUDGETS["ppo"] = DEEP | {"num_minibatches": 2, "update_epochs": 2}
REPLAY = DEEP | {"learning_starts": 8, "batch_size": 4, "buffer_size": 64}
BUDGETS |= dict.fromkeys(["dqn", "ddpg", "sac"], REPLAY)
BUDGETS["bandit"] = {"runs": 2, "steps": 5, "agents": "thompson"}
BUDGETS["tabular"] = {"runs": 2, "steps": 20, "agents": "q-learning"}
BUDGETS["rlhf"] = {"sft_steps": 2, "num_comparisons": 64, "reward_epochs": 1, "iterations": 1, "batch_size": 8}
BUDGETS["rlhf"] |= {"eval_responses": 24, "d_model": 4, "num_layers": 1, "num_heads": 1}

LONG = "total_timesteps update_epochs value_epochs gradient_steps cg_iters eval_episodes steps iterations"
LONG = {*LONG.split(), "sft_steps", "reward_epochs"}  # more of these only takes longer

WHOLE, HUGE = "1 2 3 4 8 16 0 -1 1_0 ten 1e3 0x10 ²".split(), "100000000000000000000"
REAL = "0 0.5 1 1e-9 0.99 2 10 -1 -0.0 nan inf -inf 1e30 1e308 0,5 99%".split()
TEXT = ["", "x", "a b", "--", "-", ".", "{}", "%s", "$x$", "Größe ✓", "empty", "empty/new", "x" * 5_000]
ENV_IDS = "CartPole-v1 Pendulum-v1 Blackjack-v1 ProbeShifted-v0 ProbeMultiDiscrete-v0 ProbeDict-v0 ProbeLoose-v0"
ENV_IDS += " CartPole-v9 CartPole CartPole-v1: :CartPole-v1 nowhere:X-v0 json:X-v0 ../CartPole-v1 ProbeIntegers-v0"
AGENTS = "greedy thompson:prior_std=1e9 ucb:c=1 ucb:c ucb:c=1e308 ucb:=1 : gradient:step_size=1e30"
AGENTS += " sarsa:alpha=1 sarsa:alpha=NaN n-step-sarsa:n=10000000000 dyna-q:planning=-1 value-iteration sarsa-lambda"
POOLS = {
    "env_id": ENV_IDS.split(),
    "agents": AGENTS.split(),
    "device": ["cpu", "cpu:0", "cpu:1", "cuda", "cuda:99", "mps", "CPU"],
    "resume": ["checkpoint.pt", "nowhere.pt"],
    "env_kwargs": ["{", "[]", "null", "1", '{"is_slippery": false}', '{"x": 1}', '{"map_name": "9x9"}', '{"desc": []}'],
    "judge": ["json", "json:", ":", "builtins:len", "nowhere:x"],
    "prompt": ["how was the soup ?"],
}


def sensible(word):
    """The deep scripts check sizes; another number without a meaning may end in a traceback."""
    return not word.startswith("-") and word not in (HUGE, "1e308")


def words(field, hint, deep):
    """Strategy for the words that follow a flag."""
    kinds = typing.get_args(hint) or (hint,)
    pool = POOLS.get(field.name, []) + (TEXT if str in kinds else [])
    if int in kinds:
        pool += WHOLE if field.name in LONG else [*WHOLE, HUGE, f"-{HUGE}"]
    if float in kinds:
        pool += REAL
    if deep and (int in kinds or float in kinds):
        pool = [word for word in pool if sensible(word)]
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
    flags = {field.name: words(field, hints[field.name], name in SCRIPTS) for field in dataclasses.fields(args)}
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


@pytest.mark.parametrize("name", BUDGETS)
def test_any_command_line_works_or_is_refused_in_a_sentence(main, monkeypatch, tmp_path_factory, name):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    @settings(
        max_examples=COUNT if name != "rlhf" else COUNT // 4,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines(name))
    def check(flags):
        monkeypatch.chdir(tmp_path_factory.mktemp("folder"))
        Path("empty").mkdir()
        Path("checkpoint.pt").write_bytes(b"PK")
        status, out, err = main(name, *flags)
        assert status in (0, 1, 2), flags
        assert "Traceback" not in err, flags
        if status == 0:
            assert out or "--eval-episodes 0" in " ".join(flags), flags
            return
        *_, last = err.strip().splitlines()
        by_tyro = status == 2 and ("For full helptext" in last or last.strip(" ─╯╰") == "")
        assert by_tyro or last.startswith(f"{name}.py: "), flags

    check()
