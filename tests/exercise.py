"""Exercises that check themselves: write a function of a script anew.

python -m tests.exercise ppo clip_objective   write exercises/ppo_clip_objective.py; later: test what you wrote there

The copy of the script lacks the body of the function, or its first paragraph if the body has more than twelve lines.
The function's equation and a hint are in docs/ppo.md. To start anew, delete the copy.
"""

import argparse
import contextlib
import sys
import types

import gymnasium as gym
import pytest

from tests.helpers import CONTINUOUS, ROOT
from tests.pages import definition

EXERCISES = {  # {script: {function: which of the script's tests}}, in order of difficulty
    "vpg": {
        "reward_to_go": "time_limit_ends_the_return or reward_to_go_is_exact",
        "total_return": "time_limit_ends_the_return or only_the_total_return",
        "started_before": "began_in_time",
    },
    "a2c": {
        "gae": "((gae or worth_its_value) and a2c and not ppo) or with_lambda_1",
        "update": "losses_by_hand or entropy_bonus",
    },
    "trpo": {
        "surrogate": "surrogate_by_hand",
        "natural_gradient_step": "ends_on_the_boundary or without_a_natural_gradient",
        "conjugate_gradient": "conjugate_gradient_by_hand or residual_is_nearly_0",
    },
    "ppo": {
        "clip_objective": "clipped_objective_by_hand",
        "adapt_beta": "beta_halves or beta_stays",
        "minibatches": "minibatches_show",
    },
    "dqn": {
        "td_target": "gradient_step_by_hand",
        "n_step_return": "samples_are or every_stored_step",
        "td_loss": "gradient_step_by_hand or only_the_value_of_the_action",
    },
    "ddpg": {
        "policy_loss": "gradient_vanishes or the_gradient_is_that_of_q or first_critic_alone",
        "smooth": "smoothing_is",
        "td_loss": "target_actors_action or smaller_of_two or target_noise_changes or (both_critics and ddpg)",
    },
    "bandit": {
        "GradientBandit.policy": "gradient_actions or step_of_the_gradient",
        "UCB.get_action": "ucb_pulls",
        "GradientBandit.observe": "step_of_the_gradient or expected_step",
    },
    "tabular": {
        "q_values": "figure_4_1",
        "value_iteration": "figure_4_3",
        "q_learning": "one_step_methods and q-learning",
    },
    "sac": {
        "soft_value": "a_state_is_soft",
        "temperature_loss": "alpha_rises",
        "policy_loss": "loss_is_the_same or twins_trains_the_actor or does_not_change_the_temperature",
    },
    "rlhf": {
        "preference_loss": "preference_loss_by_hand",
        "token_rewards": "whatever_the_critic",
        "optimum": "give_the_optimum",
    },
}


def blank(text, function):
    """The text of a script without the body of a function; and how many lines that were, without empty ones."""
    node, header, end = definition(text, function)
    lines = text.splitlines(keepends=True)
    if sum(1 for line in lines[header:end] if line.strip()) > 12:
        end = next(i for i in range(header, end) if not lines[i].strip())
    todo = " " * (node.col_offset + 4) + "raise NotImplementedError\n"
    return "".join([*lines[:header], todo, *lines[end:]]), sum(1 for line in lines[header:end] if line.strip())


@contextlib.contextmanager
def in_place_of(script, path):
    """Whoever imports the script gets the module that the file at path defines."""
    before, registered = dict(sys.modules), dict(gym.registry)
    module = sys.modules[script] = types.ModuleType(script)
    module.__file__ = str(ROOT / f"{script}.py")  # names the folders of runs
    try:
        exec(compile(path.read_text(), path, "exec"), vars(module))
        for name in [x for x in sys.modules if x.startswith("tests.test_")]:  # hold the script's own module
            del sys.modules[name]
        yield
    finally:
        for name in [x for x in sys.modules if x.startswith("tests.test_") or x == script]:
            del sys.modules[name]
        sys.modules.update(before)
        gym.registry.update(registered)


def check(script, which, path, *options, plugins=()):
    """Run tests of a script on the file at path; returns pytest's exit status."""
    options = *"-q --no-header --disable-warnings -p no:cacheprovider -k".split(), which, *options
    with in_place_of(script, path):
        files = [f"test_{script}.py"] + ["test_continuous.py"] * (script in CONTINUOUS)
        files += ["test_shared.py"] * (script == "a2c")
        return pytest.main([*options, *(str(ROOT / "tests" / name) for name in files)], [*plugins])


def main(argv=None, folder=ROOT / "exercises"):
    parser = argparse.ArgumentParser(prog="python -m tests.exercise", description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="script", required=True)
    for script, functions in EXERCISES.items():
        parsers.add_parser(script).add_argument("function", choices=functions)
    args = parser.parse_args(argv)
    path = folder / f"{args.script}_{args.function}.py"
    if path.exists():
        sys.exit(check(args.script, EXERCISES[args.script][args.function], path, "--tb=short"))
    folder.mkdir(exist_ok=True)
    text, count = blank((ROOT / f"{args.script}.py").read_text(), args.function)
    path.write_text(text)
    command = f"python -m tests.exercise {args.script} {args.function}"
    print(f"Write {args.function} in {path}; it took us {count} lines. Then run this until it passes: {command}")


if __name__ == "__main__":
    main()
