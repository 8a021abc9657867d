"""What each script learns, run as a user runs it: a command, an environment, a budget, the result it must reach."""

import csv

import pytest

from tests.helpers import command, evaluation, run

pytestmark = pytest.mark.slow


def mean_return(folder):
    """Of the final evaluation: 10 episodes with greedy actions."""
    return evaluation(folder)["mean"]


def table(folder):
    """The row of table.csv of the only agent."""
    (row,) = csv.DictReader((folder / "table.csv").open())
    return {name: float(row[name]) for name in row if name != "agent"}


def best_arm(folder):
    """Percentage of the pulls that were of the best arm, in the last 100 steps of 200 bandits."""
    return table(folder)["best_arm"]


def gap_to_the_optimum(folder):
    """Expected return of the greedy policy of Q, less that of the best policy; the mean of 10 runs."""
    return table(folder)["greedy"] - table(folder)["optimum"]


def win_rate(folder):
    """How often the judge prefers a response of the policy to one of the reference that it started from."""
    return evaluation(folder)["win_rate"]


CARTPOLE = {"env_id": "CartPole-v1"}
PENDULUM = {"env_id": "Pendulum-v1", "total_timesteps": 20_000, "eval_episodes": 30}
CLIFF = {"env_id": "CliffWalking-v1", "agents": "q-learning", "runs": 10}
REVIEWS = {"sft_steps": 300, "num_comparisons": 3_000, "reward_epochs": 3, "eval_responses": 960}

# The seed is that of the default flags, and was not chosen. Of 100 seeds, a2c.py fails with 2 and dqn.py with 1.
LEARNS = {  # script: environment and budget, what is measured, threshold; all else: the defaults
    "bandit.py": ({"agents": "thompson", "steps": 1_000}, best_arm, 85),
    "tabular.py": (CLIFF | {"steps": 20_000}, gap_to_the_optimum, 0),
    "vpg.py": (CARTPOLE | {"total_timesteps": 100_000}, mean_return, 475),
    "a2c.py": (CARTPOLE | {"total_timesteps": 200_000}, mean_return, 475),
    "trpo.py": (CARTPOLE | {"total_timesteps": 100_000}, mean_return, 475),
    "ppo.py": (CARTPOLE | {"total_timesteps": 100_000}, mean_return, 475),
    "dqn.py": (CARTPOLE | {"total_timesteps": 50_000}, mean_return, 475),
    "ddpg.py": (PENDULUM, mean_return, -180),
    "sac.py": (PENDULUM, mean_return, -180),
    "rlhf.py": (REVIEWS | {"iterations": 15}, win_rate, 0.7),
}


@pytest.mark.parametrize("script", LEARNS)
def test_each_script_reaches_its_threshold(tmp_path, script):
    flags, measure, threshold = LEARNS[script]
    done = run(*command(script=script, run_dir="run", **flags), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert measure(tmp_path / "run") >= threshold
