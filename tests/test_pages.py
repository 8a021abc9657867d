"""The pages docs/<script>.md show the code of today, and their equations parse and survive Markdown."""

import ast
import re

import pytest
from matplotlib.mathtext import MathTextParser

from tests import family, pages
from tests.exercise import EXERCISES, blank

PAGES = pages.pages()
TEXTS = {script: text for script, (_, text) in PAGES.items()}
BOOK = {script: path.read_text() for script, (path, _) in PAGES.items()}
BELOW = {"Gaussian", "SquashedGaussian"}  # of what is shared, what a page may explain too


def equations(page):
    prose = re.sub(r"^```.*?^```|`.*?`", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", prose)


def test_each_deep_script_has_a_page():
    assert {"vpg", "a2c", "trpo", "ppo", "dqn", "rlhf"} <= PAGES.keys()


@pytest.mark.parametrize("script", PAGES)
def test_a_page_is_that_of_today(script):
    page = BOOK[script]
    emptied = re.sub(r"(?<=```python\n)[\s\S]*?(?=^```)", "", page, flags=re.MULTILINE)
    emptied = re.sub(r"\.py#L\d+", ".py#L", pages.MARKS.sub(r"\1\4", emptied))
    assert pages.fill(script, emptied, TEXTS[script]) == page != emptied, "run python -m tests.pages"
    assert page.count("\n") <= 250


@pytest.mark.parametrize("script", PAGES)
def test_every_function_above_the_fold_has_an_entry_or_is_linked_to_the_same_text_on_another_page(script):
    tree = ast.parse(family.FOLD.split(TEXTS[script])[0])
    above = {x.name for x in tree.body if isinstance(x, (ast.FunctionDef, ast.ClassDef))} - {"Args"}
    own = {name.split(".")[0] for name, other, _ in pages.LINKS.findall(BOOK[script]) if other == script}
    linked = re.findall(r"\[(\w+)\]\((\w+)\.md#\1\)", BOOK[script])
    for name, other in linked:
        assert family.pieces(TEXTS[script])[name] == family.pieces(TEXTS[other])[name], name
        assert f"\n### [{name}](" in BOOK[other], name
    assert above <= own | {name for name, _ in linked} <= above | BELOW


@pytest.mark.parametrize("script", PAGES)
def test_every_equation_parses_and_means_nothing_in_markdown(script):
    """A backslash before punctuation and an underscore after it would be lost, as would what stands between two *."""
    found = [one or other for one, other in equations(BOOK[script])]
    assert len(found) >= 4
    for equation in found:
        MathTextParser("agg").parse(f"${equation}$")
        assert set(re.findall(r"Eq\. \d+", equation)) <= set(re.findall(r"Eq\. \d+", TEXTS[script]))
        assert not re.search(r"\\[^a-zA-Z]|[^\w\s]_|\s_|\*|<\S|`", equation), equation


@pytest.mark.parametrize("script", PAGES)
def test_links_to_a_heading_of_a_page_find_it(script):
    for other, anchor in re.findall(r"\]\((\w+)\.md#([\w-]+)\)", BOOK[script]):
        headings = re.findall(r"^#+ \[?(.*?)(?:\].*)?$", BOOK[other], re.MULTILINE)
        assert anchor in [heading.lower().replace(" ", "-") for heading in headings], (other, anchor)


@pytest.mark.parametrize("script", PAGES)
def test_a_page_has_the_scripts_exercises_in_order_of_difficulty(script):
    found = re.findall(r"^\d\. `python -m tests\.exercise (\w+) ([\w.]+)` \((\d+) line", BOOK[script], re.MULTILINE)
    lines = [blank(TEXTS[script], function)[1] for function in EXERCISES[script]]
    assert found == [(script, function, str(n)) for function, n in zip(EXERCISES[script], lines)]
    assert lines == sorted(lines) and lines[0] >= 1 and lines[-1] <= 12
    assert 2 <= len(found) <= 3
