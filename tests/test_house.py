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

from tests.helpers import ROOT, SCRIPTS, assert_same_agent

README = (ROOT / "README.md").read_text()
FOR_TESTS = {"hypothesis", "pytest", "pytest-xdist", "ruff", "scipy"}  # scipy: benchmarks/plot.py
FOR_OTHERS = {name: {"matplotlib", "psutil"} for name in SCRIPTS}  # what a script does not need, though others do
FOR_OTHERS |= {"dqn": {"matplotlib"}, "bandit": {"moviepy", "psutil", "torch"}}
FOR_OTHERS |= {"tabular": FOR_OTHERS["bandit"], "rlhf": {"gymnasium", "matplotlib", "moviepy", "psutil", "wandb"}}
OTHERS = ["bandit", "tabular", "rlhf"]


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
    return ast.literal_eval(re.search(r"dependencies = (\[.*\])", block, re.DOTALL).group(1))


@pytest.mark.parametrize("name", [*SCRIPTS, *OTHERS])
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
    """As far as the installed packages tell, which must be the pinned ones for that."""
    others = []
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"python_version": "3.10"}):
            continue
        installed = metadata(requirement.name)
        if installed["Version"] in requirement.specifier:
            assert "3.10" in SpecifierSet(installed["Requires-Python"] or ""), line
        elif not requirement.marker or requirement.marker.evaluate():
            others.append(f"{requirement.name} {installed['Version']}")
    if others:
        pytest.skip(f"not the pinned versions: {', '.join(others)}")


@pytest.mark.parametrize("name", [*SCRIPTS, *OTHERS])
def test_inline_dependencies_cover_the_imports(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    imports = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    imports += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    foreign = {name.split(".")[0] for name in imports} - sys.stdlib_module_names
    assert foreign == {"gymnasium", "matplotlib", "numpy", "psutil", "torch", "tqdm", "tyro", "wandb"} - FOR_OTHERS.get(
        name, {"psutil"}
    )
    assert foreign <= versions(inline_dependencies(ROOT / f"{name}.py")).keys()


@pytest.mark.parametrize("name", [*SCRIPTS, *OTHERS])
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


def test_the_other_ways_to_run_the_checks_use_the_same_versions():
    (pinned,) = re.findall(r"^ruff==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"ruff-pre-commit\n    rev: v(\S+)", hooks) == [pinned]
    workflow = (ROOT / ".github/workflows/tests.yml").read_text()
    (oldest,) = {
        re.search(r'requires-python = ">=(.*)"', (ROOT / f"{name}.py").read_text()).group(1) for name in SCRIPTS
    }
    assert oldest in re.search(r"python: (\[.*\])", workflow).group(1)
    assert workflow.count("pip install -r requirements.txt") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_readmes_python_works_with_every_script(tmp_path, monkeypatch, name):
    """Its blocks from the environment to the agent loaded from a checkpoint, with a small budget."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    environment, train, reload = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "thermostat.py").write_text(environment)
    monkeypatch.delitem(sys.modules, "thermostat", raising=False)
    shown = {}
    for block in (train, reload):
        block = re.sub(r"total_timesteps=[\d_]+", f"total_timesteps={BUDGET}, eval_episodes=1", block)
        block = re.sub(r"\bppo\b", name, block).replace("runs/NAME", str(next((tmp_path / "runs").glob("*"), "")))
        exec(block.replace("ActorCritic", "QNetwork") if name == "dqn" else block, shown)
        if block.startswith(f"import {name}") and "trained" not in shown:
            shown["trained"] = shown["agent"]
    assert_same_agent(shown["trained"], shown["agent"])
    assert shown["trained"] is not shown["agent"]


BUDGET = 4_096


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_has_nothing_to_say(command):
    subprocess.run([sys.executable, "-m", "ruff", *command.split(), ROOT], check=True)
