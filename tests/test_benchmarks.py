"""The statistics against known answers, and that both READMEs show what the data hold."""

import csv
import importlib.util
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent

sys.path.append(str(ROOT / "benchmarks"))  # after the scripts: both have a rlhf.py
plot, train, speed, scale, slow, animate = map(
    importlib.import_module, ["plot", "train", "speed", "scale", "slow", "animate"]
)
ROWS = plot.results()
README, EVIDENCE = (path.read_text() for path in plot.DOCUMENTS)
ALGORITHMS = "ppo", "rloo", "grpo", "dpo"
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
    assert "python ppo.py --env-id LunarLander-v3 --total-timesteps 1000000 --seed 101" in commands
    assert "python ppo.py --env-id CartPole-v1 --total-timesteps 100000 --seed 200 --eval-episodes 100" in commands
    assert "python ppo.py --env-id ALE/Pong-v5 --total-timesteps 700000 --seed 201 --async-envs" in commands
    for job in train.jobs():
        assert job.folder.parent == train.FOLDER  # a slash in an environment's name makes no folder
        if not job.script.startswith("sb3-"):
            assert (ROOT / f"{job.script}.py").exists()
            assert bool(job.flags) == (bool(job.variant) or job.env_id.startswith("ALE/"))


def test_jobs_have_seeds_that_were_unknown_when_the_defaults_were_chosen():
    chosen_again = [("dqn", "CartPole-v1", 201), ("ppo", "HalfCheetah-v5", 201), ("a2c", "HalfCheetah-v5", 301)]
    for script, env_id, first in [*chosen_again, ("ppo", "CartPole-v1", 101), ("dqn", "Acrobot-v1", 101)]:
        seeds = [job.seed for job in train.jobs() if (job.script, job.env_id, job.variant) == (script, env_id, "")]
        assert seeds == [*range(first, first + len(seeds))]


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


# Speed


def rows_of(case, rounds, names="ours sb3 floor"):
    """Rows of speed.csv; rounds: steps per second of each name in each."""
    return [
        {"case": case, "round": str(number), "peer": name, "steps_per_second": str(value)}
        for number, speeds in enumerate(rounds, 1)
        for name, value in zip(names.split(), speeds)
    ]


def cells(table):
    """Cells of the lines below the head of a table."""
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_the_first_quarter_of_the_steps_does_not_count():
    """10 s of start-up and compilation, then 50 steps in a second."""
    assert speed.steady_speed([(10, 10.0), (25, 10.3), (60, 11.0), (100, 11.8)]) == pytest.approx(75 / 1.5)
    assert speed.steady_speed([(24, 1.0), (30, 2.0), (100, 9.0)]) == 10


def test_speeds_are_medians_and_ratios_are_medians_of_the_ratios_of_a_round():
    rows = rows_of("ppo", [(200, 100, 300), (300, 100, 600), (100, 200, 400)])
    assert cells(plot.table_of_speed(rows)) == [["ppo", "3", "200", "100", "-", "-", "400"]]
    assert cells(plot.table_of_ratios(rows)) == [
        ["ppo", "2.00 (0.50 to 3.00)", "-", "-", "2.00 (1.50 to 4.00)"]  # of 2, 3 and .5; of 1.5, 2 and 4
    ]


def test_a_peer_without_a_row_in_a_round_is_compared_in_the_others():
    rows = rows_of("a2c", [(200, 100), (300, 100)])[:-1]
    assert cells(plot.table_of_ratios(rows)) == [["a2c", "2.00 (2.00 to 2.00)", "-", "-", "-"]]


def test_measured_cases_replace_their_rows_where_they_stood(tmp_path):
    path = tmp_path / "speed.csv"
    old = [row for case in ("ppo", "a2c", "trpo") for row in rows_of(case, [(1, 2, 3), (4, 5, 6)])]
    path.write_text(",".join(old[0]) + "\n")
    speed.store(path, old, "case")
    assert plot.table("speed.csv", tmp_path) == old
    new = rows_of("a2c", [(7, 8, 9)])
    speed.store(path, new, "case")
    assert plot.table("speed.csv", tmp_path) == [*old[:6], *new, *old[12:]]


def test_only_the_measured_run_of_a_seed_is_replaced(tmp_path):
    rows = [{"script": script, "seed": seed, "mean": 1} for seed in (101, 102) for script in ("ppo", "dqn")]
    path = tmp_path / "solve.csv"
    path.write_text("script,seed,mean\n")
    speed.store(path, rows, "script", "seed")
    speed.store(path, [rows[2] | {"mean": 2}], "script", "seed")
    assert path.read_text() == "script,seed,mean\nppo,101,1\ndqn,101,1\nppo,102,2\ndqn,102,1\n"


def test_peers_take_turns_and_each_case_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "SPEEDS", tmp_path / "speed.csv")
    (tmp_path / "speed.csv").write_text("case,round,peer,steps_per_second,commit,machine,versions\n")
    monkeypatch.setattr(speed, "installed", lambda clone, python: list(speed.PACKAGES))
    monkeypatch.setattr(speed, "versions", lambda python, packages: f"of {python.name}" if python == there else "here")
    monkeypatch.setattr(speed, "here", lambda: {"commit": "abc", "machine": "mine", "versions": "all"})
    there, measured = Path("there/python"), []

    def measure(peer, case, seed, clone, python):
        measured.append((case.script, seed, peer))
        return 100.4 * seed

    monkeypatch.setattr(speed, "measure", measure)
    speed.compare(2, "CleanRL", Path("clone"), there)
    speed.compare(1, "a2c", Path("clone"), there)
    peers = ["ours", "sb3", "sbx", "cleanrl", "floor"]
    assert measured == [
        *((script, seed, peer) for script in ("ppo", "dqn") for seed in (1, 2) for peer in peers),
        *(("a2c", 1, peer) for peer in ("ours", "sb3", "floor")),  # SBX and CleanRL have none
    ]
    rows = plot.table("speed.csv", tmp_path)
    assert [row["steps_per_second"] for row in rows] == (["100"] * 5 + ["201"] * 5) * 2 + ["100"] * 3
    assert {row["versions"] for row in rows if row["peer"] == "cleanrl"} == {"of python"}
    assert {row["versions"] for row in rows if row["peer"] != "cleanrl"} == {"here"}
    assert list(rows[0]) == list(plot.table("speed.csv")[0])  # the columns
    assert "a2c: ours 100, sb3 100, floor 100 steps/s\n" in capsys.readouterr().out


def test_a_peer_that_is_not_there_is_left_out_with_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "find_spec", lambda name: name != "sb3_contrib")
    assert speed.installed(tmp_path, Path(sys.executable)) == ["ours", "sbx", "floor"]
    assert capsys.readouterr().err == (
        "speed.py: sb3 left out: pip install -r benchmarks/requirements.txt\n"
        f"speed.py: cleanrl left out: --cleanrl: there is no {tmp_path}/cleanrl/ppo.py\n"
    )
    (tmp_path / "cleanrl").mkdir()
    (tmp_path / "cleanrl/ppo.py").touch()
    monkeypatch.setattr(speed, "find_spec", lambda name: name != "sbx")
    assert speed.installed(tmp_path, Path(sys.executable)) == ["ours", "sb3", "cleanrl", "floor"]
    assert capsys.readouterr().err == "speed.py: sbx left out: pip install -r benchmarks/requirements.txt\n"
    assert "cleanrl" not in speed.installed(tmp_path, tmp_path / "python")
    assert f"--cleanrl-python: there is no {tmp_path}/python\n" in capsys.readouterr().err
    assert speed.installed(tmp_path, tmp_path / "python", ["ours"]) == ["ours"]
    assert capsys.readouterr().err == ""  # nothing about peers that nobody asked for


def test_the_speed_that_cleanrl_prints_is_that_of_all_steps_so_far():
    """Steps divided by speed is the time. 512 steps a line at 100 steps/s, then 300 steps/s from the third line on."""
    text = "global_step=512, episodic_return=[20.]\nSPS: 100\nSPS: 100\n\nSPS: 128\nSPS: 150\nnot SPS: 7\n"
    points = speed.read_cleanrl(text, speed.CASES["ppo, CleanRL's settings"])
    assert [step for step, _ in points] == [512, 1024, 1536, 2048]
    assert np.allclose([seconds for _, seconds in points], [5.12, 10.24, 11.95, 13.65], rtol=0.01)
    text = "SPS: 5050\nSPS: 1699\nSPS: 1029\n"  # 2 s for 10,100 steps, then 4 s for each 100
    points = speed.read_cleanrl(text, speed.CASES["dqn, CleanRL's settings"])
    assert [step for step, _ in points] == [10_100, 10_200, 10_300]
    assert np.allclose([seconds for _, seconds in points], [2, 6, 10], atol=0.01)


def test_the_settings_of_a_case_are_the_same_for_all():
    """Names of the settings in our flags, in Stable-Baselines3's arguments and in CleanRL's flags."""
    same = {
        "ppo": [
            ("num_steps", "n_steps", "num_steps"),
            ("update_epochs", "n_epochs", "update_epochs"),
            ("learning_rate", "learning_rate", "learning_rate"),
            ("ent_coef", "ent_coef", "ent_coef"),
            ("num_envs", None, "num_envs"),
            ("num_minibatches", None, "num_minibatches"),
        ],
        "a2c": [("num_steps", "n_steps", None), ("learning_rate", "learning_rate", None)],
        "trpo": [
            ("num_steps", "n_steps", None),
            ("value_epochs", "n_critic_updates", None),
            ("cg_iters", "cg_max_steps", None),
        ],
        "dqn": [
            ("num_steps", "train_freq", "train_frequency"),
            ("batch_size", "batch_size", "batch_size"),
            ("buffer_size", "buffer_size", "buffer_size"),
            ("learning_starts", "learning_starts", "learning_starts"),
            ("learning_rate", "learning_rate", "learning_rate"),
            ("exploration_fraction", "exploration_fraction", "exploration_fraction"),
            ("epsilon_end", "exploration_final_eps", "end_e"),
            ("gradient_steps", "gradient_steps", None),
        ],
    }
    for case in speed.CASES.values():
        args = vars(importlib.import_module(case.script).Args(**case.flags))  # raises if a flag is not one
        for ours, sb3, cleanrl in same[case.script]:
            if sb3:
                assert case.arguments.get(sb3, args[ours]) == args[ours]
            if cleanrl and case.cleanrl:
                assert case.cleanrl.get(cleanrl, args[ours]) == args[ours]
        rollout = args["num_envs"] * args["num_steps"]
        assert case.steps % (4 * rollout) == 0  # the first quarter ends with a rollout
        if case.script == "ppo":
            assert case.arguments["batch_size"] == rollout / args["num_minibatches"]
        if case.script == "dqn":
            assert case.arguments["policy_kwargs"]["net_arch"] == list(args["hidden_sizes"])
            assert args["learning_starts"] <= case.steps / 4
            assert (args["num_envs"], args["epsilon_start"], args["tau"]) == (1, 1, 1)
    copies = speed.CASES["dqn, CleanRL's settings"]
    assert copies.flags["target_interval"] * copies.flags["num_steps"] == 500  # one gradient step for a rollout
    assert copies.arguments["target_update_interval"] == copies.cleanrl["target_network_frequency"] == 500


def test_the_case_with_our_defaults_has_our_defaults():
    ppo = importlib.import_module("ppo")
    assert ppo.Args(**speed.CASES["ppo"].flags) == ppo.Args()


def test_flags_are_written_as_on_a_command_line():
    named = {"num_envs": 4, "anneal_lr": False, "cuda": True, "hidden_sizes": (120, 84), "learning_rate": 2.5e-4}
    text = "--num-envs 4 --no-anneal-lr --cuda --hidden-sizes 120 84 --learning-rate 0.00025"
    assert speed.flags(named) == text.split()


def test_random_actions_skip_the_network_of_the_floor():
    mode = gym.vector.AutoresetMode.DISABLED
    envs = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=mode)
    envs.reset(seed=1)
    calls = []

    def actor(obs):
        calls.append(obs)
        return torch.zeros(2, 2)

    speed.collect(envs, actor, 30)
    assert len(calls) == 30
    speed.collect(envs, actor, 30, epsilon=1.0)
    assert len(calls) == 30


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["ours", "floor"])
def test_a_peer_is_measured_in_a_process_of_its_own(peer):
    case = replace(speed.CASES["a2c"], steps=2_000)
    assert 100 < speed.measure(peer, case, 1, None, None) < 1e6


@pytest.mark.slow
def test_a_command_that_fails_ends_the_measurement_with_its_error(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)failed: .*ppo\.py.*--num-envs 0: must be at least 1"):
        speed.run([sys.executable, ROOT / "ppo.py", "--num-envs", 0], tmp_path)


# From the command to the result


def test_commands_have_nothing_but_a_seed_and_the_budgets_of_the_baselines():
    folder = speed.ROOT
    assert speed.command("ppo", 101) == [folder / "ppo.py", "--seed", 101]
    text = "--algorithm a2c --total-timesteps 500000 --seed 102 --run-dir runs/sb3"
    assert speed.command("sb3-a2c", 102) == [folder / "benchmarks/sb3.py", *text.split()]
    assert sorted(speed.SOLVERS) == sorted([*plot.SCRIPTS, "sb3-ppo", "sb3-a2c", "sb3-trpo", "sb3-dqn"])
    assert list(speed.SEEDS) == [101, 102, 103, 104, 105, 106, 107, 108, 109, 110]


def test_the_time_to_a_result_is_that_of_the_whole_process(tmp_path, monkeypatch):
    code = "import pathlib, time; time.sleep(0.3); folder = pathlib.Path('runs/one'); folder.mkdir(parents=True); "
    code += "(folder / 'eval.json').write_text('{\"mean\": 12.345}')"
    monkeypatch.setattr(speed, "command", lambda script, seed: ["-c", code])
    found = speed.solve("ppo", 101)
    assert found["mean"] == pytest.approx(12.345, abs=0.006)
    assert 0.3 < found["wall_seconds"] < 5


def test_each_run_to_a_result_has_a_row_and_what_is_not_installed_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "SOLVED", tmp_path / "solve.csv")
    (tmp_path / "solve.csv").write_text("script,seed,wall_seconds,mean,commit,machine,versions\n")
    monkeypatch.setattr(speed, "SEEDS", [101, 102])
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    monkeypatch.setattr(speed, "versions", lambda python, packages: "none")
    monkeypatch.setattr(speed, "solve", lambda script, seed: {"wall_seconds": 1.5, "mean": seed})
    speed.solve_all("ppo", tmp_path, tmp_path)
    rows = plot.table("solve.csv", tmp_path)
    assert [(row["script"], row["seed"], row["mean"]) for row in rows] == [("ppo", "101", "101"), ("ppo", "102", "102")]
    assert list(rows[0]) == list(plot.table("solve.csv")[0])  # the columns
    assert capsys.readouterr().err == "speed.py: sb3 left out: pip install -r benchmarks/requirements.txt\n"


def test_the_seconds_to_a_result_are_medians_over_seeds():
    rows = [
        {"script": script, "seed": str(seed), "wall_seconds": seconds, "mean": mean}
        for script in ("dqn", "sb3-dqn")
        for seed, seconds, mean in ((101, "1", "500"), (102, "2", "200"), (103, "9", "500"))
    ]
    both = ["3", "2.0 (1.0 to 9.0)", "400.0 (200.0)"]
    assert cells(plot.table_of_waiting(rows)) == [["dqn.py", *both], ["Stable-Baselines3 dqn", *both]]


# Scale


def test_rollouts_have_the_same_size_whatever_the_number_of_environments():
    cases = scale.CASES["environments"]
    assert [int(n) for n in cases] == [flags["num_envs"] for flags in cases.values()] == [1, 4, 16, 64, 256]
    ppo = importlib.import_module("ppo").Args()
    for flags in cases.values():
        assert flags["num_envs"] * flags["num_steps"] == 2_048 == ppo.num_envs * ppo.num_steps
        assert "num_minibatches" not in flags


def test_each_setting_is_a_valid_command_and_only_processes_differ():
    ppo = importlib.import_module("ppo")
    for case, settings in scale.CASES.items():
        for setting, flags in settings.items():
            args = ppo.Args(**flags)
            ppo.check_batch(args)
            assert args.total_timesteps % (4 * args.num_envs * args.num_steps) == 0, (case, setting)
        if "async" in settings:
            assert settings["async"] == settings["sync"] | {"async_envs": True}


def test_workers_are_started_by_torchrun_and_take_separate_cores(monkeypatch):
    argv = list(map(str, scale.argv_of("workers", "2")))
    assert argv[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert [Path(part).name for part in argv[6:8]] == ["scale.py", "ppo.py"]
    assert "torch.distributed.run" not in scale.argv_of("environments", "1")
    taken = []
    monkeypatch.setattr(scale, "cores", lambda: [2, 5, 7])
    monkeypatch.setattr(scale, "use", taken.append)
    monkeypatch.setattr(scale.runpy, "run_path", lambda path, run_name: taken.append((path, run_name)))
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setattr(sys, "argv", ["scale.py", "ppo.py", "--seed", "1"])
        scale.worker()
        assert sys.argv == ["ppo.py", "--seed", "1"]
    assert taken == [[7], ("ppo.py", "__main__"), [5], ("ppo.py", "__main__")]


def test_the_peak_memory_is_that_of_the_process(tmp_path):
    """Asked by a small process, because a child starts with the peak of its parent."""
    child = "x = bytearray({} * 2**20); x[::4096] = b'1' * len(x[::4096])"
    argv = [[sys.executable, "-c", child.format(size)] for size in (1, 700)]
    code = f"import scale; print(*(scale.run(argv, {str(tmp_path)!r}) for argv in {argv!r}))"
    paths = {"PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT}"}
    output = subprocess.check_output([sys.executable, "-c", code], env=os.environ | paths, text=True)
    small, large = map(float, output.split())
    assert 700 < large < 1_500
    assert small < large - 600
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        scale.run([sys.executable, "-c", "1 / 0"], tmp_path)


def test_the_slow_environment_waits_5_ms_in_each_step():
    env = gym.make("slow:Slow-v0")
    env.reset(seed=1)
    start = time.perf_counter()
    for _ in range(4):
        env.step(0)
    assert slow.SECONDS == 0.005
    assert 0.02 < time.perf_counter() - start < 1


def scale_rows(case, rounds, settings):
    return [
        {"case": case, "setting": setting, "round": str(number), "steps_per_second": str(value), "peak_mib": "250"}
        for number, speeds in enumerate(rounds, 1)
        for setting, value in zip(settings.split(), speeds)
    ]


def test_settings_take_turns_and_a_single_process_has_one_core(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale, "SCALES", tmp_path / "scale.csv")
    (tmp_path / "scale.csv").write_text("case,setting,round,steps_per_second,peak_mib,commit,machine,versions\n")
    monkeypatch.setattr(scale, "cores", lambda: [4])
    monkeypatch.setattr(scale, "versions", lambda python, packages: "none")
    monkeypatch.setattr(scale, "measure", lambda case, setting, allowed: (int(setting) * 100, 250))
    scale.main(2, "workers")
    rows = plot.table("scale.csv", tmp_path)
    found = [(row["setting"], row["round"], row["steps_per_second"]) for row in rows]
    assert found == [("1", "1", "100"), ("2", "1", "200"), ("1", "2", "100"), ("2", "2", "200")]
    assert list(rows[0]) == list(plot.table("scale.csv")[0])  # the columns
    assert capsys.readouterr() == (
        "workers, 1: 100 steps/s\nworkers, 2: 200 steps/s\n",
        "scale.py: 2 workers on 1 core\n",
    )
    monkeypatch.undo()
    taken = []
    monkeypatch.setattr(scale, "use", taken.append)
    monkeypatch.setattr(scale, "run", lambda argv, folder: 250.4)
    monkeypatch.setattr(scale, "read_points", lambda folder: [(25, 1.0), (100, 2.0)])
    assert scale.measure("environments", "4", [2, 3]) == scale.measure("slow:Slow-v0", "async", [2, 3]) == (75, 250)
    assert taken == [[3], [2, 3]]


def test_the_efficiency_of_two_workers_is_their_speed_over_twice_the_speed_of_one():
    rows = scale_rows("workers", [(1_000, 1_800), (1_000, 1_600), (2_000, 2_000)], "1 2")
    one, two = cells(plot.table_of_workers(rows + scale_rows("environments", [(1, 2)], "1 2")))
    assert one == ["1", "1,000", "1.00 (1.00 to 1.00)"]
    assert two == ["2", "1,800", "0.80 (0.50 to 0.90)"]


def test_the_other_tables_of_scale_are_medians_too():
    rows = scale_rows("environments", [(10, 40), (30, 20), (20, 90)], "1 4")
    rows += scale_rows("Ant-v5", [(100, 50), (100, 200), (100, 300)], "sync async")
    assert cells(plot.table_of_environments(rows)) == [["1", "20", "250"], ["4", "40", "250"]]
    assert cells(plot.table_of_processes(rows)) == [["Ant-v5", "100", "200", "2.00 (0.50 to 3.00)"]]


def test_the_tables_of_measurements_have_all_cases():
    found = {name: plot.table(f"{name}.csv") for name in ("speed", "solve", "scale")}
    assert plot.distinct(found["speed"], "case") == list(speed.CASES)
    assert plot.distinct(found["solve"], "script") == speed.SOLVERS
    for case, settings in scale.CASES.items():
        rows = [row for row in found["scale"] if row["case"] == case]
        assert plot.distinct(rows, "setting") == list(settings)
    for row in found["speed"]:
        assert row["peer"] in speed.peers_of(speed.CASES[row["case"]], plot.PEERS)


# The animated picture


@pytest.mark.slow
def test_an_agent_without_a_checkpoint_is_trained_and_all_panels_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(train, "FOLDER", tmp_path)
    monkeypatch.setattr(train, "TASKS", [("CartPole-v1", 1, 10, {"ppo": 2_048})])
    panel = animate.Panel("ppo", "CartPole-v1", stride=10)
    monkeypatch.setattr(animate, "PANELS", (panel, panel))
    animate.main(frames=12, path=tmp_path / "agents.gif")
    assert (panel.job.folder / "checkpoint.pt").exists()
    with Image.open(tmp_path / "agents.gif") as picture:
        assert picture.size == (2 * panel.width, animate.HEIGHT + animate.CAPTION)
        assert picture.n_frames == 12  # an untrained agent falls: frames of later episodes are among them
    assert (tmp_path / "agents.gif").stat().st_size < 1e6


# The evidence for rlhf.py


def rlhf_rows(**columns):
    """Rows of rlhf.csv; a column is one value for all rows, or a list of one for each."""
    size = max(len(column) for column in columns.values() if isinstance(column, list))
    columns = {name: column if isinstance(column, list) else [column] * size for name, column in columns.items()}
    return [dict(zip(columns, map(str, row))) for row in zip(*columns.values())]


def test_the_table_of_algorithms_has_means_and_the_worst_seed():
    columns = {"experiment": "table", "algorithm": "ppo", "seed": [101, 102], "kl": [1, 2], "accuracy": ""}
    columns |= {"gold": [1.0, 3.0], "gold_reference": [0.0, -1.0], "gold_std": [1.0, 2.0], "win_rate": [0.5, 0.75]}
    columns |= {"grammatical": [1.0, 0.9], "J": [0.5, 1.0], "J_reference": [0.0, 0.0], "J_optimum": [1.0, 1.0]}
    ppo = ["ppo", "2", "-0.50 to 2.00", "1.50 (1.00)", "62.5% (50.0%)", "1.5", "75%", "95.0%"]
    assert cells(plot.table_of_algorithms(rlhf_rows(**columns))) == [ppo]


def test_the_table_of_over_optimization_has_the_last_point_of_each_run():
    columns = {"experiment": "paths", "num_comparisons": [500, 500, 8_000, 500], "kl_coef": ["0", "0", "0", "0.2"]}
    columns |= {"point": "end", "gold": [1, -1, 2, 1], "score": [2, 4, 2, 1], "kl": [10, 30, 9, 2]}
    rows = rlhf_rows(**columns) + rlhf_rows(**columns | {"point": "7", "gold": [9, 9, 9, 9]})
    rows += rlhf_rows(**columns | {"num_comparisons": [8_000] * 4, "kl_coef": ["0.2"] * 4})
    small, large = cells(plot.table_of_overoptimization(rows))
    assert small == ["500", "1.00 (1.00; 1.00; 2.0)", "0.00 (-1.00; 3.00; 20.0)"]
    assert large[0] == "8,000"
    assert large[2] == "2.00 (2.00; 2.00; 9.0)"


def test_a_run_of_rlhf_that_has_its_row_is_not_repeated(monkeypatch):
    spec = importlib.util.spec_from_file_location("rlhf_evidence", ROOT / "benchmarks/rlhf.py")
    evidence = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evidence)
    monkeypatch.setattr(sys, "argv", ["rlhf.py"])
    key = {"experiment": "paths", "seed": 111, "algorithm": "ppo", "num_comparisons": 500, "kl_coef": 0.0}
    assert evidence.skip(evidence.known(), key)
    assert not evidence.skip(evidence.known(), key | {"seed": 99})
    monkeypatch.setattr(sys, "argv", ["rlhf.py", "112"])
    assert evidence.skip([], key)


def test_the_statements_about_rlhf_are_those_of_the_data():
    rows = plot.table("rlhf.csv")
    ends = [row for row in rows if row["point"] == "end"]
    ppo, *others = (
        [row for row in ends if row["algorithm"] == name and row["experiment"] == "table"] for name in ALGORITHMS
    )
    assert {len(runs) for runs in [ppo, *others]} == {10}

    def column(name, runs=ppo):
        return np.array([float(row[name]) for row in runs])

    assert min((column("gold") - column("gold_reference")) / column("gold_std")) >= 1
    assert column("win_rate").mean() >= 0.85
    assert column("grammatical").mean() >= 0.95
    assert ((column("J") - column("J_reference")) / (column("J_optimum") - column("J_reference"))).mean() >= 0.85
    free = [row for row in ends if row["experiment"] == "paths" and row["kl_coef"] == "0"]
    assert f"judge is {column('gold_reference', free).mean():.2f}." in PROSE
    below = (column("gold", free) < column("gold_reference", free)).sum()
    assert f"of {len(free)} runs lose about half" in PROSE
    assert f"and {below} of them end below the reference" in PROSE
    assert min(column("score", free)) > 1.9


# The READMEs


@pytest.mark.parametrize("text", [README, EVIDENCE], ids=["README.md", "benchmarks/README.md"])
def test_the_tables_of_the_readmes_are_those_of_the_data(text):
    assert plot.fill(text, ROWS) == text, "run python benchmarks/plot.py --readme"


def test_each_table_stands_in_one_readme():
    markers = re.findall(r"<!-- (\w+): python benchmarks/plot.py --readme -->", README + EVIDENCE)
    names = "ablation algorithms environments overoptimization processes ratios results scores solving speed thresholds"
    assert sorted(markers) == [*names.split(), "waiting", "workers"]
    assert all(f"<!-- end of {name} -->" in README + EVIDENCE for name in markers)


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


def worst_episode(script, env_id):
    return min(float(row["worst_episode"]) for row in plot.select(ROWS, script=script, env_id=env_id))


NARROW = [("ppo", "Acrobot-v1", 1), ("ppo", "Pendulum-v1", 0), ("ppo", "MountainCarContinuous-v0", 1)]
NARROW += [("dqn", "Acrobot-v1", 1)]  # and digits after the point


def test_the_failures_are_those_of_the_data():
    failed = {name: (final(name, "CartPole-v1") < 475).sum() for name in plot.SCRIPTS}
    words = f"a2c.py ends below 475 on {failed['a2c']} of 100 seeds and dqn.py on {failed['dqn']}."
    assert words in PROSE
    assert failed["vpg"] == failed["trpo"] == failed["ppo"] == 0
    assert all(len(final(name, "CartPole-v1")) == 100 for name in plot.SCRIPTS)
    vpg, a2c, trpo = (final(name, "LunarLander-v3") for name in ("vpg", "a2c", "trpo"))
    assert f"vpg.py and a2c.py end at {vpg.mean():.0f} and {a2c.mean():.0f}." in PROSE
    assert f"trpo.py ends between {min(trpo):.0f} and {max(trpo):.0f};" in PROSE
    stuck = abs(final("a2c", "MountainCarContinuous-v0")) < 1
    assert f"a2c.py ends near 0 on {stuck.sum()} of 10 seeds" in PROSE
    vpg, a2c, trpo, ppo = (final(name, "HalfCheetah-v5") for name in ("vpg", "a2c", "trpo", "ppo"))
    assert f"vpg.py ends at {min(vpg):.0f} on {(vpg < 2000).sum()} of {len(vpg)} seeds" in PROSE
    assert a2c.mean() >= 2000
    assert ppo.mean() >= 3000
    assert min(*ppo, *trpo) >= 2000
    falls = {name: worst_episode(name, "HalfCheetah-v5") for name in ("ppo", "trpo")}
    assert f"the worst are {falls['ppo']:.0f} with ppo.py and {falls['trpo']:.0f} with trpo.py." in PROSE
    ant = final("ppo", "Ant-v5")
    assert f"seeds of ppo.py differ widely, from {min(ant):.0f} to {max(ant):.0f}, and" in PROSE
    for name, env_id, digits in NARROW:
        assert f"{env_id} {final(name, env_id).mean():.{digits}f} (" in PROSE
    (pong,) = plot.select(ROWS, env_id="ALE/Pong-v5")
    at = np.interp([100_000, 200_000, 300_000], pong["curve"]["step"], pong["curve"]["return"])
    (returns,) = re.findall(r"is (\S+) after 100,000 steps, (\S+) after 200,000, (\S+) after 300,000", PROSE)
    assert at == pytest.approx([*map(float, returns)], abs=1)
    assert float(pong["worst_episode"]) > 0
    assert "ppo.py wins all 10 games" in PROSE


def test_numbers_of_steps_are_short_but_not_rounded():
    assert [plot.thousands(x) for x in (0, 2_500, 100_000, 1_000_000)] == ["0", "2.5k", "100k", "1M"]


def test_the_example_of_a_cell_is_a_cell():
    (cell,) = re.findall(r"`([^`]*)` reads", PROSE)
    assert f"| {cell} |" in EVIDENCE
    mean, worst, episode = re.findall(r"[\d.]+", cell)[:3]
    assert f"over seeds is {mean}, the worst seed has a mean of {worst}" in PROSE
    assert f"episode of all seeds has {episode}," in PROSE


def test_no_run_is_on_a_seed_that_defaults_were_chosen_on():
    assert train.FIRST_SEED == 101
    assert all(int(row["seed"]) >= train.FIRST_SEED for row in plot.table("results.csv"))


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
