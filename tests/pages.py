"""Pages that show a script's equations beside its code: docs/<script>.md.

python -m tests.pages   fill them from the scripts and from README.md

A page is written by hand, but for line numbers in links such as [gae](../ppo.py#L110), the code under a heading that
has such links, and what stands between one of these comments and <!-- end -->:

    idea         the docstring, without the list of what is not in the paper; "up to TEXT" ends before TEXT
    departures   that list, with links; the comment has for each item: its first words | text in a line | its worth
    failures     the rows of "When it does not learn" that are about the script
"""

import ast
import functools
import re
import textwrap

from tests.helpers import FAMILY, ROOT

MARKS = re.compile(r"(<!-- (\w+)((?:(?!-->).)*?): python -m tests\.pages -->\n).*?(<!-- end -->\n)", re.DOTALL)
LINKS = re.compile(r"\[([A-Za-z_][\w.]*)\]\(\.\./(\w+)\.py#L(\d*)\)")
BLOCKS = re.compile(r"^(### .*\n(?:(?!#).*\n)*?```python\n)[\s\S]*?^```\n", re.MULTILINE)
PLACES = """
advantages minus | adv = (
observations and | class RunningNorm
gradient norms | clip_grad_norm_(
orthogonal | orthogonal_(
tanh on | out.tanh()
bootstrapping | * ~terminated
"""  # of what is not in the papers, if the page does not say
GROUPS = {"policy gradients": FAMILY}  # in the rows of "When it does not learn"

parse = functools.cache(ast.parse)


def definition(text, name):
    """(node, index of the first line of the body, of the line after it) of a function, class or method."""
    node = parse(text)
    for part in name.split("."):
        node = next((x for x in node.body if getattr(x, "name", "") == part), None)
        if node is None:
            raise LookupError(f"{name} is not in the script")
    documented = ast.get_docstring(node) is not None
    return node, node.body[0].end_lineno if documented else node.body[0].lineno - 1, node.end_lineno


def docstring(text):
    """(idea, items of what is not in the paper, what is left out, shapes) of a script."""
    pattern = r"(.*?)(?:\nNot in the papers?:\n(.*?)(Left out.*?)?)?(?:\n\n(Shapes: .*))?"
    groups = re.fullmatch(pattern, ast.get_docstring(parse(text)), re.DOTALL).groups("")
    head, items, left_out, shapes = (group.strip() for group in groups)
    items = [" ".join(item.split()) for item in re.split(r"^- ", items, flags=re.MULTILINE)[1:]]
    return head, items, " ".join(left_out.split()), shapes


def idea(script, text, argument):
    head, _, _, shapes = docstring(text)
    head = head.split(argument.removeprefix("up to "))[0] if argument else head
    head = re.sub(r"^( .*)\n(?=[A-Z])", r"\1\n\n", head, flags=re.MULTILINE)  # what follows a list is not its last item
    paragraphs = f"{head.strip()}\n\n{shapes}".strip().split("\n\n")
    paragraphs = [re.sub(r"(?<=\w-)\n(?=\w)", "", x) for x in paragraphs]
    lists = [re.search(r"^( |- )", x, re.MULTILINE) for x in paragraphs]
    filled = [x if listed else textwrap.fill(x, 120, break_on_hyphens=False) for x, listed in zip(paragraphs, lists)]
    return "\n\n".join(filled).splitlines()


def departures(script, text, argument):
    _, items, left_out, _ = docstring(text)
    lines, after = text.splitlines(), parse(text).body[0].end_lineno
    places = [place.split(" | ") for place in f"{argument}{PLACES}".strip().splitlines()]
    worths = any(worth for _, _, *worth in places)
    measured = f"\n## {script}.py\n" in (ROOT / "docs/details.md").read_text()
    title = "not in the paper" + measured * " ([what each is worth](details.md))"
    rows = [f"| {title} | line |" + worths * " worth |", "|---|---|" + worths * "---|"]
    for item in items:
        _, found, *worth = next((place for place in places if item.startswith(place[0])), ("", item))
        number = next((i for i, line in enumerate(lines, 1) if i > after and found in line), None)
        if number is None:
            raise LookupError(f"docs/{script}.md: which line of {script}.py is about {found!r}?")
        cells = [item.replace("|", "\\|"), f"[{number}](../{script}.py#L{number})", *(worth or ["-"] * worths)]
        rows.append(f"| {' | '.join(cells)} |")
    return [*rows, *["", left_out] * bool(left_out)]


def failures(script, *_):
    section = (ROOT / "README.md").read_text().split("\n## When it does not learn\n")[1].split("\n## ")[0]
    rows = []
    for row in re.findall(r"^\|.*\|$", section, re.MULTILINE):
        found = re.match(r"\| `\w+` \((.*?)\)", row)
        if not found or script in GROUPS.get(found[1], found[1].split(", ")):
            rows.append(re.sub(r"^(\| `\w+`) \(.*?\)", r"\1", row))
    return rows


KINDS = {"idea": idea, "departures": departures, "failures": failures}


def code(text, name):
    """A definition without its docstring; of train only the loop from "# Collect" on."""
    node, header, end = definition(text, name)
    lines = text.splitlines()
    shown = lines[node.lineno - 1 : node.body[0].lineno - 1] + lines[header:end]
    if name == "train":
        shown = shown[next(i for i, line in enumerate(shown) if "# Collect" in line) : -1]
    return textwrap.dedent("\n".join(shown))


def fill(script, page, text):
    """A page with the code and the lists of today, from the script's text."""

    def mark(match):
        return match[1] + "\n".join(KINDS[match[2]](script, text, match[3].strip())) + "\n" + match[4]

    def link(match):
        return f"[{match[1]}](../{script}.py#L{definition(text, match[1])[0].lineno})"

    def block(match):
        names = [name for name, *_ in LINKS.findall(match[1].splitlines()[0])]
        return match[1] + "\n\n".join(code(text, name) for name in names) + "\n```\n"

    return BLOCKS.sub(block, LINKS.sub(link, MARKS.sub(mark, page)))


def pages():
    """{script: (path of its page, text of the script)}."""
    scripts = {path.stem: path for path in sorted(ROOT.glob("*.py"))}
    paths = {name: ROOT / f"docs/{name}.md" for name in scripts}
    return {name: (path, scripts[name].read_text()) for name, path in paths.items() if path.exists()}


def main():
    for script, (path, text) in pages().items():
        path.write_text(fill(script, path.read_text(), text))


if __name__ == "__main__":
    main()
