"""Mutation testing: of all ways to get one token of a script's mathematics wrong, how many does a fast test notice?

python -m tests.campaigns.mutation ppo dqn --jobs 4       all mutants of two scripts, four at a time
python -m tests.campaigns.mutation ppo --only update gae  the mutants of these functions

A mutant is the script with one token changed in a function above the fold (the comment "From here on ..."): an operator,
a comparison, `and` and `or`, a dropped - or ~ or `not`, min and max, mean and sum, a constant. It is killed if a test of
the script that is not slow fails, or does not end. Printed are the survivors and the score; the exit status is 1 if a
score is below 95 %. Functions with the same text in ppo.py (gae, for one) are counted there alone: test_house.py makes
sure that the text is the same. Each mutant runs in a fork of this process, which has imported torch once.
"""

import argparse
import ast
import itertools
import os
import re
import signal
import sys
import time
import types
from importlib import import_module
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parents[2]
TESTS = {name: [f"test_{name}.py", "test_shared.py"] for name in ("vpg", "a2c", "trpo", "ppo", "dqn")}
TESTS |= {name: [f"test_{name}.py"] for name in ("bandit", "tabular", "rlhf")}
OPTIONS = "-x -q --no-header -p no:cacheprovider -p no:faulthandler -m".split()

PAIRS = ["+ -", "* /", "& |", "+= -=", "*= /=", "&= |=", "< >", "<= >=", "== !=", "and or"]
PAIRS += ["min max", "amin amax", "minimum maximum", "argmin argmax", "mean sum"]
SWAP = {one: other for pair in PAIRS for one, other in itertools.permutations(pair.split())}
SWAP |= {"//": "*", "**": "*", "%": "*", "in": "not in", "not in": "in", "is": "is not", "is not": "is"}
OPERATOR = re.compile(r"[^\s()#\w]+|is not|not in|\w+")

# Mutants that compute the same: {script: {the changed line: why}}
EQUIVALENT = {}


def functions(text):
    """{name: node} of the functions and methods above the fold."""
    fold = re.search(r"^# From here on", text, re.MULTILINE).start()
    found = {}
    for node in ast.parse(text[:fold]).body:
        parts = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + part.name: part for part in parts if isinstance(part, ast.FunctionDef)}
    return found


def walk(node):
    """The expressions of a function in the order of the text, without annotations, decorators and f-strings."""
    if hasattr(node, "lineno"):
        yield node
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
    for field, value in ast.iter_fields(node) if not negative else []:
        for child in value if isinstance(value, list) else [value]:
            skipped = isinstance(child, ast.JoinedStr) or field in ("annotation", "returns", "decorator_list")
            if isinstance(child, ast.AST) and not skipped:
                yield from walk(child)


def changed_names(node, start, end, position):
    """(start, end, new text) for a call, a constant or a sign; see changes."""
    match node:
        case ast.UnaryOp(operand=ast.Constant(value=value), op=ast.USub()):  # a negative number is one constant
            yield start, end, str(1 - value if isinstance(value, int) else -2 * value)
        case ast.UnaryOp():
            yield start, start + (4 if isinstance(node.op, ast.Not) else 1), ""
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            end = position(node.func.end_lineno, node.func.end_col_offset)
            names = [(end, name)] if name in SWAP else []
            for keyword in node.keywords if name.rstrip("_") in ("clamp", "clip") else []:
                names.append((position(keyword.lineno, keyword.col_offset) + len(keyword.arg), keyword.arg))
            yield from ((end - len(name), end, SWAP[name]) for end, name in names)
        case ast.Constant(value=bool() as value):
            yield start, end, str(not value)
        case ast.Constant(value=int() | float() as value):
            yield start, end, str(value + 1 if isinstance(value, int) else 2 * value or 1.0)


def changes(node, text, position):
    """(start, end, new text) for each token of a node that can be changed; position(line, column) is one in text."""
    start, end = position(node.lineno, node.col_offset), position(node.end_lineno, node.end_col_offset)
    yield from changed_names(node, start, end, position)
    operands = {ast.BinOp: ["left", "right"], ast.AugAssign: ["target", "value"], ast.BoolOp: ["values"]}
    operands[ast.Compare] = ["left", "comparators"]
    parts = [getattr(node, field) for field in operands.get(type(node), [])]
    parts = [part for one in parts for part in (one if isinstance(one, list) else [one])]
    for one, other in itertools.pairwise(parts):
        first = position(one.end_lineno, one.end_col_offset)
        found = OPERATOR.search(text, first, position(other.lineno, other.col_offset))
        if found[0] in SWAP:
            yield *found.span(), SWAP[found[0]]


def mutants(name, only=()):
    """(line number, line before, line after, text of the mutated script) of each mutant."""
    text, shared = (ROOT / f"{name}.py").read_text(), functions((ROOT / "ppo.py").read_text())
    assert text.isascii(), "columns of ast are bytes"
    starts = [0, *itertools.accumulate(map(len, text.splitlines(keepends=True)))]
    for function, node in functions(text).items():
        same = name != "ppo" and function in shared and ast.dump(node) == ast.dump(shared[function])
        if same or (only and function not in only):
            continue
        for part in walk(node):
            for start, end, new in changes(part, text, lambda line, column: starts[line - 1] + column):
                number, mutated = text.count("\n", 0, start), text[:start] + new + text[end:]
                yield number + 1, *(x.splitlines()[number].strip() for x in (text, mutated)), mutated


def start(name, text, seconds):
    """Run the tests of a script in a child process, with text in its place; returns the child's number."""
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
        for file in TESTS[name]:
            status = pytest.main([*OPTIONS, "not slow and not optional", str(ROOT / "tests" / file)])
            if status:
                break
    finally:
        os._exit(status)


def score(name, jobs, only):
    """Print the survivors of a script; returns the share of mutants that were killed."""
    begin = time.perf_counter()
    if os.waitpid(start(name, (ROOT / f"{name}.py").read_text(), 600), 0)[1] != 0:
        sys.exit(f"{name}: the tests fail without a mutant")
    seconds = 30 + 4 * int(time.perf_counter() - begin)
    todo = [mutant for mutant in mutants(name, only) if mutant[2] not in EQUIVALENT.get(name, {})]
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
    parser.add_argument("--only", nargs="+", default=(), metavar="FUNCTION", help="mutate these functions alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    phases = hypothesis.Phase.explicit, hypothesis.Phase.generate
    hypothesis.settings.register_profile("mutation", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutation")
    os.chdir(ROOT)
    for name in TESTS:
        import_module(name)
    sys.exit(min([score(name, args.jobs, args.only) for name in args.scripts]) < 0.95)


if __name__ == "__main__":
    main()
