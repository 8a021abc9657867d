"""The scripts are light: what a reader must hold in mind is measured, and bounded.

The bounds are those of the design, but for tokens: it asks for 5,200, and the larger numbers below only stop growth.
An optimizer and networks written out for speed, with what else that takes, cost about 350 tokens in each deep script;
guards against full disks, unusable folders, changed checkpoints, failing trackers and numbers not finite, about 200.
Peers, in the same measures: a script of CleanRL has 1,400 to 2,500 tokens, 5 names of its own in the loop and a
function with a branching of 24 to 28.
"""

import ast
import importlib
import io
import tokenize
from collections import Counter

import pytest

from tests.family import fold
from tests.helpers import ROOT, SCRIPTS

ALL = [*SCRIPTS, "bandit", "tabular", "rlhf"]
MOST_TOKENS = {"a2c": 5_900, "trpo": 6_450, "bandit": 5_200, "tabular": 10_900, "rlhf": 7_650}  # others: 6,400
SOURCE = {name: (ROOT / f"{name}.py").read_text() for name in ALL}
TREE = {name: ast.parse(text) for name, text in SOURCE.items()}
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def tokens_of_lines(text):
    """{line: number of tokens that begin there}; a string is one token, an f-string too, in all versions of Python."""
    counts, depth = Counter(), 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        counts[token.start[0]] += depth == 0 and token.type not in LAYOUT
        depth += (name == "FSTRING_START") - (name == "FSTRING_END")  # its parts are tokens from Python 3.12 on
    return +counts


def branching(function):
    """Number of ways through a function, less one: if, for, while, except, ternary, comprehension; and, or."""
    nodes = list(ast.walk(function))
    single = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension)
    return sum(isinstance(node, single) for node in nodes) + sum(
        len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp)
    )


def own_names(tree, function):
    """The file's functions, classes and constants, methods and attributes that a function uses.

    Fields of a named tuple are data: they do not count, nor does a method of the same name.
    """
    names, attributes, fields = set(), set(), set()
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for part in node.targets for target in ast.walk(part) if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            attributes |= {method.name for method in node.body if isinstance(method, FUNCTIONS)}
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            attributes.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "namedtuple":
            fields |= set(ast.literal_eval(node.args[1]).split())
    (body,) = [node for node in tree.body if isinstance(node, FUNCTIONS) and node.name == function]
    used = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)} & names
    return used | {node.attr for node in ast.walk(body) if isinstance(node, ast.Attribute)} & (attributes - fields)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_algorithm_and_its_loop_end_early(name):
    line = SOURCE[name][: fold(SOURCE[name])[0]].count("\n") + 1
    assert line <= (230 if name == "trpo" else 200)  # TRPO derives its step


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_loop_uses_few_names_of_its_own(name):
    """One more where an optimizer gets a part of the agent, as in all but ppo.py, or a replay buffer is held."""
    names = own_names(TREE[name], "train")
    assert len(names) <= (14 if name == "ppo" else 15), sorted(names)


@pytest.mark.parametrize("name", ALL)
def test_no_line_is_crowded(name):
    crowded = {line: count for line, count in tokens_of_lines(SOURCE[name]).items() if count >= 30}
    assert crowded == {}


@pytest.mark.parametrize("name", ALL)
def test_a_script_is_short(name):
    """The design asks for 5,200 tokens. bandit.py has fewer; the others have not been brought below it."""
    assert tokens_of_lines(SOURCE[name]).total() <= MOST_TOKENS.get(name, 6_400)


@pytest.mark.parametrize("name", ALL)
def test_a_function_does_one_thing(name):
    functions = [node for node in ast.walk(TREE[name]) if isinstance(node, FUNCTIONS)]
    assert {node.name: branching(node) for node in functions if branching(node) > 12} == {}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_names_the_flag_of_another(name):
    """As args.flag, as a string "flag" or "--flag"; docstrings may."""
    fields = {script: set(importlib.import_module(script).Args.__dataclass_fields__) for script in SCRIPTS}
    foreign = set.union(*fields.values()) - fields[name]
    docstrings = [
        node.body[0].value
        for node in ast.walk(TREE[name])
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node)
    ]
    found = set()
    for node in ast.walk(TREE[name]):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("args", "self.args"):
            found |= {node.attr} & foreign
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            text = node.value.replace("-", "_")
            found |= {flag for flag in foreign if text == flag or f"__{flag}" in text}
    assert found == set()


# The measures by hand


def test_tokens_by_hand():
    text = '"""one"""\n\nx = f(1)  # not this\nif x:\n    y = "two words", f"{x} {y + 1}"\n'
    assert tokens_of_lines(text) == {1: 1, 3: 6, 4: 3, 5: 5}


def test_branching_by_hand():
    text = """
def f(x):
    for y in x:  # 1
        while y and x or y:  # 2, and 3, or 4
            pass
    try:
        return [z if z else 0 for z in x if z]  # ternary 5, comprehension 6
    except ValueError:  # 7
        return None
"""
    assert branching(ast.parse(text)) == 7


def test_own_names_by_hand():
    text = """
LIMIT, OTHER = 1, 2
Rollout = namedtuple("Rollout", "obs rew")

class Agent:
    def __init__(self):
        self.step, self.unused = 0, 0

    def act(self, obs):
        return obs

    def rew(self):
        return 1

def gae(x):
    return x

def train(args):
    step = LIMIT
    agent = Agent()
    agent.step += gae(agent.act(args.obs))
    agent.step += args.rollout.rew
"""
    assert own_names(ast.parse(text), "train") == {"LIMIT", "Agent", "step", "gae", "act"}
