"""The files around the scripts say the same as the scripts, and what the scripts share is the same text in each."""

import ast
import functools
import importlib
import re
import subprocess
import sys
from itertools import combinations

import gymnasium as gym
import numpy as np
import pytest
import tyro

from tests import family
from tests.helpers import CONTINUOUS, ROOT, SCRIPTS, assert_same_agent

sys.path.append(str(ROOT / "benchmarks"))  # after the scripts: both folders have a rlhf.py
plot, train, speed, details = map(importlib.import_module, ["plot", "train", "speed", "details"])

ALL = [*SCRIPTS, "bandit", "tabular", "rlhf"]
TEXTS = {name: (ROOT / f"{name}.py").read_text() for name in ALL}
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / ".github/CONTRIBUTING.md",
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("benchmarks/*.md"),
]
ROWS = plot.results()


# Shared text


@pytest.mark.parametrize(("one", "other"), [*combinations(SCRIPTS, 2)])
def test_what_two_scripts_share_is_the_same_text(one, other):
    shared = family.shared(one, other, TEXTS)
    assert {"Run", "RunningNorm", "make_env", "evaluate", "setup_torch", "main", "the shared flags"} <= shared.keys()
    assert [label for label, (ours, theirs) in shared.items() if ours != theirs] == []


def test_bandit_py_and_tabular_py_have_these_texts_in_common():
    ours, theirs = family.pieces(TEXTS["bandit"]), family.pieces(TEXTS["tabular"])
    names = "InputError check mean_and_error parse results_folder write main"
    assert [name for name in names.split() if ours[name] != theirs[name]] == []


def test_rlhf_py_maximizes_the_objective_of_ppo_py():
    ours, theirs = (family.body(family.pieces(TEXTS[name])["clip_objective"]) for name in ("ppo", "rlhf"))
    assert ours == theirs  # but for the docstring


# The tool that copies shared text


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def copies(tmp_path):
    """The scripts in a folder; in ppo.py with a comment in front of a class and a flag more."""
    for name in SCRIPTS:
        (tmp_path / f"{name}.py").write_text(TEXTS[name])
    edit(tmp_path / "ppo.py", "\nclass Run:", "\n# a comment\nclass Run:")
    edit(tmp_path / "ppo.py", "    seed: int", "    first: int = 7  # new\n    seed: int")
    return tmp_path


def test_an_edit_reaches_all_scripts_and_leaves_each_its_own_text_and_defaults(copies):
    family.main(["--sync", "ppo.py"], copies)
    for name, text in family.read(copies).items():
        expected = TEXTS[name].replace("\nclass Run:", "\n# a comment\nclass Run:")
        assert text == expected.replace("    seed: int", "    first: int = 7  # new\n    seed: int")


@pytest.mark.parametrize("name", ["vpg", "dqn"])
def test_a_script_that_was_edited_too_is_not_overwritten(copies, name):
    edit(copies / f"{name}.py", "\nclass Run:", "\n# another\nclass Run:")
    before = family.read(copies)
    with pytest.raises(SystemExit, match=rf"nothing is copied.*{name}\.py.* Run"):
        family.main(["--sync", "ppo.py"], copies)
    assert family.read(copies) == before


# Generated pages, tables and pictures


@pytest.mark.parametrize("path", ["docs/diffs.md", "README.md"])
def test_the_diffs_are_those_of_today(path):
    text = (ROOT / path).read_text()
    emptied = family.MARKS.sub(r"\1\4", text)
    assert family.fill(emptied, TEXTS) == text != emptied, "run python -m tests.family"


@pytest.mark.parametrize("path", plot.DOCUMENTS, ids=["README.md", "benchmarks/README.md", "docs/details.md"])
def test_the_tables_are_those_of_the_data(path):
    text = path.read_text()
    assert plot.fill(text, ROWS) == text, "run python benchmarks/plot.py --readme"
    assert plot.fill(re.sub(r"\| [-\d.]+ \|$", "| 0 |", text, flags=re.MULTILINE), ROWS) == text


@pytest.mark.parametrize("name", plot.PICTURES)
def test_the_pictures_are_those_of_the_data(tmp_path, name):
    plot.PICTURES[name](ROWS, tmp_path / "new.svg")
    assert (tmp_path / "new.svg").read_text() == (ROOT / f"benchmarks/{name}.svg").read_text()


def test_a_cell_is_the_mean_over_seeds_and_the_worst_seed():
    columns = {"script": "ppo", "env_id": "CartPole-v1", "variant": "", "steps": "100000"}
    rows = [columns | {"mean": mean, "worst_episode": worst} for mean, worst in (("500", "490"), ("470", "9"))]
    assert "| CartPole-v1 | 2 | - | - | - | 485 (470) | - | - | - | 100k |" in plot.table_of_results(rows)
    assert "| CartPole-v1 | 475 | - | - | - | 485.0 (470.0; 9), 100k, 1 of 2 | - | - | - |" in plot.table_of_scores(
        rows
    )


def test_speeds_are_medians_and_ratios_are_medians_of_the_ratios_of_a_round():
    speeds = {"ours": (200, 300, 100), "sb3": (100, 100, 200), "floor": (300, 600, 400)}
    rows = [{"case": "ppo", "peer": peer, "steps_per_second": x} for peer, found in speeds.items() for x in found]
    cells = "| 200 | 100; 2.00 (0.50 to 3.00) | - | - | 400; 2.00 (1.50 to 4.00) |"  # of 2, 3, 0.5; of 1.5, 2, 4
    assert cells in plot.table_of_speed(rows)


def test_a_detail_is_the_mean_over_seeds_with_the_worst_and_the_best():
    columns = {"env_id": "Pendulum-v1", "steps": "20000"}
    rows = [
        columns | {"variant": variant, "mean": x} for variant, x in (("", "-160"), ("", "-140"), ("lambda 1", "-900"))
    ]
    lines = plot.table_of_details(rows).splitlines()
    assert lines[0] == "|  | Pendulum-v1, 20k |"
    assert lines[2:] == ["| as it is | -150 (-160 to -140) |", "| lambda 1 | -900 (-900 to -900) |"]


def test_the_interquartile_mean_leaves_out_the_best_and_the_worst_quarter():
    assert plot.iqm(np.array([-1e9, -50, 2, 3, 4, 5, 70, 1e9])) == (2 + 3 + 4 + 5) / 4


def test_curves_of_your_own_runs_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, later in (1, "20,1\n30,2"), (2, "20,\n25,3"):
        folder = tmp_path / f"runs/CartPole-v1__ppo__{seed}__now"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"global_step,episodic_return\n10,\n{later}\n35,4\n")
    monkeypatch.setattr(sys, "argv", ["plot.py", "runs/*", "--out", "a.png"])
    plot.main()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    x, y = plot.align(plot.groups(["runs/*"])["CartPole-v1 ppo"], points=3)  # where both have finished episodes
    assert x.tolist() == [25, 30, 35] and y.tolist() == [[1.5, 2, 4], [3, 3.5, 4]]


def test_the_results_are_those_of_the_commands_of_train_py_on_seeds_that_chose_no_defaults():
    jobs = {job.command: job for job in train.jobs()}
    commands = [row["command"] for row in plot.table("results.csv")]
    assert len(commands) == len(set(commands))
    assert set(commands) <= jobs.keys()
    assert [row["command"] for row in plot.table("curves.csv")] == commands
    assert min(job.seed for job in jobs.values()) == train.FIRST_SEED == 101
    assert all(len(row["curve"]["step"]) <= train.POINTS for row in ROWS)


def test_the_speeds_are_those_of_settings_that_the_scripts_have():
    measured = plot.distinct(plot.table("speed.csv"), "case")
    assert measured == [name for name in speed.CASES if name in measured]
    for case in speed.CASES.values():
        importlib.import_module(case.script).Args(**case.flags)


def test_the_details_are_those_of_the_runs_of_details_py():
    jobs = [{name: str(x) for name, x in job.items()} for job in details.jobs()]
    rows = [{name: row[name] for name in jobs[0]} for row in plot.table("details.csv")]
    assert all(row in jobs for row in rows) and len({str(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("script", details.VARIANTS)
def test_each_departure_can_be_switched_off_by_flags_or_an_edit_of_a_copy(script):
    module = importlib.import_module(script)
    for change in details.VARIANTS[script].values():
        if isinstance(change, tuple):
            compile(details.edited(script, *change), script, "exec")
        else:
            assert tyro.cli(module.Args, args=change.split()) != module.Args()
    with pytest.raises(ValueError, match="not exactly once: self"):
        details.edited(script, "self", "")


# Documents


@functools.cache
def flags_of(path):
    """The flags of a script: fields of Args, parameters of main, and what argparse gets."""
    tree = ast.parse(path.read_text())
    found = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = {text[2:].replace("-", "_") for text in found if text.startswith("--")}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Args":
            found |= {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            found |= {argument.arg for argument in node.args.args}
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_files_and_flags_named_in_a_document_exist(path):
    text = path.read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # code such as critics[0](obs) is no link
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", prose):
        assert (path.parent / link).exists(), link
    for file in re.findall(r"(?<![\w/~.-])(?:tests|benchmarks|docs)/[\w./-]*\w", text):
        assert (ROOT / file).exists(), file
    for module in re.findall(r"python -m (tests\.[\w.]*\w)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    commands = re.findall(r"(?:python|nproc-per-node \d) ((?:benchmarks/)?\w+\.py)([^\n`#;]*)", text)
    commands += [(f"{x.replace('.', '/')}.py", rest) for x, rest in re.findall(r"python -m (tests\.\S+)(.*)", text)]
    for file, rest in commands:
        for flag in re.findall(r" --([a-z-]+)", rest.split("&&")[0]):
            assert flag.removeprefix("no-").replace("-", "_") in {"help", *flags_of(ROOT / file)}, (file, flag)


def test_flags_named_in_the_readme_are_those_of_a_script():
    known = set.union(*(flags_of(ROOT / f"{name}.py") for name in ALL)) | {"help", "standalone", "nproc_per_node"}
    named = re.findall(r"--([a-z][a-z-]+)", re.sub("<!--.*?-->", "", README))
    assert {flag.removeprefix("no-").replace("-", "_") for flag in named} <= known


def test_the_readme_and_ci_have_one_test_command():
    (line,) = [line for line in README.splitlines() if "python -m pytest" in line]
    assert line.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt && ")
    assert "grep -m 1 'python -m pytest' README.md" in (ROOT / ".ci/run").read_text()
    assert line.split(" && ")[-1] in (ROOT / ".github/workflows/tests.yml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in CONTINUOUS])
def test_the_readmes_python_works_with_every_script(tmp_path, monkeypatch, name):
    """Its blocks, from the environment to an episode and to the agent loaded from a checkpoint, with a small budget."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", README + (ROOT / "docs/runs.md").read_text(), re.DOTALL)
    environment, training, loading = blocks
    (tmp_path / "thermostat.py").write_text(environment)
    monkeypatch.delitem(sys.modules, "thermostat", raising=False)
    monkeypatch.delitem(gym.registry, "Thermostat-v0", raising=False)
    trained, loaded = {}, {}
    budget = "total_timesteps=4_096, eval_episodes=1"
    exec(re.sub(r"total_timesteps=[\d_]+", budget, re.sub(r"\bppo\b", name, training)), trained)
    assert trained["truncated"]  # after the whole episode
    (folder,) = (tmp_path / "runs").iterdir()
    loading = re.sub(r"\bppo\b", name, loading).replace("runs/NAME", str(folder))
    exec(loading.replace("ActorCritic", "QNetwork") if name == "dqn" else loading, loaded)
    assert_same_agent(trained["agent"], loaded["agent"])


# Requirements and style


@pytest.mark.parametrize("name", ALL)
def test_the_dependencies_named_in_a_script_are_its_imports(name):
    """So no script imports another."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///\n", TEXTS[name], re.MULTILINE)[1]
    assert 'requires-python = ">=3.10"' in block
    named = set(re.findall(r'"([a-z]+)(?:\[.*?\])?>=[\d.]+"', block))
    nodes = list(ast.walk(ast.parse(TEXTS[name])))
    imports = [x.name for node in nodes if isinstance(node, ast.Import) for x in node.names]
    imports += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    foreign = {x.split(".")[0] for x in imports} - sys.stdlib_module_names
    assert foreign <= named <= foreign | {"moviepy"}  # which Gymnasium imports


def test_the_other_ways_to_run_the_checks_use_the_same_versions():
    (pinned,) = re.findall(r"^ruff==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f"ruff-pre-commit\n    rev: v{pinned} " in (ROOT / ".pre-commit-config.yaml").read_text()
    assert 'python: ["3.10",' in (ROOT / ".github/workflows/tests.yml").read_text()  # the oldest


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_has_nothing_to_say(command):
    subprocess.run([sys.executable, "-m", "ruff", *command.split(), ROOT], check=True)
