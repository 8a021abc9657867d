"""The statistics against known answers, and that both READMEs show what the data hold."""

import csv
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


plot, train, speed = load("plot"), load("train"), load("speed")
ROWS = plot.results()
README, EVIDENCE = (path.read_text() for path in plot.DOCUMENTS)
PROSE = " ".join(EVIDENCE.split())  # without line breaks


# Statistics


def test_the_interquartile_mean_leaves_out_the_best_and_the_worst_quarter():
    assert plot.iqm(np.array([-1e9, -50, 2, 3, 4, 5, 70, 1e9])) == (2 + 3 + 4 + 5) / 4
    assert plot.iqm(np.arange(12.0).reshape(4, 3)).tolist() == [4.5, 5.5, 6.5]  # over runs, for each point


def test_the_interval_covers_the_true_value_about_as_often_as_it_says():
    """200 samples of 20 normal runs; the percentile bootstrap is known to be a little narrow."""
    samples = np.random.default_rng(0).normal(size=(20, 200))
    low, high = plot.interval(samples)
    assert 0.87 < np.mean((low < 0) & (high > 0)) < 0.98


def test_curves_are_compared_where_all_of_them_are():
    runs = [(np.array([0, 10.0]), np.array([0, 10.0])), (np.array([2, 8.0]), np.array([1, 1.0]))]
    x, y = plot.align(runs, points=4)
    assert x.tolist() == [2, 4, 6, 8]
    assert y.tolist() == [[2, 4, 6, 8], [1, 1, 1, 1]]
    assert np.allclose(plot.align(runs, points=3, log=True)[0], [2, 4, 8])


# Runs


def write_run(folder, returns, env_id="CartPole-v1"):
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(f'{{"env_id": "{env_id}"}}')
    (folder / "eval.json").write_text('{"mean": 3.0, "returns": [2.0, 4.0], "seconds": 1.5}')
    with open(folder / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerow(["global_step", "episodic_return", "seconds"])
        csv.writer(file).writerows((10 * i, value, i) for i, value in enumerate(returns))


def test_runs_are_grouped_by_environment_and_script_or_by_label(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"runs/CartPole-v1__ppo__{seed}__now", ["", 1, 2])
    write_run(tmp_path / "mine", [5, 6])
    found = plot.groups([f"{tmp_path}/runs/*", f"other={tmp_path}/mine"])
    assert {label: len(runs) for label, runs in found.items()} == {"ppo CartPole-v1": 2, "other": 1}
    assert found["ppo CartPole-v1"][0].tolist() == [[10, 20], [1, 2]]  # from the first finished episode on
    with pytest.raises(ValueError, match="no folder of a run"):
        plot.groups([f"{tmp_path}/nothing*"])


def test_curves_of_any_runs_are_drawn(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"runs/CartPole-v1__ppo__{seed}__now", [1, 2, 3])
    argv = [sys.executable, ROOT / "benchmarks/plot.py", "runs/*", "--out"]
    for name, start in {"a.svg": b"<?xml", "a.png": b"\x89PNG"}.items():
        subprocess.run([*argv, name], cwd=tmp_path, check=True)
        assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing*"], "plot.py: nothing*: no folder of a run\n"),
        ([], 'plot.py: name folders of runs, such as "runs/*"; see --help\n'),
    ],
)
def test_plot_without_runs_says_so_and_writes_nothing(tmp_path, argv, message):
    before = {path: path.stat().st_mtime_ns for path in plot.DOCUMENTS}
    argv = [sys.executable, ROOT / "benchmarks/plot.py", *argv]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, message)
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in plot.DOCUMENTS} == before


def test_training_keeps_finished_runs_and_repeats_unfinished_ones(tmp_path, monkeypatch, capsys):
    jobs = [train.Job("ppo", "CartPole-v1", seed, 100) for seed in (1, 2, 3)]
    monkeypatch.setattr(train, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(train, "CURVES", tmp_path / "curves.csv")
    monkeypatch.setattr(train, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(train, "jobs", lambda: jobs)
    started = []

    def run(argv, **_):
        if argv[0] == "git":
            return subprocess.CompletedProcess(argv, 0, "abc\n")
        seed = int(argv[argv.index("--seed") + 1])
        started.append(seed)
        folder = tmp_path / f"runs/CartPole-v1__ppo__{seed}__x"
        assert not folder.exists()
        write_run(folder, ["", 100, 480, 490])
        if seed == 2 and started.count(2) == 1:
            raise subprocess.CalledProcessError(-9, argv, stderr="killed")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"failed:\n.*--seed 2\nkilled"):
        train.main(workers=1)
    assert started == [1, 2, 3]
    train.main(workers=1)
    assert started == [1, 2, 3, 2]
    rows = plot.results(tmp_path)
    assert sorted(row["seed"] for row in rows) == ["1", "2", "3"]
    names = "mean", "worst_episode", "solved_step", "solved_seconds", "commit", "command"
    assert [rows[0][name] for name in names] == ["3.0", "2.0", "20", "2.0", "abc", jobs[0].command]
    assert {name: x.tolist() for name, x in rows[2]["curve"].items()} == {
        "step": [10, 20, 30],
        "seconds": [1, 2, 3],
        "return": [100, 480, 490],
    }
    for name in ("results.csv", "curves.csv"):
        new, old = (folder.joinpath(name).read_text().split("\n", 1)[0] for folder in (tmp_path, ROOT / "benchmarks"))
        assert new == old  # the columns
    train.main(dry_run=True)
    assert capsys.readouterr().out == "\n"


def test_jobs_are_what_a_user_would_type():
    commands = [job.command for job in train.jobs()]
    assert len(commands) == len(set(commands)) == len({job.folder for job in train.jobs()})
    assert "python ppo.py --env-id CartPole-v1 --total-timesteps 100000 --seed 7" in commands
    for job in train.jobs():
        if not job.script.startswith("sb3-"):
            assert (ROOT / f"{job.script}.py").exists()
            assert bool(job.flags) == bool(job.variant)


# Data


def test_each_run_has_one_row_and_one_curve():
    commands = [row["command"] for row in plot.table("results.csv")]
    assert len(commands) == len(set(commands))
    assert [row["command"] for row in plot.table("curves.csv")] == commands
    for row in ROWS:
        step, seconds, ret = (row["curve"][name] for name in ("step", "seconds", "return"))
        assert len(step) == len(seconds) == len(ret) <= train.POINTS
        assert (np.diff(step) > 0).all()
        assert step[-1] <= float(row["steps"])


def test_the_speeds_of_a_case_are_medians_over_rounds():
    row = speed.summary("ppo", [(200, 100, 300), (300, 100, 600), (100, 100, 400)], {"commit": "abc"})
    assert (row["ours"], row["sb3"], row["rounds"], row["commit"]) == (200, 100, 3, "abc")
    assert (row["ratio"], row["ratio_least"], row["ratio_most"]) == ("2.00", "1.00", "3.00")
    assert row["time_over_floor"] == "2.00"  # the median of 1.5, 2 and 4


def test_a_measured_case_replaces_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SPEEDS", tmp_path / "speed.csv")
    old = plot.table("speed.csv")
    assert [row["case"] for row in old] == list(speed.CASES)
    (tmp_path / "speed.csv").write_text((ROOT / "benchmarks/speed.csv").read_text())
    origin = {"commit": "abc", "machine": "mine", "versions": "new"}
    speed.write(speed.summary("a2c", [(1, 1, 1)], origin))
    new = plot.table("speed.csv", tmp_path)
    assert [row["case"] for row in new] == list(speed.CASES)
    assert [row["case"] for row, before in zip(new, old) if row != before] == ["a2c"]
    assert list(new[0]) == list(old[0])  # the columns


def test_the_settings_of_the_speed_cases_are_flags_of_the_scripts():
    for case in speed.CASES.values():
        assert case.flags.keys() <= importlib.import_module(case.script).Args.__dataclass_fields__.keys()


# The READMEs


def test_the_tables_of_the_readmes_are_those_of_the_data():
    for text in (README, EVIDENCE):
        assert plot.fill(text, ROWS) == text, "run python benchmarks/plot.py --readme"
    markers = re.findall(r"<!-- (\w+): python benchmarks/plot.py --readme -->", README + EVIDENCE)
    assert sorted(markers) == ["ablation", "results", "scores", "solving", "speed", "thresholds"]


def test_a_table_that_differs_from_the_data_is_rewritten():
    wrong = README.replace("| 500 (500) |", "| 501 (501) |").replace(" lines to read ", " lines ")
    wrong = re.sub(r"\| \d+ \| ([\d.]+) \|$", r"| 0 | 0 |", wrong, flags=re.MULTILINE)
    assert plot.fill(wrong, ROWS) == README.replace(" lines to read ", " lines ")


@pytest.mark.parametrize("name", plot.PICTURES)
def test_the_pictures_of_the_readmes_are_those_of_the_data(tmp_path, name):
    plot.PICTURES[name](ROWS, tmp_path / "new.svg")
    assert (tmp_path / "new.svg").read_text() == (ROOT / f"benchmarks/{name}.svg").read_text()
    assert f"](benchmarks/{name}.svg)" in README or f"]({name}.svg)" in EVIDENCE


def final(script, env_id):
    return np.array(plot.means(plot.select(ROWS, script=script, env_id=env_id)))


def test_the_failures_are_those_of_the_data():
    learned = final("a2c", "Pendulum-v1") > -300
    assert (final("a2c", "Pendulum-v1")[~learned] < -1300).all()
    assert f"ends above -300 on {learned.sum()} of 10 seeds and below -1300" in PROSE
    assert f"on the other {(~learned).sum()}." in PROSE
    below = (final("a2c", "MountainCarContinuous-v0") < 0).sum()
    assert f"a2c.py ends below 0 on {below} of 10 seeds" in PROSE
    assert max(*final("vpg", "InvertedPendulum-v5"), *final("a2c", "InvertedPendulum-v5")) < 100
    assert max(*final("vpg", "LunarLander-v3"), *final("a2c", "LunarLander-v3")) < 200


def test_the_example_of_a_cell_is_a_cell():
    (cell,) = re.findall(r"`([^`]*)` reads", PROSE)
    assert f"| {cell} |" in EVIDENCE
    mean, worst, episode = re.findall(r"[\d.]+", cell)[:3]
    assert f"over seeds is {mean}, the worst seed has a mean of {worst}" in PROSE
    assert f"episode of all seeds has {episode}," in PROSE


def test_both_readmes_give_the_same_counts_of_fresh_seeds():
    (row,) = re.findall(r"^\| fresh seeds at 475 or more \| (.*) \|$", EVIDENCE, re.MULTILINE)
    counts = dict(zip(plot.SCRIPTS, row.split(" | ")))
    (sentence,) = re.findall(r"On fresh seeds of CartPole-v1.*? each\.", README, re.DOTALL)
    assert f"ppo.py ended at 475 or more on {counts['ppo']} seeds" in " ".join(sentence.split())
    assert f"vpg.py on {counts['vpg']}" in sentence
    assert {counts[name] for name in ("a2c", "trpo", "dqn")} == set(re.findall(r"dqn.py on (\d+ of \d+)", sentence))


def test_commands_for_the_benchmarks_have_files_and_flags():
    for script, flags in re.findall(r"^python benchmarks/(\w+\.py)(.*)$", EVIDENCE, re.MULTILINE):
        source = (ROOT / "benchmarks" / script).read_text()
        for flag in re.findall(r"--([a-z-]+)", flags):
            assert re.search(rf"\b{flag.replace('-', '_')}: ", source), f"{script} --{flag}"


def test_commands_for_the_scripts_have_flags_of_theirs():
    commands = re.findall(r"python (\w+)\.py (--[^#;\n]*)", EVIDENCE)
    assert {name for name, _ in commands} == {"ppo", "dqn", "tabular"}
    for name, flags in commands:
        fields = importlib.import_module(name).Args.__dataclass_fields__
        assert {flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", flags)} <= fields.keys()


def test_links_between_the_files_of_the_evidence_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", EVIDENCE)
    assert links
    for link in links:
        assert (ROOT / "benchmarks" / link).exists(), link


def test_the_project_is_cited_by_one_title():
    title = README.splitlines()[0].removeprefix("# ")
    assert f"title  = {{{title}}}" in README
    assert f'title: "{title}"' in (ROOT / "CITATION.cff").read_text()


def test_the_readme_can_be_read_in_one_sitting():
    assert len(README.splitlines()) <= 250


@pytest.mark.slow
def test_the_example_of_the_readme_learns(tmp_path):
    code, training, loading = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (command,) = re.findall(r"^python (ppo.py --env-id thermostat.*)$", README, re.MULTILINE)
    (tmp_path / "thermostat.py").write_text(code)
    (tmp_path / "ppo.py").write_text((ROOT / "ppo.py").read_text())
    done = subprocess.run([sys.executable, *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[1]) > -60  # of about -250 for one that only waits
    training = training.replace("50_000", "2_048") + "assert env.observation_space.contains(obs)\n"
    (tmp_path / "mine.py").write_text(training)
    subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, check=True)
    loading = loading.replace("runs/NAME", str(next((tmp_path / "runs").iterdir())))
    (tmp_path / "later.py").write_text(loading + "agent.act(env.reset()[0][None])\n")
    subprocess.run([sys.executable, "later.py"], cwd=tmp_path, check=True)
