"""What the scripts share and how they differ, read from their text.

python -m tests.family                write docs/diffs.md and the diff in README.md from the scripts
python -m tests.family --sync ppo.py  copy what ppo.py shares with the other scripts into them
"""

import argparse
import ast
import difflib
import functools
import itertools
import re
import sys
import textwrap
from pathlib import Path

from tests.helpers import FAMILY, ROOT, SCRIPTS

FOLD = re.compile(r"^# From here on.*\n", re.MULTILINE)  # between the text above and the text below it
DEFAULT = re.compile(r" = .*?  #|default \S+, for images .*")  # in the line of a flag

# Definitions of the same name have the same text in all scripts, except:
MAY_DIFFER = {
    "Args": "a script's own flags come first; the shared ones are compared line by line",
    "Batch": "what update() needs",
    "update": "the algorithm: how a batch improves the agent",
    "train": "what a batch holds, and which optimizers there are",
}
ONE_MAY_DIFFER = {
    "dqn": {"ACTIONS": "lists Discrete alone", "collect": "epsilon-greedy; the replay buffer is in main memory"}
    | {"td_target": "Q of all actions, and a choice", "td_loss": "Q(s, .), not Q(s, a)"}
    | {"flag tau": "one target network"},
    "ddpg": {"ACTIONS": "lists Box alone", "collect": "the actor's actions and noise; the buffer is in main memory"}
    | {"td_loss": "the target actor's actions", "policy_loss": "Q alone", "ActorCritic": "Q(s, a) and targets"},
    "sac": {"ACTIONS": "lists Box alone", "collect": "sampled actions; the replay buffer is in main memory"}
    | {"ActorCritic": "Q(s, a) and targets; the policy is squashed"},
    "trpo": {"flag max_grad_norm": "only the critic's gradients are clipped"},
}
BELOW = "all below the fold"
# Of the shared flags:
OWN_DEFAULTS = {"env_id", "total_timesteps", "num_envs", "gamma", "learning_rate", "hidden_sizes"}
MARKS = re.compile(r"(<!-- (\w+) ([^>]*): python -m tests\.family -->\n).*?(<!-- end -->\n)", re.DOTALL)


def read(root=ROOT, names=SCRIPTS):
    return {name: (root / f"{name}.py").read_text() for name in names}


@functools.cache
def pieces(text):
    """{name: source} of the functions, classes and constants at the top level, with the comments right above each."""
    lines, found = text.splitlines(keepends=True), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
        else:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1
        while lines[first - 1].startswith("#"):
            first -= 1
        found[name] = "".join(lines[first : node.end_lineno])
    return found


def name_of(line):
    """Of the flag that a line of Args declares."""
    return line.split(":")[0].strip()


def flags(text):
    """Of Args: {flag: its line} of the script's own flags, and the lines that all scripts share, from env_id on."""
    lines = pieces(text)["Args"].splitlines(keepends=True)
    starts = [line.split("(")[0] for line in lines]
    first = next(i for i, line in enumerate(lines) if name_of(line) == "env_id")
    own = {name_of(line): line for line in lines[:first] if re.match(r"    \w+: ", line)}
    return own, lines[first : starts.index("    def __post_init__")]


def with_defaults(line, other):
    """The line of a flag with the default values of another line."""
    values = iter(DEFAULT.findall(other))
    return DEFAULT.sub(lambda match: next(values, match[0]), line)


def shared(one, other, texts):
    """{label: (text as in one script, but for default values, text in the other)} of all that must be the same."""
    ours, theirs = pieces(texts[one]), pieces(texts[other])
    (our_flags, our_lines), (their_flags, their_lines) = flags(texts[one]), flags(texts[other])
    found = {name: (ours[name], theirs[name]) for name in ours if name in theirs}
    found |= {f"flag {x}": (with_defaults(our_flags[x], y), y) for x, y in their_flags.items() if x in our_flags}
    defaults = {name_of(line): line for line in their_lines if name_of(line) in OWN_DEFAULTS}
    lines = [with_defaults(line, defaults.get(name_of(line), line)) for line in our_lines]
    found["the shared flags"] = "".join(lines), "".join(their_lines)
    if {one, other} <= set(FAMILY):
        found[BELOW] = tuple(FOLD.split(texts[x])[1] for x in (one, other))
    may_differ = MAY_DIFFER | ONE_MAY_DIFFER.get(one, {}) | ONE_MAY_DIFFER.get(other, {})
    return {label: pair for label, pair in found.items() if label not in may_differ}


def sync(source, root=ROOT):
    """Copy what a script shares with the others into them, unless these differ among themselves: one was edited too."""
    texts, others = read(root), [name for name in SCRIPTS if name != source]
    for one, other in itertools.combinations(others, 2):
        if labels := [x for x, (ours, theirs) in shared(one, other, texts).items() if ours != theirs]:
            sys.exit(f"nothing is copied, because {one}.py and {other}.py differ in {', '.join(labels)}")
    for name in others:
        new = {label: pair for label, pair in shared(source, name, texts).items() if pair[0] != pair[1]}
        text = texts[name]
        for label, (ours, theirs) in new.items():  # the text below the fold comes last
            text = text.replace(FOLD.split(text)[1] if label == BELOW else theirs, ours)
        (root / f"{name}.py").write_text(text)
        print(f"{name}.py: {'copied ' + ', '.join(new) if new else 'nothing to do'}")


def long_diff(one, other, texts):
    """Of the definitions above the fold but the flags: first those that go; a hunk starts with the name."""
    ours, theirs = (pieces(FOLD.split(texts[x])[0]) for x in (one, other))
    lines = []
    for name in [*(x for x in ours if x not in theirs), *theirs]:
        if name != "Args":
            old, new = (found.get(name, "").splitlines() for found in (ours, theirs))
            changes = list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]
            lines += [re.sub("^@@ .* @@$", f"@@ {name}", line).rstrip() for line in changes]
    return ["```diff", f"--- {one}.py", f"+++ {other}.py", *lines, "```"]


def body(function):
    """Lines of a function without its docstring."""
    return re.sub(r'^    """.*?"""\n', "", function, count=1, flags=re.DOTALL | re.MULTILINE).splitlines()


def short_diff(one, other, texts):
    """Of update, the loop and what the policy's loss is made of, up to the first that is clipped; and the objective."""
    old, new = pieces(texts[one]), pieces(texts[other])
    removed, added = (
        [x for x in body(y["update"]) if re.match(r" +(for|\w*ratio =|policy_loss =) ", x)] for y in (old, new)
    )
    last = next(i for i, line in enumerate(added, 1) if "policy_loss = " in line)
    lines = [*(f"-{x}" for x in removed), *(f"+{x}" for x in added[:last]), ""]
    return ["```diff", *lines, *(f"+{x}" for x in body(new["clip_objective"])), "```"]


def code(script, *names, texts):
    """Functions, and methods such as Learner.learn, of a script."""
    lines = []
    for name in names:
        node, owner = ast.parse(texts[script]), name.rpartition(".")[0]
        for part in name.split("."):
            node = next(x for x in node.body if getattr(x, "name", "") == part)
        text = "\n".join(texts[script].splitlines()[node.lineno - 1 : node.end_lineno])
        lines += ["", "", f"# {script}.py{owner and f', class {owner}'}", *textwrap.dedent(text).splitlines()]
    return ["```python", *lines[2:], "```"]


def fill(text, texts):
    """The text of docs/diffs.md or README.md, with what its comments ask for, from the scripts' texts."""
    kinds = {"diff": long_diff, "short": short_diff, "code": code}

    def new(match):
        lines = kinds[match[2]](*match[3].replace(".py", "").split(), texts=texts)
        return match[1] + "\n".join(lines) + "\n" + match[4]

    return MARKS.sub(new, text)


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(prog="python -m tests.family", description=__doc__.splitlines()[0])
    parser.add_argument("--sync", choices=[f"{x}.py" for x in SCRIPTS], help="copy what it shares into the others")
    args = parser.parse_args(argv)
    if args.sync:
        return sync(Path(args.sync).stem, root)
    texts = read(root, [*SCRIPTS, "tabular", "rlhf"])
    for path in root / "docs/diffs.md", root / "README.md":
        path.write_text(fill(path.read_text(), texts))


if __name__ == "__main__":
    main()
