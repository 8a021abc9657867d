"""The statistics against known answers, and that the README shows what results.csv holds."""

import csv
import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.test_family import ROOT


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


plot, train = load("plot"), load("train")
README = (ROOT / "README.md").read_text()


def test_the_interquartile_mean_leaves_out_the_best_and_the_worst_quarter():
    assert plot.iqm(np.array([-1e9, 1, 2, 3, 4, 5, 6, 1e9])) == (2 + 3 + 4 + 5 + 1 + 6 - 1 - 6) / 4
    assert plot.iqm(np.arange(12.0).reshape(4, 3)).tolist() == [4.5, 5.5, 6.5]  # over runs, for each point


def test_the_interval_covers_the_true_value_about_as_often_as_it_says():
    """200 samples of 20 normal runs; the percentile bootstrap is known to be a little narrow."""
    samples = np.random.default_rng(0).normal(size=(20, 200))
    low, high = plot.interval(samples)
    assert 0.87 < np.mean((low < 0) & (high > 0)) < 0.98


def test_curves_are_compared_where_all_of_them_are():
    x, y = plot.align([(np.array([0, 10.0]), np.array([0, 10.0])), (np.array([2, 8.0]), np.array([1, 1.0]))], points=4)
    assert x.tolist() == [2, 4, 6, 8]
    assert y.tolist() == [[2, 4, 6, 8], [1, 1, 1, 1]]


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
    argv = [sys.executable, ROOT / "benchmarks/plot.py", "nothing*"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "plot.py: nothing*: no folder of a run\n")


def test_training_keeps_finished_runs_and_begins_unfinished_ones_anew(tmp_path, monkeypatch, capsys):
    jobs = [train.Job("ppo", "CartPole-v1", seed, 100) for seed in (1, 2, 3)]
    monkeypatch.setattr(train, "RESULTS", tmp_path / "results.csv")
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
    with pytest.raises(SystemExit, match="failed:\n.*--seed 2\nkilled"):
        train.main(workers=1)
    assert started == [1, 2, 3]
    train.main(workers=1)
    assert started == [1, 2, 3, 2]
    rows = plot.results(tmp_path / "results.csv")
    assert sorted(row["seed"] for row in rows) == ["1", "2", "3"]
    assert {(row["mean"], row["worst"], row["solved_step"], row["commit"]) for row in rows} == {
        ("3.0", "2.0", "20.0", "abc")
    }
    assert rows[0]["curve_return"] == "100 480 490"
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


# The README


def test_the_tables_of_the_readme_are_those_of_the_results():
    assert plot.readme(README, plot.results()) == README, "run python benchmarks/plot.py"


@pytest.mark.parametrize("name", plot.PICTURES)
def test_the_pictures_of_the_readme_are_those_of_the_results(tmp_path, name):
    plot.PICTURES[name](plot.results(), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == (ROOT / f"benchmarks/{name}.svg").read_text()
    assert f"](benchmarks/{name}.svg)" in README


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
