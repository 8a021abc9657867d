"""The environment, each agent checked by hand and against a plain simulation, the book's figures, the command line."""

import csv
import dataclasses
import inspect
import json
import math
import random
import re
import statistics
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import bandit

# The environment


@pytest.mark.parametrize("stationary", [True, False])
def test_the_environment_keeps_gymnasiums_rules(stationary):
    env = gym.make("ArmedBanditTestbed-v0", stationary=stationary)
    assert (env.spec.max_episode_steps, env.spec.nondeterministic) == (1_000, False)
    check_env(env.unwrapped, skip_render_check=True)


def test_an_episode_ends_after_1000_pulls_in_one_environment_and_in_many():
    for env, action in [
        (gym.make("ArmedBanditTestbed-v0"), 3),
        (gym.make_vec("ArmedBanditTestbed-v0", num_envs=2), np.array([3, 3])),
    ]:
        env.reset(seed=0)
        ends = [np.all(env.step(action)[3]) for _ in range(1_000)]
        assert ends == [False] * 999 + [True]


def test_many_bandits_start_new_episodes_after_truncation():
    env = gym.make_vec("ArmedBanditTestbed-v0", num_envs=3, max_episode_steps=2)
    env.reset(seed=0)
    before = env.unwrapped.means.copy()
    truncated = [env.step(np.zeros(3, int))[3].all() for _ in range(6)]
    assert truncated == [False, True, False] * 2  # the step after an end only resets
    assert not np.any(env.unwrapped.means == before)


def sample(make, stationary, pulls=40):
    """Reward of arm 2, info and true means after some pulls; arrays over bandits."""
    rewards, infos = [], []
    env = make(stationary)
    for _ in range(pulls):
        _, reward, _, _, info = env.step(np.full(env.action_space.shape, 2) if env.action_space.shape else 2)
        rewards.append(reward)
        infos.append(info["regret"])
    means = env.unwrapped.means if env.action_space.shape else env.unwrapped.bandits.means[0]
    return np.array(rewards), np.array(infos), means


@pytest.mark.parametrize("stationary", [True, False])
def test_one_bandit_and_many_have_the_same_distribution(stationary):
    """Mean and spread of rewards, regrets and means over 1000 bandits, within five standard errors."""

    def one(seed):
        env = gym.make("ArmedBanditTestbed-v0", stationary=stationary)
        env.reset(seed=seed)
        return env

    def many(stationary):
        env = gym.make_vec("ArmedBanditTestbed-v0", num_envs=1_000, stationary=stationary)
        env.reset(seed=0)
        return env

    singles = [sample(lambda _, seed=seed: one(seed), stationary) for seed in range(1_000)]
    reward, regret, means = (np.stack(column, axis) for column, axis in zip(zip(*singles), (1, 1, 0)))
    for ours, theirs in zip(sample(many, stationary), (reward, regret, means)):
        assert ours.shape == theirs.shape
        bandits = ours.shape.index(1_000)
        for statistic in (np.mean, np.std):
            axis = 1 - bandits
            a, b = statistic(ours, axis), statistic(theirs, axis)  # of each bandit
            error = np.sqrt((a.var() + b.var()) / 1_000)
            assert abs(a.mean() - b.mean()) < 5 * error + 1e-9


def test_arms_that_drift_have_the_stated_variance():
    """All begin at 0; after t steps of a random walk by N(0, 0.01^2) the variance is 0.0001 t."""
    env = gym.make_vec("ArmedBanditTestbed-v0", num_envs=2_000, stationary=False)
    env.reset(seed=0)
    assert np.all(env.unwrapped.means == 0)
    for _ in range(400):
        *_, info = env.step(np.zeros(2_000, int))
    means = env.unwrapped.means
    assert means.var() == pytest.approx(0.0001 * 400, rel=0.05)
    assert np.array_equal(info["best_arm"], means.argmax(-1))


def test_changing_what_a_step_returned_leaves_the_environment_unchanged():
    env = gym.make_vec("ArmedBanditTestbed-v0", num_envs=3, max_episode_steps=1)
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(np.zeros(3, int))
    best = info["best_arm"].copy()
    info["best_arm"][:] = -1
    assert np.array_equal(env.unwrapped.best_arm, best)
    terminated |= truncated
    _, _, terminated, truncated, _ = env.step(np.zeros(3, int))
    assert not terminated.any()
    assert not truncated.any()


@pytest.mark.parametrize("text", bandit.DEFAULT_AGENTS)
def test_every_agent_counts_its_pulls(text):
    agent = bandit.make_agent(text, num_runs=4)
    bandit.play(agent, gym.make_vec("ArmedBanditTestbed-v0", num_envs=4), 30, seed=1)
    assert np.all(agent.pulls.sum(-1) == 30)


def test_the_standard_error_by_hand():
    mean, error = bandit.mean_and_error(np.array([[1.0, 2, 3, 6], [5, 5, 5, 5]]))
    assert mean.tolist() == [3, 5]
    np.testing.assert_allclose(error, [(14 / 3) ** 0.5 / 2, 0])
    assert np.isnan(bandit.mean_and_error(np.ones((2, 1)))[1]).all()


def test_regret_is_the_best_arms_mean_minus_that_of_the_arm_pulled():
    env = gym.make("ArmedBanditTestbed-v0", num_arms=3)
    env.reset(seed=0)
    env.unwrapped.bandits.means[:] = [0.5, 2, -1]
    env.unwrapped.bandits.find_best_arms()
    assert [env.step(arm)[4]["regret"] for arm in range(3)] == [1.5, 0, 3]


def test_render_shows_the_arms():
    env = gym.make("ArmedBanditTestbed-v0", render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(3)
    after = env.render()
    env.close()
    assert before.dtype == np.uint8
    assert before.shape == after.shape
    assert before.shape[2] == 3
    assert np.any(before != after)  # the reward is shown


@pytest.mark.parametrize("action", [-1, 10, 2.5, [1, 2], None])
def test_an_action_that_is_not_an_arm_is_refused(action):
    env = gym.make("ArmedBanditTestbed-v0", disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(bandit.InputError, match=r"action .*: must be an integer from 0 to 9 for each bandit"):
        env.step(action)


# The agents


def agents(num_runs=None):
    return [bandit.make_agent(text, num_runs=num_runs) for text in bandit.DEFAULT_AGENTS]


def test_an_agent_serves_one_bandit_or_many():
    for agent in agents():
        env = gym.make("ArmedBanditTestbed-v0")
        rewards, _, _ = bandit.play(agent, env, 50, seed=1)
        assert rewards.shape == (50,)
    for agent in agents(num_runs=3):
        env = gym.make_vec("ArmedBanditTestbed-v0", num_envs=3)
        rewards, best, regret = bandit.play(agent, env, 50, seed=1)
        assert rewards.shape == best.shape == regret.shape == (50, 3)


def test_the_incremental_mean_is_the_batch_mean():
    agent = bandit.EpsilonGreedy(num_runs=2)
    rewards = np.random.default_rng(0).normal(size=(30, 2))
    for reward in rewards:
        agent.observe(np.array([4, 7]), reward, {})
    np.testing.assert_allclose([agent.q[0, 4], agent.q[1, 7]], rewards.mean(0))
    assert np.count_nonzero(agent.q) == 2


def test_a_constant_step_size_forgets_exponentially():
    """Eq. 2.6: with step size 1/2 from 8, rewards 4 and 2 give 8/4 + 4/4 + 2/2."""
    agent = bandit.EpsilonGreedy(initial=8, step_size=0.5)
    for reward in (4, 2):
        agent.observe(0, reward, {})
    assert agent.q[0] == 4


def test_epsilon_is_the_probability_of_an_arm_at_random():
    agent = bandit.EpsilonGreedy(num_runs=100_000, epsilon=0.3)
    agent.q[:, 6] = 1
    counts = np.bincount(agent.get_action(), minlength=10) / 100_000
    np.testing.assert_allclose(counts, [0.03] * 6 + [0.73] + [0.03] * 3, atol=0.005)


def test_ties_are_broken_at_random():
    agent = bandit.Greedy(num_runs=100_000)
    agent.q[:, :4] = 1
    counts = np.bincount(agent.get_action(), minlength=10) / 100_000
    np.testing.assert_allclose(counts, [0.25] * 4 + [0] * 6, atol=0.01)


def test_ucb_pulls_every_arm_first_and_then_adds_the_bonus():
    agent = bandit.UCB(num_runs=50)
    pulled = []
    for _ in range(10):
        pulled.append(agent.get_action())
        agent.observe(pulled[-1], np.random.default_rng(0).normal(size=50), {})
    assert np.array_equal(np.sort(pulled, 0), np.tile(np.arange(10), (50, 1)).T)

    # Eq. 2.10 at t = 11, by hand: 0.5 + 2 sqrt(ln 11 / 4) = 2.048 is less than 0 + 2 sqrt(ln 11 / 2) = 2.190.
    agent = bandit.UCB(num_arms=2, c=2)
    agent.pulls[:], agent.q[:] = (8, 2), (0.99, 0)  # 0.99 + 1.095 = 2.085
    assert agent.get_action() == 1
    agent.q[0] = 1.1
    assert agent.get_action() == 0


def test_gradient_preferences_sum_to_zero_change_and_follow_the_gradient():
    agent = bandit.GradientBandit(num_runs=5)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        agent.observe(agent.get_action(), rng.normal(size=5), {})
        np.testing.assert_allclose(agent.h.sum(-1), 0, atol=1e-12)

    agent = bandit.GradientBandit(num_arms=2, step_size=0.5)
    agent.get_action()
    agent.observe(0, 3.0, {})  # its own baseline
    assert agent.h.tolist() == [0, 0]
    agent.get_action()
    agent.observe(0, 5.0, {})  # Eq. 2.12, both probabilities 1/2: 0.5 (5 - 3) (1 - 1/2) and the same with a minus
    assert agent.h.tolist() == [0.5, -0.5]
    assert agent.average == 4
    np.testing.assert_allclose(agent.policy(), [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))])


def test_gradient_actions_have_the_policys_probabilities():
    agent = bandit.GradientBandit(num_arms=3, num_runs=100_000)
    agent.h[:] = np.log([1, 2, 7])
    np.testing.assert_allclose(np.bincount(agent.get_action()) / 100_000, [0.1, 0.2, 0.7], atol=0.005)


@pytest.mark.parametrize("baseline", [True, False])
def test_the_expected_step_is_the_exact_gradient_with_any_baseline(baseline):
    """The gradient of sum_a pi(a) r(a) with respect to H(a) is pi(a) (r(a) - sum_b pi(b) r(b))."""
    pi, r = np.array([0.1, 0.2, 0.7]), np.array([5.0, -1.0, 2.0])
    expected = np.zeros(3)
    for arm in range(3):
        agent = bandit.GradientBandit(num_arms=3, step_size=0.5, baseline=baseline)
        agent.h, agent.average, agent.t = np.log(pi), 7.0, 4  # after four rewards with average 7
        agent.get_action()
        agent.observe(arm, r[arm], {})
        expected += pi[arm] * (agent.h - np.log(pi))
    np.testing.assert_allclose(expected, 0.5 * pi * (r - pi @ r))


def test_thompson_sampling_pulls_an_arm_with_the_posterior_probability_that_it_is_best():
    """Arm 0 has a reward of 2, so posterior N(1, 1/2); arm 1 none, so N(0, 1): probability Phi(1 / sqrt(3/2))."""
    agent = bandit.ThompsonSampling(num_arms=2, num_runs=100_000)
    agent.observe(np.zeros(100_000, int), np.full(100_000, 2.0), {})
    expected = statistics.NormalDist().cdf(1 / 1.5**0.5)
    assert np.mean(agent.get_action() == 0) == pytest.approx(expected, abs=0.005)


def test_the_random_agent_pulls_all_arms_equally_often():
    counts = np.bincount(bandit.Random(num_runs=100_000).get_action(), minlength=10) / 100_000
    np.testing.assert_allclose(counts, [0.1] * 10, atol=0.005)


@pytest.mark.parametrize("text", bandit.DEFAULT_AGENTS)
def test_reset_forgets_everything_learned(text):
    agent = bandit.make_agent(text, num_runs=5)
    env = gym.make_vec("ArmedBanditTestbed-v0", num_envs=5)
    for first, second in zip(bandit.play(agent, env, 20, seed=3), bandit.play(agent, env, 20, seed=3)):
        assert np.array_equal(first, second)


def test_parameters_are_those_in_the_text():
    agent = bandit.make_agent("ucb:c=1,step_size=0.5,initial=-2", num_arms=4, num_runs=3)
    assert agent == bandit.UCB(num_arms=4, num_runs=3, initial=-2, step_size=0.5, c=1)
    assert bandit.make_agent("greedy:step_size=null").step_size is None
    assert bandit.make_agent("gradient:baseline=false").baseline is False


@pytest.mark.parametrize("name", bandit.AGENTS)
@pytest.mark.parametrize("field", ["num_arms", "num_runs"])
def test_an_agent_needs_an_arm_and_a_bandit(name, field):
    with pytest.raises(bandit.InputError, match=f"{field} 0: must be at least 1"):
        bandit.make_agent(name, **{field: 0})


def test_thompson_posterior_by_hand():
    """Prior N(1, 2^2), rewards 3 and 6 with variance 1: precision 1/4 + 2, mean (1/4 + 9) / (9/4) = 37/9."""
    agent = bandit.ThompsonSampling(num_arms=2, prior_mean=1, prior_std=2)
    for reward in (3, 6):
        agent.observe(0, reward, {})
    mean, std = agent.posterior()
    np.testing.assert_allclose(mean, [37 / 9, 1])
    np.testing.assert_allclose(std, [2 / 3, 2])


@pytest.mark.parametrize("stationary", [True, False])
def test_the_cheater_has_no_regret(stationary):
    env = gym.make_vec("ArmedBanditTestbed-v0", num_envs=20, stationary=stationary)
    _, best, regret = bandit.play(bandit.Cheater(num_runs=20), env, 300, seed=1)
    assert best.all()
    assert np.all(regret == 0)


# Against a plain simulation: one bandit at a time, in Python's own numbers, written independently of bandit.py


def plain_run(rng, kind, number, steps):
    """Average reward, and how often the best arm was pulled in the last 100 steps."""
    true = [rng.gauss(0, 1) for _ in range(10)]
    best = max(range(10), key=true.__getitem__)
    estimates, counts, total, hits = [5.0 if kind == "optimistic" else 0.0] * 10, [0] * 10, 0.0, 0
    preferences, average = [0.0] * 10, None
    for t in range(1, steps + 1):
        if kind == "gradient":
            weights = [math.exp(h) for h in preferences]
            arm = rng.choices(range(10), weights)[0]
        elif kind == "ucb":
            scores = [q + number * (math.log(t) / n) ** 0.5 if n else float("inf") for q, n in zip(estimates, counts)]
            arm = choose(rng, scores)
        elif kind == "epsilon" and rng.random() < number:
            arm = rng.randrange(10)
        else:
            arm = choose(rng, estimates)
        reward = rng.gauss(true[arm], 1)
        if kind == "gradient":
            baseline = reward if average is None else average
            whole = sum(weights)
            for a in range(10):
                preferences[a] += number * (reward - baseline) * ((a == arm) - weights[a] / whole)
            average = baseline + (reward - baseline) / t
        counts[arm] += 1
        estimates[arm] += (reward - estimates[arm]) * (0.1 if kind == "optimistic" else 1 / counts[arm])
        total += reward
        hits += arm == best and t > steps - 100
    return total / steps, hits / 100


def choose(rng, scores):
    highest = max(scores)
    return rng.choice([arm for arm, score in enumerate(scores) if score == highest])


PLAIN = {
    "greedy": ("epsilon", 0.0),
    "epsilon-greedy:epsilon=0.01": ("epsilon", 0.01),
    "epsilon-greedy:epsilon=0.1": ("epsilon", 0.1),
    "greedy:initial=5,step_size=0.1": ("optimistic", 0.0),
    "ucb:c=2": ("ucb", 2.0),
    "gradient:step_size=0.1": ("gradient", 0.1),
}


def compare(text, plain_runs, runs=2_000, steps=1_000):
    """Differences of average reward and of best arm, in standard errors."""
    rng = random.Random(0)
    plain = np.array([plain_run(rng, *PLAIN[text], steps) for _ in range(plain_runs)])
    env = gym.make_vec("ArmedBanditTestbed-v0", num_envs=runs, max_episode_steps=steps)
    reward, best, _ = bandit.play(bandit.make_agent(text, num_runs=runs), env, steps, seed=0)
    ours = np.stack([reward.mean(0), best[-100:].mean(0)], 1)
    error = np.sqrt(plain.var(0) / plain_runs + ours.var(0) / runs)
    return (ours.mean(0) - plain.mean(0)) / error


@pytest.mark.parametrize("text", PLAIN)
def test_agents_match_a_plain_simulation_of_one_bandit_at_a_time(text):
    assert np.abs(compare(text, plain_runs=300)).max() < 3  # three: twelve comparisons, and none may fail by chance


# The figures of the book


def table(tmp_path, *flags):
    bandit.train(bandit.Args(run_dir=str(tmp_path / "run"), **dict(flags)))
    with open(tmp_path / "run/table.csv", newline="") as file:
        return {row["agent"]: {key: float(row[key]) for key in row if key != "agent"} for row in csv.DictReader(file)}


@pytest.mark.slow
def test_figure_2_2_greedy_gets_stuck_and_exploring_pays(tmp_path):
    rows = table(tmp_path, ("figure", "2.2"))
    assert rows["greedy"]["reward"] == pytest.approx(1.0, abs=0.05)
    assert rows["epsilon-greedy:epsilon=0.1"]["best_arm"] == pytest.approx(80, abs=3)
    with open(tmp_path / "run/curves.csv", newline="") as file:
        last = [float(row["reward"]) for row in csv.DictReader(file) if row["agent"].endswith("0.1")][-100:]
    assert statistics.mean(last) == pytest.approx(1.37, abs=0.05)


@pytest.mark.slow
def test_figure_2_5_the_baseline_matters_where_rewards_are_far_from_0(tmp_path):
    rows = table(tmp_path, ("figure", "2.5"), ("runs", 500))
    for step_size in (0.1, 0.4):
        better, worse = (rows[f"gradient:step_size={step_size},baseline={b}"]["best_arm"] for b in ("true", "false"))
        assert better > worse + 20


@pytest.mark.slow
def test_figure_2_6_every_parameter_has_its_best_value_in_between(tmp_path):
    rows = table(tmp_path, ("figure", "2.6"), ("runs", 300))
    for name in bandit.PARAMETER_STUDY:
        curve = [row["reward"] for text, row in rows.items() if text.startswith(name)]
        assert 0 < int(np.argmax(curve)) < len(curve) - 1


# The command line


def run(*flags, cwd):
    argv = [sys.executable, bandit.__file__, "--runs=20", "--steps=30", *flags]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_every_flag_has_a_comment_on_its_line_which_is_its_help():
    lines = re.findall(r"^    (\w+): .+  # \w", inspect.getsource(bandit.Args), re.MULTILINE)
    assert lines == [field.name for field in dataclasses.fields(bandit.Args)]


@pytest.mark.slow
def test_a_run_prints_a_table_and_leaves_csv_and_a_figure(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"args.json", "curves.csv", "figure.png", "table.csv"}
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "args.json").read_text())["runs"] == 20
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(bandit.DEFAULT_AGENTS)
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-1] == f"results: runs/{folder.name}"
    with open(folder / "curves.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 30 * len(bandit.DEFAULT_AGENTS)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_another_seed_different_ones(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("--no-stationary", f"--run-dir={name}", f"--seed={seed}", cwd=tmp_path)
    a, b, c = ((tmp_path / name / "curves.csv").read_text() for name in "abc")
    assert a == b != c


def test_all_agents_play_the_same_bandits(tmp_path):
    rows = table(tmp_path, ("agents", ("cheater", "cheater", "random")), ("runs", 20), ("steps", 30))
    assert rows.keys() == {"cheater", "random"}
    env = gym.make_vec("ArmedBanditTestbed-v0", num_envs=20, max_episode_steps=30)
    means = []
    for agent in (bandit.Random(num_runs=20), bandit.Cheater(num_runs=20)):
        bandit.play(agent, env, 5, seed=1)
        means.append(env.unwrapped.means.copy())
    assert np.array_equal(*means)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--num-arms 0", "--num-arms 0: must be at least 1"),
        ("--runs -3", "--runs -3: must be at least 1"),
        ("--steps 0", "--steps 0: must be at least 1"),
        ("--seed -1", "--seed -1: must be at least 0"),
        ("--mean nan", "--mean nan: must be finite"),
        ("--figure 2.4 --num-arms 3", "--figure 2.4: cannot be combined with --num-arms"),
        ("--figure 2.4 --agents random", "--figure 2.4: cannot be combined with --agents"),
        ("--agents", "--agents: must name at least one agent"),
        (
            "--agents greedy:initial=NaN",
            "--agents greedy:initial=NaN: invalid parameter; greedy takes initial=0.0, step_size=null",
        ),
        (
            "--agents gradient:baseline=7",
            "--agents gradient:baseline=7: invalid parameter; gradient takes step_size=0.1, baseline=true",
        ),
        ("--agents ucb:c=true", "--agents ucb:c=true: invalid parameter; ucb takes"),
        ("--agents ucb:c=Infinity", "--agents ucb:c=Infinity: invalid parameter; ucb takes"),
        ("--agents ucb:epsilon=0.5", "--agents ucb:epsilon=0.5: invalid parameter; ucb takes"),
        ("--agents greedy:initial=null", "--agents greedy:initial=null: invalid parameter"),
        (f"--agents ucb:c={'9' * 400}", "9: invalid parameter; ucb takes"),
        ("--agents ucb:c=[1]", "--agents ucb:c=[1]: invalid parameter"),
        ("--figure 2.7", "--figure"),
        (
            "--agents nobody",
            "--agents nobody: unknown agent; use random, greedy, epsilon-greedy, ucb, gradient, thompson, cheater",
        ),
        ("--agents ucb:d=2", "--agents ucb:d=2: invalid parameter; ucb takes initial=0.0, step_size=null, c=2.0"),
        ("--agents ucb:c", "--agents ucb:c: invalid parameter; ucb takes"),
        ("--agents ucb:c=x", "--agents ucb:c=x: invalid parameter; ucb takes"),
        ("--agents random:c=1", "--agents random:c=1: invalid parameter; random takes no parameters"),
        (
            "--agents epsilon-greedy:epsilon=1.5",
            "--agents epsilon-greedy:epsilon=1.5: epsilon 1.5: must be between 0 and 1",
        ),
        ("--agents epsilon-greedy:step_size=2", "step_size 2: must be between 0 and 1"),
        ("--agents gradient:step_size=-1", "step_size -1: must be at least 0"),
        ("--agents thompson:prior_std=0", "prior_std 0: must be between 0.001 and 1000"),
        ("--agents ucb:c=-1", "c -1: must be at least 0"),
    ],
)
def test_invalid_input_is_refused_and_nothing_is_written(capsys, monkeypatch, tmp_path, flags, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bandit.py", *flags.split()])
    with pytest.raises(SystemExit) as exit:
        bandit.main()
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in " ".join(captured.err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_results_are_not_overwritten(tmp_path):
    assert run("--run-dir=out", cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = run("--run-dir=out", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "bandit.py: --run-dir out: already holds results; choose another folder\n"
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.slow
def test_a_file_as_run_dir_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    done = run("--run-dir=out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bandit.py: --run-dir out: is a file; choose a folder\n"
    assert (tmp_path / "out").read_text() == "mine"


def test_a_single_run_has_no_standard_error(tmp_path):
    rows = table(tmp_path, ("agents", ("random",)), ("runs", 1), ("steps", 5))
    assert math.isnan(rows["random"]["reward_error"])
    assert math.isfinite(rows["random"]["reward"])


@pytest.mark.slow
def test_tracking_works_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = run("--track", "--run-dir=out", "--agents", "random", "ucb:c=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb"))
