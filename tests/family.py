"""What the scripts share and how they differ, read from their text.

python -m tests.test_family                write docs/diffs.md and the diff in README.md from the scripts
python -m tests.test_family --sync ppo.py  copy what ppo.py shares with the other scripts into them
"""

import argparse
import ast
import difflib
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers import FAMILY, ROOT, SCRIPTS

STEPS = [("vpg", "a2c"), ("a2c", "trpo"), ("a2c", "ppo")]
FOLD = re.compile(r"^# From here on.*\n", re.MULTILINE)

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
BELOW = "the text below the fold"
OWN_DEFAULTS = {
    "total_timesteps",
    "num_envs",
    "gamma",
    "learning_rate",
    "hidden_sizes",
}  # shared flags, tuned for each script


def fold(text):
    """Where the fold comment begins and ends: the text after it is shared by the policy-gradient scripts."""
    (match,) = FOLD.finditer(text)
    return match.span()


def pieces(text):
    """{name: source} of the functions, classes and constants at the top level, with the comments right above each."""
    lines, found = text.splitlines(keepends=True), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            name = ast.get_source_segment(text, node.targets[0])
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
        else:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))]) - 1
        while lines[first - 1].startswith("#"):
            first -= 1
        assert name not in found, f"{name} is defined twice"
        found[name] = "".join(lines[first : node.end_lineno])
    return found


def flags(text):
    """{flag: its line} of Args; the script's own flags come first, from env_id on they are shared."""
    lines = pieces(text)["Args"].splitlines(keepends=True)
    return {line.split(":")[0].strip(): line for line in lines if re.match(r"    \w+: ", line)}


def with_default(line, other):
    """The line of a flag with the default value of another line."""
    pattern = r"^(    \w+: [^=]* = )(.*?)(  #.*\n)$"
    (start, _, comment), (_, default, _) = (re.match(pattern, x).groups() for x in (line, other))
    return start + default + comment


# Copy what is shared


class SyncError(Exception):
    """The scripts cannot be made alike without losing someone's work."""


def is_shared(name, one, other):
    return name not in MAY_DIFFER and not (name in DQN_MAY_DIFFER and "dqn" in (one, other))


def regions(text, whole_tail):
    """{label: text} of all that can be copied: flags, definitions, and in the family all that is below the fold."""
    own, shared = [], []
    for flag, line in flags(text).items():
        (shared if shared or flag == "env_id" else own).append((f"flag {flag}", line))
    found = {label: line for label, line in own} | {"the shared flags": "".join(line for _, line in shared)}
    start, end = fold(text)
    stop = start if whole_tail else len(text)
    found |= {name: piece for name, piece in pieces(text).items() if name != "Args" and text.index(piece) < stop}
    if whole_tail:
        found[BELOW] = text[end:]
    return found


def copied(label, ours, theirs):
    """A region of theirs as it is after copying ours, which keeps the default values that are a script's own."""
    if label.startswith("flag "):
        return with_default(ours, theirs)
    if label == "the shared flags":
        defaults = {line.split(":")[0].strip(): line for line in theirs.splitlines(keepends=True)}
        lines = [(line.split(":")[0].strip(), line) for line in ours.splitlines(keepends=True)]
        keep = OWN_DEFAULTS & defaults.keys()
        return "".join(with_default(line, defaults[flag]) if flag in keep else line for flag, line in lines)
    return ours


def sync(source, root):
    """{script: (its new text, {label: each region that is new})} for the siblings of a script.

    A region is replaced only if it is that of the last commit or was written by an earlier sync, which leaves what it
    writes in git's object store. Raises SyncError if an uncommitted change would be lost.
    """
    result, lost = {}, []
    for name in [name for name in SCRIPTS if name != source and (root / f"{name}.py").exists()]:
        whole_tail = {source, name} <= set(FAMILY)
        text = (root / f"{name}.py").read_text()
        ours, theirs = regions((root / f"{source}.py").read_text(), whole_tail), regions(text, whole_tail)
        ours_before, theirs_before = committed(source, root, whole_tail), committed(name, root, whole_tail)
        new = {}
        for label in [label for label in theirs if label in ours]:
            was_equal = label in theirs_before and theirs_before[label] == ours_before.get(label)
            piece = copied(label, ours[label], theirs[label])
            copy = is_shared(label, source, name) or (was_equal and label != "LIMITS")  # an equal loop stays equal
            if piece == theirs[label] or not copy:
                continue
            if theirs[label] != theirs_before.get(label) and not was_synced(root, theirs[label]):
                lost.append(f"{name}.py: {describe(label, theirs_before.get(label, ''), theirs[label])}")
            assert text.count(theirs[label]) == 1, f"{name}.py: {label} occurs twice"
            new[label], text = piece, text.replace(theirs[label], piece)
        result[name] = text, new
    if lost:
        advice = f"commit or undo them first, or copy them to {source}.py"
        raise SyncError(f"these uncommitted changes would be lost: {'; '.join(lost)}. {advice.capitalize()}.")
    return result


def git(root, *command, text=None):
    """What a git command prints, or None if it fails."""
    done = subprocess.run(["git", "-C", root, *command], input=text, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def committed(name, root, whole_tail):
    """The regions of a script as of the last commit."""
    text = git(root, "show", f"HEAD:./{name}.py")
    return regions(text, whole_tail) if text else {}


def was_synced(root, text):
    """Whether git's object store holds a text."""
    name = git(root, "hash-object", "--stdin", text=text)
    return name is not None and git(root, "cat-file", "-e", name.strip()) is not None


def describe(label, before, after):
    """The label, and for the text below the fold the names of the definitions in it that differ."""
    if label != BELOW:
        return label
    before, after = pieces(before), pieces(after)
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return f"{label} ({', '.join(names) or 'comments'})"


def write_synced(result, root):
    for name, (text, new) in result.items():
        (root / f"{name}.py").write_text(text)
        for piece in new.values():
            git(root, "hash-object", "-w", "--stdin", text=piece)
        print(f"{name}.py: {'copied ' + ', '.join(new) if new else 'nothing to do'}")


# Show what differs


def code(text):
    """Lines of a script without its docstring and without what is below the fold."""
    head, _, body = text.split('"""', 2)
    return (head + body[: fold(body)[0]]).strip().splitlines()


def unified(ours, theirs, **names):
    lines = difflib.unified_diff(ours, theirs, **names, n=1, lineterm="")
    return [re.sub("^@@ .* @@$", "@@", line).rstrip() for line in lines]


def diff(one, other, root=ROOT):
    """Unified diff of two scripts, lines; their docstrings and what they share at the end left out."""
    ours, theirs = (code((root / f"{name}.py").read_text()) for name in (one, other))
    return unified(ours, theirs, fromfile=f"{one}.py", tofile=f"{other}.py")


def changes(lines):
    """How many lines of a diff are removed and added; blank lines and docstrings do not count."""
    lines = [line for line in lines[2:] if line[1:].strip() and '    """' not in line]
    return [sum(line[0] == sign for line in lines) for sign in "-+"]


def page(text, root=ROOT):
    """docs/diffs.md with the diffs of today."""
    sections = []
    for one, other in STEPS:
        lines = diff(one, other, root)
        title = "{}.py to {}.py: {} lines removed, {} added".format(one, other, *changes(lines))
        sections.append(f"## {title}\n\n" + block(lines))
    return between("diffs", text, "\n".join(sections))


def readme(text, root=ROOT):
    """README.md with the short diff of today."""
    return between("diff", text, block(short_diff(root)))


def block(lines):
    return "```diff\n" + "\n".join(lines) + "\n```\n"


def between(name, text, new):
    """The text with new between two comments that name what is written there."""
    start, end = f"<!-- {name}: python -m tests.test_family -->\n", f"<!-- end of {name} -->\n"
    before, rest = text.split(start)
    return before + start + new + end + rest.split(end)[1]


def short_diff(root=ROOT):
    """How PPO differs from A2C, lines: its objective, and its update up to where that is first used."""
    old, new = (pieces((root / f"{name}.py").read_text()) for name in ("a2c", "ppo"))
    lines = [f"+{line}" for line in core(new["clip_objective"])]
    return [*lines, "", *unified(core(old["update"]), core(new["update"]))[3:]]


def core(function):
    """Lines of a function without its docstring, up to the first that assigns policy_loss."""
    lines = re.sub(r'^    """.*?"""\n', "", function, count=1, flags=re.DOTALL | re.MULTILINE).splitlines()
    ends = [i for i, line in enumerate(lines, 1) if line.strip().startswith("policy_loss =")]
    return lines[: ends[0]] if ends else lines


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(prog="python -m tests.test_family", description=__doc__.splitlines()[0])
    parser.add_argument("--sync", metavar="SCRIPT", help="copy what this script shares with the others into them")
    args = parser.parse_args(argv)
    if not args.sync:
        for path, write in (root / "docs/diffs.md", page), (root / "README.md", readme):
            path.write_text(write(path.read_text(), root))
        return
    source = Path(args.sync).stem
    if source not in SCRIPTS:
        parser.error(f"--sync {args.sync}: not one of {', '.join(f'{name}.py' for name in SCRIPTS)}")
    try:
        write_synced(sync(source, root), root)
    except SyncError as error:
        print(f"--sync {args.sync}: {error}", file=sys.stderr)
        sys.exit(2)
