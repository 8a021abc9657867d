"""bandit.py: the environment, each agent by hand, and the figures of the book."""

import csv
import inspect
import statistics

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import bandit

MANY, EPSILON_GREEDY = 100_000, "epsilon-greedy:epsilon=0.1"
make_envs = bandit.VectorMultiArmedBandit


def shares(actions, num_arms=10):
    return np.bincount(actions, minlength=num_arms) / len(actions)


# The environment


@pytest.mark.parametrize("stationary", [True, False])
def test_the_environment_keeps_gymnasiums_rules(stationary):
    env = gym.make("ArmedBanditTestbed-v0", stationary=stationary)
    assert env.spec.max_episode_steps == 1_000
    check_env(env.unwrapped)
    assert (env.observation_space, env.action_space) == (gym.spaces.Discrete(1), gym.spaces.Discrete(10))


def test_the_loop_of_the_docstring_runs_as_it_is_written():
    loop = inspect.cleandoc("    env = " + bandit.__doc__.split("    env = ")[1])
    names = dict(vars(bandit))
    exec(loop, names)
    agent, means = names["agent"], names["env"].unwrapped.bandits.means[0]
    assert agent.pulls.sum() == 1_000 and agent.pulls.max() > 500 and names["truncated"]
    np.testing.assert_allclose(agent.q.max(), means[agent.pulls.argmax()], atol=0.2)


@pytest.mark.parametrize("name", bandit.AGENTS)
def test_every_agent_plays_the_single_environment_as_it_plays_many(name):
    agent, steps = bandit.make_agent(name), []
    for env in gym.make("ArmedBanditTestbed-v0", num_arms=10, stationary=True), make_envs(1):
        _, info = env.reset(seed=3)
        agent.reset(5, info)
        for _ in range(50):
            arm = agent.get_action()
            obs, reward, _, _, info = env.step(arm)
            agent.observe(arm, reward, info)
            steps.append((arm, obs, reward, info["best_arm"], info["regret"]))
        assert agent.pulls.sum() == 50
    assert steps[:50] == steps[50:]


def test_true_means_and_rewards_have_standard_deviation_1():
    envs = make_envs(MANY, mean=4.0)
    envs.reset(seed=0)
    obs, reward, terminated, truncated, _ = envs.step(np.full(MANY, 2))
    noise = reward - envs.means[:, 2]
    for x, mean in (envs.means, 4), (noise, 0):
        assert x.mean() == pytest.approx(mean, abs=0.02) and x.std() == pytest.approx(1, abs=0.02)
    assert not np.any([obs, terminated, truncated])
    assert [set(space.nvec) for space in (envs.observation_space, envs.action_space)] == [{1}, {10}]


def test_arms_that_drift_have_the_stated_variance():
    """All begin at 2; after t steps of a random walk by N(0, 0.01^2) the variance is 0.0001 t."""
    envs = make_envs(2_000, stationary=False, mean=2.0)
    envs.reset(seed=0)
    assert np.all(envs.means == 2)
    for _ in range(400):
        *_, info = envs.step(np.zeros(2_000, int))
    assert envs.means.mean() == pytest.approx(2, abs=0.01)
    assert envs.means.var() == pytest.approx(0.0001 * 400, rel=0.05)
    assert np.array_equal(info["best_arm"], envs.means.argmax(-1))


def test_regret_is_the_best_arms_mean_minus_that_of_the_arm_pulled():
    env = gym.make("ArmedBanditTestbed-v0", num_arms=3, means=(0.5, 2, -1))
    _, info = env.reset(seed=0)
    assert info == {"best_arm": 1, "regret": 0}
    assert [env.step(arm)[4]["regret"] for arm in range(3)] == [1.5, 0, 3]


@pytest.mark.parametrize("action", [-1, 10, 2.5, [1, 2], None])
def test_an_action_that_is_not_an_arm_is_refused(action):
    env = gym.make("ArmedBanditTestbed-v0", disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(bandit.InputError, match=r"action .*: must be an integer from 0 to 9 for each bandit"):
        env.step(action)


def test_play_records_reward_best_arm_and_regret_of_each_step():
    """Of the drifting arms too: the best arm is the one before the step."""
    envs, agent = make_envs(50, stationary=False), bandit.Random(num_runs=50)
    reward, best, regret = bandit.play(agent, envs, 400, seed=1)
    assert reward.shape == best.shape == regret.shape == (400, 50)
    assert np.array_equal(best[1:] == 1, regret[1:] == 0) and not regret[0].any()  # equal means at first
    assert np.abs(reward).max() > 3 and agent.pulls.sum() == 400 * 50


# The agents


@pytest.mark.parametrize("text", bandit.DEFAULT_AGENTS)
def test_the_same_seed_gives_the_same_bandits_to_all_agents_and_the_same_run_after_a_reset(text):
    agent, envs = bandit.make_agent(text, num_runs=5), make_envs(5)
    bandit.play(bandit.Random(num_runs=5), envs, 1, seed=3)
    means = envs.means
    first, again, other = (bandit.play(agent, envs, 20, seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    bandit.play(agent, envs, 1, seed=3)
    assert np.array_equal(envs.means, means)


def test_greedy_pulls_the_arm_with_the_highest_estimate_and_breaks_ties_at_random():
    agent = bandit.Greedy(num_runs=2)
    agent.q[0, 3], agent.q[1, 7] = 1, 0.1
    assert agent.get_action().tolist() == [3, 7]
    agent = bandit.Greedy(num_runs=MANY)
    agent.q[:, :4] = 1
    np.testing.assert_allclose(shares(agent.get_action()), [0.25] * 4 + [0] * 6, atol=0.01)


def test_the_estimate_is_the_mean_of_the_arms_rewards():
    """Eq. 2.3; whatever the initial estimate."""
    agent = bandit.EpsilonGreedy(num_runs=2, initial=50)
    rewards = np.random.default_rng(0).normal(size=(30, 2))
    for reward in rewards:
        agent.observe(np.array([4, 7]), reward, {})
    np.testing.assert_allclose([agent.q[0, 4], agent.q[1, 7]], rewards.mean(0))
    assert np.count_nonzero(agent.q == 50) == 18


def test_a_constant_step_size_forgets_exponentially():
    """Eq. 2.6: with step size 1/2 from 8, rewards 4 and 2 give 8/4 + 4/4 + 2/2."""
    agent = bandit.make_agent("epsilon-greedy:initial=8,step_size=0.5")
    for reward in (4, 2):
        agent.observe(0, reward, {})
    assert agent.q[0].tolist() == [4, *[8] * 9]


def test_epsilon_is_the_probability_of_an_arm_at_random():
    agent = bandit.EpsilonGreedy(num_runs=MANY, epsilon=0.3)
    agent.q[:, 6] = 1
    np.testing.assert_allclose(shares(agent.get_action()), [0.03] * 6 + [0.73] + [0.03] * 3, atol=0.005)
    np.testing.assert_allclose(shares(bandit.Random(num_runs=MANY).get_action()), [0.1] * 10, atol=0.005)


def test_ucb_pulls_every_arm_first_and_then_adds_the_bonus():
    """Eq. 2.10 at t = 11: 2 sqrt(ln 11 / 8), 2 sqrt(ln 11 / 2) and no bound yet; at t = 4, twice 2 sqrt(ln 4)."""
    agent = bandit.UCB(num_runs=2, num_arms=3, c=2)
    agent.pulls[:], agent.q[:] = [(8, 2, 0), (1, 1, 1)], [(0.9, 0, 0), (0, 0, 1)]
    assert agent.get_action().tolist() == [2, 2]
    agent.argmax = lambda bound: bound
    bounds = [(0.9 + 1.095, 2.190, np.inf), (2.355, 2.355, 3.355)]
    np.testing.assert_allclose(agent.get_action(), bounds, atol=5e-4)


def test_the_step_of_the_gradient_bandit_by_hand():
    """Eq. 2.12. The baseline is the average of the rewards before time t, at t = 1 the reward itself."""
    agent, arms = bandit.GradientBandit(num_arms=2, num_runs=2, step_size=0.5), np.array([0, 1])
    agent.observe(arms, np.array([3.0, 10.0]), {})
    assert agent.h.tolist() == [[0, 0], [0, 0]]
    agent.observe(arms, np.array([5.0, 6.0]), {})  # 0.5 (5 - 3) (1 - 1/2) and 0.5 (6 - 10) (1 - 1/2)
    assert agent.h.tolist() == [[0.5, -0.5], [1, -1]] and agent.average.tolist() == [4, 8]
    np.testing.assert_allclose(agent.policy()[0], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))])
    agent.observe(arms, np.array([7.0, 8.0]), {})
    assert agent.average.tolist() == [5, 8]
    agent = bandit.make_agent("gradient:step_size=0.5,baseline=false", num_arms=2)
    agent.observe(1, 6.0, {})
    assert agent.h.tolist() == [[-1.5, 1.5]]


@pytest.mark.parametrize("baseline", [True, False])
def test_the_expected_step_is_the_exact_gradient_with_any_baseline(baseline):
    """The gradient of sum_a pi(a) r(a) with respect to H(a) is pi(a) (r(a) - sum_b pi(b) r(b))."""
    pi, r = np.array([0.1, 0.2, 0.7]), np.array([5.0, -1.0, 2.0])
    expected = np.zeros(3)
    for arm in range(3):
        agent = bandit.GradientBandit(num_arms=3, step_size=0.5, baseline=baseline)
        agent.h[:], agent.average[:], agent.t = np.log(pi), 7.0, 4  # after four rewards with average 7
        agent.observe(arm, r[arm], {})
        expected += pi[arm] * (agent.h[0] - np.log(pi))
    np.testing.assert_allclose(expected, 0.5 * pi * (r - pi @ r))


def test_gradient_actions_have_the_policys_probabilities_also_where_preferences_are_far_apart():
    agent = bandit.GradientBandit(num_arms=4, num_runs=MANY)
    agent.h[:] = [-1_000, *np.log([1, 2, 7]) + 1_000]
    np.testing.assert_allclose(shares(agent.get_action(), 4), [0, 0.1, 0.2, 0.7], atol=0.005)


def test_thompson_posterior_by_hand():
    """Prior N(1, 2^2), rewards 3 and 6 with variance 1: precision 1/4 + 2, mean (1/4 + 9) / (9/4) = 37/9."""
    agent = bandit.ThompsonSampling(num_arms=2, prior_mean=1, prior_std=2)
    for reward in (3, 6):
        agent.observe(0, reward, {})
    mean, std = agent.posterior()
    np.testing.assert_allclose(mean, [[37 / 9, 1]])
    np.testing.assert_allclose(std, [[2 / 3, 2]])


def test_thompson_sampling_pulls_an_arm_with_the_posterior_probability_that_it_is_best():
    """Arm 0 has a reward of 2, so posterior N(1, 1/2); arm 1 none, so N(0, 1): probability Phi(1 / sqrt(3/2))."""
    agent = bandit.ThompsonSampling(num_arms=2, num_runs=MANY)
    agent.observe(np.zeros(MANY, int), np.full(MANY, 2.0), {})
    expected = statistics.NormalDist().cdf(1 / 1.5**0.5)
    assert np.mean(agent.get_action() == 0) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("stationary", [True, False])
def test_the_cheater_has_no_regret(stationary):
    _, best, regret = bandit.play(bandit.Cheater(num_runs=20), make_envs(20, stationary=stationary), 300, seed=1)
    assert best.all() and np.all(regret == 0)


def test_the_constant_of_lai_and_robbins_by_hand():
    """Gaps 1/2, 2 and 4, twice the best arm: 2 / (1/2) + 2 / 2 + 2 / 4."""
    assert bandit.lai_robbins((3, 2.5, 3, 1, -1)) == 5.5


def test_the_standard_error_by_hand():
    mean, error = bandit.mean_and_error(np.array([[1.0, 2, 3, 6], [5, 5, 5, 5]]))
    assert mean.tolist() == [3, 5]
    np.testing.assert_allclose(error, [(14 / 3) ** 0.5 / 2, 0])
    assert np.isnan(bandit.mean_and_error(np.ones((2, 1)))[1]).all()


# The figures


def figure(folder, name, runs):
    """{agent: row} of table.csv and {(agent, step): row} of curves.csv."""
    bandit.train(bandit.Args(figure=name, runs=runs, run_dir=str(folder)))
    table, curves = ([*csv.DictReader((folder / name).open())] for name in ("table.csv", "curves.csv"))
    for row in table + curves:
        row |= {key: float(x) for key, x in row.items() if key != "agent"}
    return {row["agent"]: row for row in table}, {(row["agent"], row["step"]): row for row in curves}


@pytest.mark.slow
def test_figure_2_2_greedy_gets_stuck_and_exploring_pays(tmp_path):
    table, curves = figure(tmp_path, "2.2", runs=1_000)
    assert table["greedy"]["reward"] == pytest.approx(1.0, abs=0.06)
    assert table[EPSILON_GREEDY]["best_arm"] == pytest.approx(80, abs=3)
    last = [curves[EPSILON_GREEDY, t]["reward"] for t in range(901, 1_001)]
    assert statistics.mean(last) == pytest.approx(1.37, abs=0.06)
    assert {path.name for path in tmp_path.iterdir()} == {"args.json", "curves.csv", "figure.png", "table.csv"}


@pytest.mark.slow
def test_figure_2_5_the_baseline_matters_where_rewards_are_far_from_0(tmp_path):
    table, _ = figure(tmp_path, "2.5", runs=200)
    for step_size in (0.1, 0.4):
        better, worse = (table[f"gradient:step_size={step_size},baseline={b}"]["best_arm"] for b in ("true", "false"))
        assert better > worse + 20


@pytest.mark.slow
def test_figure_2_6_every_parameter_has_its_best_value_in_between(tmp_path):
    table, _ = figure(tmp_path, "2.6", runs=100)
    for name in bandit.PARAMETER_STUDY:
        curve = [row["reward"] for text, row in table.items() if text.startswith(name)]
        assert 0 < int(np.argmax(curve)) < len(curve) - 1


@pytest.mark.slow
def test_exercise_2_5_a_constant_step_size_follows_arms_that_drift(tmp_path):
    """Sample averages weigh all rewards alike, however old, and fall behind."""
    table, _ = figure(tmp_path, "exercise-2.5", runs=100)
    average, constant = table.values()
    assert constant["best_arm"] > average["best_arm"] + 15
    assert constant["reward"] > average["reward"] + 0.05


@pytest.mark.slow
def test_regret_grows_like_t_for_epsilon_greedy_and_like_log_t_for_ucb(tmp_path):
    """With c = 2 at twice the rate of c^2 = 2, which nears that of Lai and Robbins."""
    _, curves = figure(tmp_path, "regret", runs=100)
    regret = {key: row["regret"] for key, row in curves.items()}
    least = 13.7  # 2 / 0.54 + 2 / 0.88 + ... + 2 / 3.08
    assert bandit.lai_robbins(bandit.TYPICAL_MEANS) == pytest.approx(least, abs=0.05)
    for agent, times in ("ucb:c=1.414", 1), ("ucb:c=2", 2):
        slope = (regret[agent, 10_000] - regret[agent, 1_000]) / np.log(10)
        assert 1 < slope / (times * least) < 1.5
    first, second = (regret[EPSILON_GREEDY, t + 4_000] - regret[EPSILON_GREEDY, t] for t in (2_000, 6_000))
    assert second == pytest.approx(first, rel=0.05)
