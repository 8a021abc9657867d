"""Mutation testing: of all ways to get one token of a script's mathematics wrong, how many does a fast test notice?

python -m tests.campaigns.mutation ppo dqn --jobs 4       all mutants of two scripts, four at a time
python -m tests.campaigns.mutation ppo --only update gae  the mutants of these functions

A mutant is the script with one token changed in a function above the fold (the comment "From here on ..."): an
operator, a comparison, `and` and `or`, a dropped - or ~ or `not`, min and max, mean and sum, a constant. It is killed
if a test of the script that is not slow fails or does not end. Printed are the survivors and the score; below 95 % the
exit status is 1. What has the same text in ppo.py (gae, for one) is counted there alone: test_house.py compares them.
"""

import argparse
import ast
import itertools
import keyword
import os
import re
import signal
import sys
import time
import tokenize
import types
from importlib import import_module
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parents[2]
TESTS = {name: [f"test_{name}.py", "test_shared.py"] for name in ("vpg", "a2c", "trpo", "ppo", "dqn")}
RATES = "test_shared.py::test_adam_starts_with_the_learning_rates_that_help_names"
TESTS |= {name: [f"test_{name}.py", "test_continuous.py", RATES] for name in ("ddpg", "sac")}
TESTS |= {name: [f"test_{name}.py"] for name in ("bandit", "tabular", "rlhf")}
OPTIONS = [*"-x -q -p no:cacheprovider -p no:faulthandler -m".split(), "not slow and not optional"]

PAIRS = "+ -, * /, & |, += -=, *= /=, &= |=, < >, <= >=, == !=, and or, True False, min max, amin amax, mean sum"
SWAP = {one: other for pair in PAIRS.split(",") for one, other in itertools.permutations(pair.split())}
SWAP |= {"//": "*", "**": "*", "%": "*", "argmax": "argmin", "minimum": "maximum", "maximum": "minimum"}

NOT_COUNTED = {  # what the changed line has, and why
    "torch.optim.Adam(": "a setting, as are the flags' defaults; fused or not, the step is the same",
    "agent.updates -= 1": "only whether it is a multiple counts",
    "act.reshape(len(act), -2)": "to NumPy, any negative number is the size that is left",
}


def functions(text):
    """{name: node} of the functions and methods above the fold."""
    top = ast.parse(text[: re.search(r"^# From here on", text, re.MULTILINE).start()]).body
    owners = [("", top), *((f"{node.name}.", node.body) for node in top if isinstance(node, ast.ClassDef))]
    return {owner + part.name: part for owner, body in owners for part in body if isinstance(part, ast.FunctionDef)}


def operand_ends(token):
    """Whether an operator after this token has a left side, so that - is a difference and * a product."""
    word = token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING) and not keyword.iskeyword(token.string)
    return word or token.string in {")", "]", "}"}


def changed(before, token, after):
    """What to write in place of a token: "" without it, None if there is no other side."""
    word = token.string
    if token.type == tokenize.NUMBER:
        number = ast.literal_eval(word)
        return str(number + 1 if isinstance(number, int) else 2 * number or 1.0)
    if word in ("-", "~", "not") and not operand_ends(before):
        return None if after.type == tokenize.NUMBER or after.string == "in" else ""
    if token.type == tokenize.OP:
        return SWAP.get(word) if operand_ends(before) else None
    called = (after.string == "(" and before.string != "def") or (after.string == "=" and word in ("min", "max"))
    return SWAP.get(word) if called or keyword.iskeyword(word) else None


def mutants(name, only):
    """(line number, line before, line after, text of the mutated script) of each mutant."""
    text, shared = (ROOT / f"{name}.py").read_text(), functions((ROOT / "ppo.py").read_text())
    lines = text.splitlines(keepends=True)
    for function, node in functions(text).items():
        same = name != "ppo" and function in shared and ast.dump(node) == ast.dump(shared[function])
        if same or (only and function not in only):
            continue
        tokens = list(tokenize.generate_tokens(iter(lines[node.lineno - 1 : node.end_lineno]).__next__))
        for before, token, after in zip(tokens, tokens[1:], tokens[2:]):
            new = changed(before, token, after)
            if new is not None:
                i = node.lineno + token.start[0] - 2
                line = lines[i][: token.start[1]] + new + lines[i][token.end[1] :]
                yield i + 1, lines[i].strip(), line.strip(), "".join([*lines[:i], line, *lines[i + 1 :]])


def start(name, text, seconds):
    """Run the tests of a script, with text in its place, in a fork, which need not import; returns its number."""
    child = os.fork()
    if child:
        return child
    signal.alarm(seconds)  # ends the child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    status = 1
    try:
        module = sys.modules[name] = types.ModuleType(name)
        module.__file__ = str(ROOT / f"{name}.py")
        exec(compile(text, module.__file__, "exec"), vars(module))
        status = 0
        for file in TESTS[name]:
            status = status or pytest.main([*OPTIONS, str(ROOT / "tests" / file)])
    finally:
        os._exit(status)


def score(name, jobs, only):
    """Print the survivors of a script; returns the share of mutants that were killed."""
    begin = time.perf_counter()
    if os.waitpid(start(name, (ROOT / f"{name}.py").read_text(), 600), 0)[1] != 0:
        sys.exit(f"{name}: the tests fail without a mutant")
    seconds = 30 + 4 * int(time.perf_counter() - begin)
    todo = [mutant for mutant in mutants(name, only) if not any(part in mutant[2] for part in NOT_COUNTED)]
    running, survivors = {}, 0
    for mutant in [*todo, *[None] * jobs]:
        if running and (mutant is None or len(running) == jobs):
            child, status = os.wait()
            number, before, after, _ = running.pop(child)
            if status == 0:
                survivors += 1
                print(f"{name}.py:{number}: {before}  ->  {after}", flush=True)
        if mutant:
            running[start(name, mutant[3], seconds)] = mutant
    killed = len(todo) - survivors
    print(f"{name}: {killed} of {len(todo)} mutants killed, {killed / len(todo):.1%}", flush=True)
    return killed / len(todo)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="+", choices=TESTS)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--only", nargs="+", help="functions to mutate")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # imports much the first time
    phases = hypothesis.Phase.explicit, hypothesis.Phase.generate
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutation")
    os.chdir(ROOT)
    for name in TESTS:
        import_module(name)
    sys.exit(min([score(name, args.jobs, args.only) for name in args.scripts]) < 0.95)


if __name__ == "__main__":
    main()
