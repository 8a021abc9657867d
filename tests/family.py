"""What the scripts share and how they differ, read from their text.

python -m tests.family                write docs/diffs.md and the diff in README.md from the scripts
python -m tests.family --sync ppo.py  copy what ppo.py shares with the other scripts into them
"""

import argparse
import ast
import difflib
import functools
import re
import sys
from pathlib import Path

from tests.helpers import FAMILY, ROOT, SCRIPTS

STEPS = [("vpg", "a2c"), ("a2c", "trpo"), ("a2c", "ppo")]
FOLD = re.compile(r"^# From here on.*\n", re.MULTILINE)  # between the text above and the text below it
DEFAULT = re.compile(r" = .*?  #")  # in the line of a flag

# Definitions of the same name have the same text in all scripts, except:
MAY_DIFFER = {
    "Args": "a script's own flags come first; the shared ones are compared one by one",
    "CHECKPOINT": "names the script",
    "LIMITS": "lists the script's own flags too",
    "ADV_STD_EPS": "vpg.py adds it to psi, which is not always an advantage",
    "check_batch": "the sizes that must fit each other are the script's own flags",
    "Batch": "what update() needs",
    "update": "the algorithm: how a batch improves the agent",
    "train": "what a batch holds, and who takes the gradient steps",
}
DQN_MAY_DIFFER = {
    "ACTIONS": "lists Discrete alone",
    "collect": "epsilon-greedy; the replay buffer stays in main memory",
}
BELOW = "all below the fold"
BLOCK = "```diff\n{}\n```\n"
OWN_DEFAULTS = {"total_timesteps", "num_envs", "gamma", "learning_rate", "hidden_sizes"}  # of the shared flags


def read(root=ROOT):
    return {name: (root / f"{name}.py").read_text() for name in SCRIPTS}


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


def flags(text):
    """{flag: its line} of Args: the script's own flags, and those that all scripts share, from env_id on."""
    lines = pieces(text)["Args"].splitlines(keepends=True)
    found = [(line.split(":")[0].strip(), line) for line in lines if re.match(r"    \w+: ", line)]
    first = [flag for flag, _ in found].index("env_id")
    return dict(found[:first]), dict(found[first:])


def with_default(line, other):
    """The line of a flag with the default value of another line."""
    (default,) = re.findall(DEFAULT, other)
    return re.sub(DEFAULT, lambda _: default, line)


def shared(one, other, texts):
    """{label: (text as in one script, but for default values, text in the other)} of all that must be the same."""
    ours, theirs = pieces(texts[one]), pieces(texts[other])
    may_differ = MAY_DIFFER | (DQN_MAY_DIFFER if "dqn" in (one, other) else {})
    found = {name: (ours[name], theirs[name]) for name in ours if name in theirs and name not in may_differ}
    (our_own, our_flags), (their_own, their_flags) = flags(texts[one]), flags(texts[other])
    found |= {f"flag {x}": (with_default(our_own[x], line), line) for x, line in their_own.items() if x in our_own}
    lines = [with_default(line, their_flags[x]) if x in OWN_DEFAULTS else line for x, line in our_flags.items()]
    found["the shared flags"] = "".join(lines), "".join(their_flags.values())
    if {one, other} <= set(FAMILY):
        found[BELOW] = tuple(FOLD.split(texts[x])[1] for x in (one, other))
    return found


def disagreements(found):
    """Labels of what the scripts other than the source do not agree on: one of them was edited by hand."""
    versions = {}
    for name, regions in found.items():
        for label, (_, text) in regions.items():
            text = re.sub(DEFAULT, "", text) if "flag" in label else text
            versions.setdefault(label, {}).setdefault(text, []).append(f"{name}.py")
    return [f"{label} ({' / '.join(map(', '.join, x.values()))})" for label, x in versions.items() if len(x) > 1]


def sync(source, root=ROOT, force=False):
    """Copy what a script shares with the others into them, unless these differ among themselves."""
    texts = read(root)
    found = {name: shared(source, name, texts) for name in SCRIPTS if name != source}
    if not force and (labels := disagreements(found)):
        sys.exit(f"nothing is copied, because the other scripts differ in {', '.join(labels)}; --force copies anyway")
    for name, regions in found.items():
        new = {label: pair for label, pair in regions.items() if pair[0] != pair[1]}
        for label, (ours, theirs) in new.items():  # the text below the fold comes last
            texts[name] = texts[name].replace(FOLD.split(texts[name])[1] if label == BELOW else theirs, ours)
        (root / f"{name}.py").write_text(texts[name])
        print(f"{name}.py: {'copied ' + ', '.join(new) if new else 'nothing to do'}")


def diff(ours, theirs):
    """Unified diff of two lists of lines, without its first two."""
    lines = list(difflib.unified_diff(ours, theirs, n=1, lineterm=""))[2:]
    return [re.sub("^@@ .* @@$", "@@", line).rstrip() for line in lines]


def step(one, other, texts):
    """The section of docs/diffs.md on two scripts; their docstrings and what they share at the end left out."""
    above = (re.sub('""".*?"""', "", FOLD.split(texts[x])[0], count=1, flags=re.DOTALL) for x in (one, other))
    lines = diff(*(text.strip().splitlines() for text in above))
    code = [line for line in lines if line[1:].strip() and '    """' not in line]
    removed, added = (sum(line[0] == sign for line in code) for sign in "-+")
    title = f"## {one}.py to {other}.py: {removed} lines removed, {added} added"
    return f"{title}\n\n" + BLOCK.format("\n".join([f"--- {one}.py", f"+++ {other}.py", *lines]))


def core(function):
    """Lines of a function without its docstring, up to the first that assigns policy_loss."""
    lines = re.sub(r'^    """.*?"""\n', "", function, count=1, flags=re.DOTALL | re.MULTILINE).splitlines()
    return lines[: next((i for i, line in enumerate(lines, 1) if line.strip().startswith("policy_loss =")), None)]


def short_diff(texts):
    """How PPO differs from A2C: its objective, and its update up to where that is first used."""
    old, new = pieces(texts["a2c"]), pieces(texts["ppo"])
    objective = [f"+{line}" for line in core(new["clip_objective"])]
    return BLOCK.format("\n".join([*objective, "", *diff(core(old["update"]), core(new["update"]))[1:]]))


def fill(text, texts):
    """The text of docs/diffs.md or README.md, with the diffs of the scripts' texts between its comment marks."""
    diffs = {"diffs": "\n".join(step(*pair, texts) for pair in STEPS), "diff": short_diff(texts)}
    for name, new in diffs.items():
        marks = rf"(<!-- {name}: python -m tests.family -->\n).*(<!-- end of {name} -->\n)"
        text = re.sub(marks, lambda match, new=new: match[1] + new + match[2], text, flags=re.DOTALL)
    return text


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(prog="python -m tests.family", description=__doc__.splitlines()[0])
    parser.add_argument("--sync", choices=[f"{x}.py" for x in SCRIPTS], help="copy what it shares into the others")
    parser.add_argument("--force", action="store_true", help="with --sync: even if the others differ among themselves")
    args = parser.parse_args(argv)
    if args.sync:
        return sync(Path(args.sync).stem, root, args.force)
    for path in root / "docs/diffs.md", root / "README.md":
        path.write_text(fill(path.read_text(), read(root)))


if __name__ == "__main__":
    main()
