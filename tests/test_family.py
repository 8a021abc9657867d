"""The scripts are one family: what need not differ is the same text, and the README prints what differs.

`python -m tests.test_family` prints the diffs into the README anew.
"""

import ast
import difflib
import re
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FAMILY = ["vpg", "a2c", "trpo", "ppo"]  # policy gradients
SCRIPTS = [*FAMILY, "dqn"]
PAIRS = list(combinations(SCRIPTS, 2))
STEPS = [("vpg", "a2c"), ("a2c", "trpo"), ("a2c", "ppo")]
SOURCE = {name: (ROOT / f"{name}.py").read_text() for name in SCRIPTS}
SHARED = "# From here on: shared by all scripts of the family, the same text in each.\n"

MAY_DIFFER = {
    "Args": "own flags first; the shared ones are compared below",
    "update": "the algorithm: how a batch improves the agent",
    "train": "what a batch holds, and who takes the gradient steps",
}
DQN_MAY_DIFFER = {
    "make_env": "actions are Discrete: nothing to rescale or clip",
    "setup": "the sizes that must fit each other are those of the replay buffer, and other flags end at 1",
}


def definitions(name):
    """Source of each function and class at the top level."""
    nodes = [node for node in ast.parse(SOURCE[name]).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert len({node.name for node in nodes}) == len(nodes)
    return {node.name: ast.get_source_segment(SOURCE[name], node) for node in nodes}


def code(name):
    """Lines of a script without its docstring and the text shared by all."""
    head, _, body = SOURCE[name].split('"""', 2)
    return (head + body[: body.index(SHARED)]).splitlines()


def diff(one, other):
    """Unified diff of two scripts; what they share at the end, and their docstrings, left out."""
    lines = difflib.unified_diff(code(one), code(other), f"{one}.py", f"{other}.py", n=1, lineterm="")
    return "\n".join(re.sub("^@@ .* @@$", "@@", line).rstrip() for line in lines)


def changes(one, other):
    """How many lines of code go, and how many come; blank lines and docstrings do not count."""
    lines = [line for line in diff(one, other).splitlines()[2:] if line[1:].strip() and '    """' not in line]
    return [sum(line[0] == sign for line in lines) for sign in "-+"]


def section(one, other):
    title = "{}.py to {}.py: {} lines go, {} come".format(one, other, *changes(one, other))
    return f"<details>\n<summary>{title}</summary>\n\n```diff\n{diff(one, other)}\n```\n\n</details>\n"


def readme(text):
    """The README with the sections of all diffs as they are today."""
    start, end = "<!-- diffs: python -m tests.test_family -->\n", "<!-- end of diffs -->\n"
    before, rest = text.split(start)
    return before + start + "\n".join(section(*step) for step in STEPS) + end + rest.split(end)[1]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_what_two_scripts_both_define_is_the_same_text(one, other):
    ours, theirs = definitions(one), definitions(other)
    shared = (ours.keys() & theirs.keys()) - MAY_DIFFER.keys()
    if "dqn" in (one, other):
        shared -= DQN_MAY_DIFFER.keys()
    else:
        assert {"gae", "ActorCritic", "make_env", "setup"} <= shared
    assert {"Run", "RunningNorm", "network", "evaluate", "gradient_step", "main"} <= shared
    assert [name for name in shared if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("name", FAMILY)
def test_all_after_the_loop_is_the_same_text(name):
    assert SOURCE[name].count(SHARED) == 1
    assert SOURCE[name].split(SHARED)[1] == SOURCE["ppo"].split(SHARED)[1]


def flags(name):
    """{flag: its line}, up to env_id the script's own, from there on the shared ones."""
    lines = definitions(name)["Args"].splitlines()[1:]
    return {line.split(":")[0].strip(): line for line in lines if line}


def test_the_two_functions_in_which_dqn_may_differ_differ_in_a_few_lines():
    for name in DQN_MAY_DIFFER:
        ours, theirs = (definitions(script)[name].splitlines() for script in ("dqn", "ppo"))
        assert 0 < len(set(ours) - set(theirs)) <= 8


@pytest.mark.parametrize("name", SCRIPTS)
def test_shared_flags_stand_in_the_same_order_with_the_same_words(name):
    own, shared = "\n".join(flags(name).values()).split("    env_id", 1)
    expected = "\n".join(flags("ppo").values()).split("    env_id", 1)[1]
    for ours, theirs in zip(shared.splitlines(), expected.splitlines(), strict=True):
        flag = ours.split(":")[0].strip()
        if flag in (
            "total_timesteps",
            "num_envs",
            "learning_rate",
            "hidden_sizes",
        ):  # only the default is the algorithm's own
            ours, theirs = (re.sub("= .*?  #", "=  #", line) for line in (ours, theirs))
        assert ours == theirs


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_flags_of_the_same_name_mean_the_same(one, other):
    ours, theirs = flags(one), flags(other)
    for flag in ours.keys() & theirs.keys():
        assert re.sub("= .*?  #", "=  #", ours[flag]) == re.sub("= .*?  #", "=  #", theirs[flag])


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_imports_another(name):
    assert not re.search(rf"^\s*(import|from) ({'|'.join(SCRIPTS)})\b", SOURCE[name], re.MULTILINE)


@pytest.mark.parametrize(("one", "other"), STEPS)
def test_a_diff_can_be_read_in_one_sitting(one, other):
    longest = 75 if other == "trpo" else 65  # trpo.py brings its whole derivation
    assert max(changes(one, other)) <= longest


def test_the_readme_prints_the_diffs_of_today():
    assert readme(README.read_text()) == README.read_text(), "run python -m tests.test_family"


if __name__ == "__main__":
    README.write_text(readme(README.read_text()))
