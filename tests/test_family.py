"""The scripts are one family: what need not differ is the same text, and what differs is printed in docs/diffs.md.

python -m tests.test_family                write docs/diffs.md and the diff in README.md from the scripts
python -m tests.test_family --sync ppo.py  copy what ppo.py shares with the other scripts into them
"""

import re
from itertools import combinations

import pytest

from tests import family
from tests.helpers import FAMILY, ROOT, SCRIPTS

PAIRS = list(combinations(SCRIPTS, 2))
SOURCE = {name: (ROOT / f"{name}.py").read_text() for name in SCRIPTS}
PIECES = {name: family.pieces(text) for name, text in SOURCE.items()}
FLAGS = {name: family.flags(text) for name, text in SOURCE.items()}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_what_two_scripts_both_define_is_the_same_text(one, other):
    ours, theirs = PIECES[one], PIECES[other]
    shared = [name for name in ours if name in theirs and family.is_shared(name, one, other)]
    assert {"Run", "RunningNorm", "make_env", "network", "evaluate", "Adam", "MLP", "setup", "main"} <= set(shared)
    if "dqn" not in (one, other):
        assert {"gae", "collect", "ActorCritic", "wrap_actions"} <= set(shared)
    assert [name for name in shared if ours[name] != theirs[name]] == []


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("bandit", "tabular", "InputError check mean_and_error make_agent parse results_folder write main"),
        ("ppo", "rlhf", "gae minibatches check_limits load"),
    ],
)
def test_the_scripts_that_stand_alone_borrow_these_texts(one, other, shared):
    ours, theirs = (family.pieces((ROOT / f"{name}.py").read_text()) for name in (one, other))
    assert [name for name in shared.split() if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("name", FAMILY)
def test_all_below_the_fold_is_the_same_text(name):
    text, expected = SOURCE[name], SOURCE["ppo"]
    assert text[family.fold(text)[0] :] == expected[family.fold(expected)[0] :]


@pytest.mark.parametrize("name", family.DQN_MAY_DIFFER)
def test_what_may_differ_in_dqn_does(name):
    assert PIECES["dqn"][name] != PIECES["ppo"][name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_shared_flags_stand_in_the_same_order_with_the_same_words(name):
    def shared(flags):
        lines = list(flags.items())[list(flags).index("env_id") :]
        return [
            family.with_default(line, FLAGS["ppo"][flag]) if flag in family.OWN_DEFAULTS else line
            for flag, line in lines
        ]

    assert shared(FLAGS[name]) == shared(FLAGS["ppo"])


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_flags_of_the_same_name_mean_the_same(one, other):
    ours, theirs = FLAGS[one], FLAGS[other]
    for flag in ours.keys() & theirs.keys():
        assert family.with_default(ours[flag], theirs[flag]) == theirs[flag]


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_imports_another(name):
    assert not re.search(rf"^\s*(import|from) ({'|'.join(SCRIPTS)})\b", SOURCE[name], re.MULTILINE)


@pytest.mark.parametrize(("one", "other"), [("a2c", "trpo"), ("a2c", "ppo"), ("trpo", "ppo")])
def test_the_loops_of_a2c_trpo_and_ppo_differ_in_six_lines_at_most(one, other):
    """They collect and evaluate alike; only what a batch holds and who takes the gradient steps is their own."""
    lines = family.unified(*(PIECES[name]["train"].splitlines() for name in (one, other)))
    assert max(family.changes(lines)) <= 6


def test_the_diffs_in_docs_are_those_of_today():
    text = (ROOT / "docs/diffs.md").read_text()
    assert family.page(text) == text, "run python -m tests.test_family"


def test_the_diff_in_the_readme_is_that_of_today():
    text = (ROOT / "README.md").read_text()
    assert family.readme(text) == text, "run python -m tests.test_family"


if __name__ == "__main__":
    family.main()
