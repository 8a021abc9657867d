"""The files around the scripts say the same as the scripts."""

import ast
import importlib
import re
import subprocess
import sys
from importlib.metadata import metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.test_family import ROOT, SCRIPTS

README = (ROOT / "README.md").read_text()
FOR_TESTS = {"hypothesis", "pytest", "pytest-xdist", "ruff", "scipy"}  # scipy: benchmarks/plot.py
FOR_OTHERS = {name: {"matplotlib", "psutil"} for name in SCRIPTS}  # what a script does not need, though others do
FOR_OTHERS |= {"dqn": {"matplotlib"}, "bandit": {"moviepy", "psutil", "torch"}}


def versions(requirements):
    """{"numpy": {(2, 2, 6)}} of ["numpy==2.2.6; python_version < '3.11'"], whatever the comparison."""
    found = {}
    for line in requirements:
        name, version = re.match(r"([\w-]+)(?:\[.*\])?[=>]=([\d.]+)", line).groups()
        found.setdefault(name, set()).add(tuple(map(int, version.split("."))))
    return found


def inline_dependencies(script):
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///\n", script.read_text(), re.MULTILINE).group(1)
    block = re.sub(r"^# ?", "", block, flags=re.MULTILINE)
    assert 'requires-python = ">=3.10"' in block
    return ast.literal_eval(re.search(r"dependencies = (\[.*?^\])", block, re.DOTALL | re.MULTILINE).group(1))


@pytest.mark.parametrize("name", [*SCRIPTS, "bandit"])
def test_inline_dependencies_are_lower_bounds_of_the_pinned_requirements(name):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines)
    pinned = versions(lines)
    dependencies = inline_dependencies(ROOT / f"{name}.py")
    assert all(">=" in line for line in dependencies)
    lower = versions(dependencies)
    assert lower.keys() == pinned.keys() - FOR_TESTS - FOR_OTHERS[name]
    for name, (bound,) in lower.items():
        assert bound <= min(pinned[name])


def test_the_pinned_requirements_support_the_oldest_python():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        requirement = Requirement(line)
        installed = metadata(requirement.name)
        markers = requirement.marker is None or requirement.marker.evaluate({"python_version": "3.10"})
        if markers and installed["Version"] in requirement.specifier:
            assert "3.10" in SpecifierSet(installed["Requires-Python"] or ""), line


@pytest.mark.parametrize("name", [*SCRIPTS, "bandit"])
def test_inline_dependencies_cover_the_imports(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    imports = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    imports += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    foreign = {name.split(".")[0] for name in imports} - sys.stdlib_module_names
    assert foreign == {"gymnasium", "matplotlib", "numpy", "psutil", "torch", "tqdm", "tyro", "wandb"} - FOR_OTHERS.get(
        name, {"psutil"}
    )
    assert foreign <= versions(inline_dependencies(ROOT / f"{name}.py")).keys()


@pytest.mark.parametrize("name", [*SCRIPTS, "bandit"])
def test_flags_in_the_readme_exist(name):
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    commands = re.findall(rf"^.*\b{name}\.py\b.*$", blocks, re.MULTILINE)
    assert commands
    fields = importlib.import_module(name).Args.__dataclass_fields__
    for line in commands:
        for flag in re.findall(r"--([a-z-]+)", line.split(f"{name}.py", 1)[1]):
            assert flag.removeprefix("no-").replace("-", "_") in {"help", *fields}, line


def test_files_named_in_the_readme_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_ci_runs_the_tests_as_the_readme_says():
    (line,) = [line for line in README.splitlines() if "python -m pytest" in line]
    assert line.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt && ")
    assert "grep -m 1 'python -m pytest' README.md" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_has_nothing_to_say(command):
    subprocess.run([sys.executable, "-m", "ruff", *command.split(), ROOT], check=True)
