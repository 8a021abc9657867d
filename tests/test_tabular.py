"""tabular.py: exact values, identities between the methods, plain loops, and the figures of the book."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import tabular

# Models


@cache
def gymnasium_model(env_id, **kwargs):
    return tabular.gymnasium_model(gym.make(env_id, **kwargs))


def grid(rows, columns, move_to):
    """P of a grid with moves up, right, down, left; move_to(cell, move) gives [(p, next cell, reward, end), ...]."""
    cells, moves, P = list(np.ndindex(rows, columns)), [(-1, 0), (0, 1), (1, 0), (0, -1)], {}
    for s, cell in enumerate(cells):
        outcomes = [move_to(cell, move) for move in moves]
        P[s] = {a: [(p, cells.index(to), r, end) for p, to, r, end in outcomes[a]] for a in range(4)}
    return P


def gambler(p):
    """Example 4.3: state s is a capital of s + 1, action a a stake of a + 1; reward 1 at a capital of 100."""
    P = {capital - 1: {} for capital in range(1, 100)}
    for s, capital in enumerate(range(1, 100)):
        for stake in range(1, min(capital, 100 - capital) + 1):
            win, lose = capital + stake, capital - stake
            outcomes = [(p, min(win, 99) - 1, float(win == 100), win == 100), (1 - p, max(lose, 1) - 1, 0, lose == 0)]
            P[s][stake - 1] = outcomes
    return tabular.make_model(P, np.full(99, 1 / 99))


CARDS = {card: 1 / 13 for card in range(1, 10)} | {10: 4 / 13}


def value(total, ace):
    """Of a hand whose aces count 1 in total."""
    return total + 10 if ace and total <= 11 else total


@cache
def dealer_results(total, ace, num_cards):
    """Probability of each final (score, is a natural); a bust scores 0."""
    score = value(total, ace)
    if score >= 17:
        return {(score if score <= 21 else 0, num_cards == 2 and score == 21): 1.0}
    results = Counter()
    for card, p in CARDS.items():
        more = dealer_results(total + card, ace or card == 1, num_cards + 1)
        results.update({result: p * q for result, q in more.items()})
    return results


@cache
def blackjack(rules=""):
    """Exact model of Blackjack-v1. States (total, dealer's card, ace, natural); actions stick and hit."""
    states = itertools.product(range(2, 22), range(1, 11), (False, True), (False, True))
    number, P = {state: i for i, state in enumerate(states)}, {}
    for (total, dealer, ace, is_natural), s in number.items():
        stick, hit = [], []
        for (score, dealer_natural), p in dealer_results(dealer, dealer == 1, 1).items():
            reward = float(np.sign(value(total, ace) - score))
            if rules == "sab" and is_natural and not dealer_natural:
                reward = 1.0
            if rules == "natural" and is_natural and reward == 1:
                reward = 1.5
            stick.append((p, s, reward, True))
        for card, p in CARDS.items():
            bust = total + card > 21
            to = s if bust else number[total + card, dealer, ace or card == 1, False]
            hit.append((p, to, -float(bust), bust))
        P[s] = {0: stick, 1: hit}
    start = np.zeros(len(number))
    for (one, p), (two, q), (dealer, r) in itertools.product(CARDS.items(), repeat=3):
        ace = 1 in (one, two)
        start[number[one + two, dealer, ace, ace and 10 in (one, two)]] += p * q * r
    return tabular.make_model(P, start), number


def random_policy(model):
    return model.legal / model.num_actions[:, None]


def optimal_value(model, gamma=1.0):
    """From the start, by value iteration; policy iteration must agree."""
    v = tabular.value_iteration(model, gamma)
    w, policy = tabular.policy_iteration(model, gamma)
    np.testing.assert_allclose(v[model.visited], w[model.visited], atol=1e-6)
    u = tabular.evaluate(model, policy, gamma)
    np.testing.assert_allclose(u[model.visited], w[model.visited], atol=1e-9)
    return model.start @ w


# Planning: exact values

OPTIMAL = [
    ("FrozenLake-v1", {}, {1: 14 / 17, 0.99: 0.542026, 0.9: 0.068891}),
    ("FrozenLake-v1", {"is_slippery": False}, {0.99: 0.99**5}),
    ("FrozenLake8x8-v1", {}, {0.99: 0.414640}),
    ("CliffWalking-v1", {}, {1: -13, 0.99: -12.247898, 0.9: -7.458134}),
    ("CliffWalkingSlippery-v1", {}, {1: -64.709176, 0.99: -46.352672}),
    ("Taxi-v4", {}, {1: 7.93, 0.99: 6.327464, 0.9: -1.263323}),
    ("Taxi-v4", {"is_rainy": True}, {1: 3.954575}),
]


@pytest.mark.parametrize(("env_id", "kwargs", "values"), OPTIMAL)
def test_the_optimal_value_of_gymnasiums_environments(env_id, kwargs, values):
    for gamma, value in values.items():
        assert optimal_value(gymnasium_model(env_id, **kwargs), gamma) == pytest.approx(value, abs=2e-6)


def test_within_a_time_limit_a_policy_that_counts_the_steps_left_is_better_than_the_best_stationary_one():
    for env_id, limit, best, stationary, random in [
        ("FrozenLake-v1", 100, 0.744190, 0.740165, 0.013940),
        ("FrozenLake8x8-v1", 200, 0.913220, 0.862955, 0.001901),
    ]:
        model = gymnasium_model(env_id)
        assert tabular.best_return(model, limit) == pytest.approx(best, abs=1e-6)
        q = tabular.q_values(model, tabular.value_iteration(model, 0.99), 0.99)
        assert tabular.expected_return(model, q.argmax(-1)[None], limit) == pytest.approx(stationary, abs=1e-6)
        assert tabular.best_return(model.under(random_policy(model)), limit) == pytest.approx(random, abs=1e-6)


def test_the_random_policy():
    cliff = gymnasium_model("CliffWalking-v1")
    assert tabular.evaluate(cliff, random_policy(cliff), 1) @ cliff.start == pytest.approx(-65375.13, abs=0.01)
    taxi = gymnasium_model("Taxi-v4")
    assert tabular.best_return(taxi.under(random_policy(taxi)), 200) == pytest.approx(-771.09, abs=0.01)
    maze = tabular.maze()
    steps = replace(maze, reward=np.ones_like(maze.reward))
    assert tabular.evaluate(steps, random_policy(steps), 1) @ steps.start == pytest.approx(868.7, abs=0.1)


def test_the_best_policies_that_explore():
    """With probability epsilon = .1 any action: the cliff's best is -20.708, the maze's takes 15.81 steps."""

    def value(model, epsilon=0.1):
        v = np.zeros(len(model.start))
        for _ in range(1_000):
            q = tabular.q_values(model, v, 1)
            v = (1 - epsilon) * q.max(-1) + epsilon * q.mean(-1)
        return v @ model.start

    maze = tabular.maze()
    cost = replace(maze, reward=-np.ones_like(maze.reward))
    assert value(tabular.cliff()) == pytest.approx(-20.708, abs=1e-3)
    assert value(cost) == pytest.approx(-15.81, abs=0.005) and optimal_value(cost) == -14


def test_figures_3_2_and_3_5_the_gridworld():
    """From A and B any action jumps, with reward 10 and 5; off the grid costs 1."""

    def move_to(cell, move):
        if cell in ((0, 1), (0, 3)):
            return [(1, (4, 1), 10, False)] if cell == (0, 1) else [(1, (2, 3), 5, False)]
        to = tuple(np.add(cell, move))
        return [(1, to, 0, False)] if to in np.ndindex(5, 5) else [(1, cell, -1, False)]

    model = tabular.make_model(grid(5, 5, move_to), np.full(25, 1 / 25))
    v = tabular.evaluate(model, random_policy(model), 0.9).reshape(5, 5).round(1)
    assert v[0].tolist() == [3.3, 8.8, 4.4, 5.3, 1.5] and v[4].tolist() == [-1.9, -1.3, -1.2, -1.4, -2.0]
    v, _ = tabular.policy_iteration(model, 0.9)
    assert v.reshape(5, 5)[0].round(1).tolist() == [22.0, 24.4, 22.0, 19.4, 17.5]
    assert v[1] == pytest.approx(10 / (1 - 0.9**5))


def test_example_6_5_the_windy_gridworld():
    """The shortest path takes 15 steps."""
    wind = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)

    def move_to(cell, move):
        row = cell[0] + move[0] - wind[cell[1]]
        to = tuple(np.clip((row, cell[1] + move[1]), 0, (6, 9)))
        return [(1, to, -1, to == (3, 7))]

    assert optimal_value(tabular.make_model(grid(7, 10, move_to), np.eye(70)[30])) == -15


def test_figure_4_1_iterative_policy_evaluation():
    """Two corners end the episode, each move costs 1."""

    def move_to(cell, move):
        to = tuple(np.clip(np.add(cell, move), 0, 3))
        return [(1, to, -1, to in ((0, 0), (3, 3)))]

    model = tabular.make_model(grid(4, 4, move_to), [0, *[1 / 14] * 14, 0])
    process, sweeps = model.under(random_policy(model)), [np.zeros(16)]
    for _ in range(10):
        v = tabular.q_values(process, sweeps[-1], 1).max(-1)
        v[[0, 15]] = 0  # terminal
        sweeps.append(v)
    assert sweeps[1][1] == -1 and sweeps[2][1:3].tolist() == [-1.75, -2]
    assert sweeps[3][1:4].tolist() == [-2.4375, -2.9375, -3]
    assert sweeps[10][1:4].round(1).tolist() == [-6.1, -8.4, -9.0]
    exact = tabular.evaluate(model, random_policy(model), 1)
    np.testing.assert_allclose(exact[1:8], [-14, -20, -22, -14, -18, -20, -20])
    np.testing.assert_allclose(tabular.value_iteration(process, 1)[1:15], exact[1:15], atol=1e-7)


def test_figure_4_3_the_gambler():
    v = tabular.value_iteration(gambler(0.4), 1)
    np.testing.assert_allclose(v[[24, 49, 74]], [0.16, 0.4, 0.64], atol=1e-9)
    np.testing.assert_allclose(v[[0, 98]], [0.0021, 0.9643], atol=5e-5)
    v = tabular.value_iteration(gambler(0.25), 1)
    np.testing.assert_allclose(v[[24, 49, 74]], [0.0625, 0.25, 0.4375], atol=1e-9)


def test_blackjack():
    for rules, optimum in ("sab", -0.043113), ("", -0.046556), ("natural", -0.025729):
        assert optimal_value(blackjack(rules)[0]) == pytest.approx(optimum, abs=1e-6)
    for rules, stick_on_20 in ("sab", -0.350111), ("", -0.353554):
        model, number = blackjack(rules)
        policy = np.array([[1.0, 0.0] if value(total, ace) >= 20 else [0.0, 1.0] for total, _, ace, _ in number])
        v = tabular.evaluate(model, policy, 1)
        assert v @ model.start == pytest.approx(stick_on_20, abs=1e-6)
        assert v[number[3, 2, True, False]] == pytest.approx(-0.277204, abs=1e-6)  # an ace and a 2: 13


def test_the_optimal_policy_of_blackjack_is_that_of_figure_5_2():
    model, number = blackjack("sab")
    q = tabular.q_values(model, tabular.value_iteration(model, 1), 1)
    hit = {state[:3]: q[i].argmax() == 1 for state, i in number.items() if not state[3]}
    for dealer in range(1, 11):
        soft = [hit[total - 10, dealer, True] for total in range(12, 22)]
        hard = [hit[total, dealer, False] for total in range(12, 22)]
        assert soft == [total <= (18 if dealer in (1, 9, 10) else 17) for total in range(12, 22)]
        limit = 16 if dealer in (1, 7, 8, 9, 10) else 12 if dealer in (2, 3) else 11
        assert hard == [total <= limit for total in range(12, 22)]


def test_with_gamma_1_values_that_are_not_finite_are_refused():
    model = gymnasium_model("CliffWalking-v1")
    always_left = np.eye(4)[np.full(48, 3)]
    assert tabular.evaluate(model, always_left, 0.9) @ model.start == pytest.approx(-10)
    with pytest.raises(tabular.InputError, match="improper"):
        tabular.evaluate(model, always_left, 1)
    model = tabular.make_model({0: {0: [(1, 0, 1, False)]}}, [1.0])
    assert tabular.value_iteration(model, 0.5) == pytest.approx(2)
    with pytest.raises(tabular.InputError, match="--gamma 1: value iteration does not converge"):
        tabular.value_iteration(model, 1)


# The learners against plain loops


def recorded(text, world, gamma=0.9, steps=None, episodes=None):
    """An agent after some steps or episodes, and its steps."""
    agent, history = tabular.make_agent(text, world=world, gamma=gamma), []
    learn = agent.learn
    agent.learn = lambda step: history.append(step) or learn(step)
    tabular.play(agent, world, 1, steps, episodes)
    return agent, history


@pytest.mark.parametrize("kind", ["q-learning", "expected-sarsa", "sarsa"])
def test_one_step_methods_agree_with_a_plain_loop(kind):
    world = tabular.Simulator(gymnasium_model("FrozenLake-v1"), 1)
    agent, history = recorded(f"{kind}:alpha=0.3,epsilon=0.2,explore=0,initial=1", world, episodes=50)
    q = np.ones((16, 4))
    for step, after in zip(history, [*history[1:], history[0]]):
        s, a, next_s = step.state[0], step.action[0], step.next_state[0]
        value = {
            "q-learning": max(q[next_s]),
            "expected-sarsa": 0.2 * sum(q[next_s]) / 4 + 0.8 * max(q[next_s]),
            "sarsa": q[next_s, after.action[0]],
        }[kind]
        q[s, a] += 0.3 * (step.reward[0] + 0.9 * value * ~step.terminated[0] - q[s, a])
    np.testing.assert_allclose(agent.q[0], q, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 1_000])
def test_n_step_td_agrees_with_the_pseudocode_of_section_7_1(n):
    world = tabular.Simulator(tabular.random_walk(5, -1.0), 1)
    agent, history = recorded(f"n-step-sarsa:n={n},alpha=0.3", world, episodes=50)
    v, episode = np.zeros(5), []
    for step in history:
        episode.append((step.state[0], step.reward[0]))
        if step.terminated[0]:
            T = len(episode)
            for tau, (s, _) in enumerate(episode):
                G = sum(0.9 ** (i - tau) * episode[i][1] for i in range(tau, min(tau + n, T)))
                if tau + n < T:
                    G += 0.9**n * v[episode[tau + n][0]]
                v[s] += 0.3 * (G - v[s])
            episode = []
    np.testing.assert_allclose(agent.q[0, :, 0], v, atol=1e-12)


def test_first_visit_is_unbiased_after_one_episode_and_every_visit_is_not():
    """A state that repeats with probability 1/2, reward 1: v = 2, but the mean over visits is 1.5 on average."""
    P = {0: {0: [(0.5, 0, 1, False), (0.5, 0, 1, True)]}}
    world = tabular.Simulator(tabular.make_model(P, [1.0]), 20_000)
    for first_visit, expected in ((True, 2.0), (False, 1.5)):
        agent = tabular.MonteCarlo(world, 1.0, power=1, first_visit=first_visit)
        finished, _ = tabular.play(agent, world, 1, episodes=1, error=lambda agent, run: agent.q[run, 0, 0])
        values = finished.error  # after the first episode
        assert abs(values.mean() - expected) < 5 * values.std() / 20_000**0.5


@pytest.mark.parametrize("replacing", [True, False])
def test_td_lambda_agrees_with_a_plain_loop_over_one_run(replacing):
    world = tabular.Simulator(tabular.random_walk(5, -1.0), 1)
    agent, history = recorded(f"sarsa-lambda:lam=0.7,alpha=0.2,replacing={json.dumps(replacing)}", world, steps=500)
    v, z = np.zeros(5), np.zeros(5)
    for step in history:
        s, r, next_s, end = (getattr(step, x)[0] for x in ("state", "reward", "next_state", "terminated"))
        error = r + (0 if end else 0.9 * v[next_s]) - v[s]
        z *= 0.9 * 0.7
        z[s] = 1 if replacing else z[s] + 1
        v += 0.2 * error * z
        z *= not end
    np.testing.assert_allclose(agent.q[0, :, 0], v, atol=1e-12)


def test_epsilon_falls_from_1_over_the_first_half_of_the_steps_and_then_stays():
    world = tabular.Simulator(gymnasium_model("FrozenLake-v1"), 1)
    agent, epsilons = tabular.make_agent("q-learning", world=world, gamma=0.9), []
    act = agent.act
    agent.act = lambda run, state: epsilons.append(agent.current_epsilon()) or act(run, state)
    tabular.play(agent, world, seed=1, steps=8)
    assert epsilons == pytest.approx([0.775, 0.55, 0.325, 0.1, 0.1, 0.1, 0.1, 0.1])


# Identities, bit for bit


@cache
def learned(text):
    world = tabular.Simulator(gymnasium_model("FrozenLake-v1"), 5, limit=100)
    return recorded(text, world, steps=1_000)[0].q


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("n-step-sarsa:n=1", "sarsa"),
        ("n-step-sarsa:n=100", "monte-carlo:first_visit=false"),
        ("sarsa-lambda:lam=0,replacing=true", "sarsa"),
        ("sarsa-lambda:lam=0,replacing=false", "sarsa"),
        ("expected-sarsa:epsilon=0,explore=0", "q-learning:epsilon=0,explore=0"),
        ("dyna-q:planning=0", "q-learning"),
    ],
)
def test_identities(one, other):
    assert np.array_equal(learned(one), learned(other))
    assert np.count_nonzero(learned(one)) > 20


def test_example_6_4_you_are_the_predictor():
    """A, 0, B, 0 once, B, 1 six times, B, 0 once: batch TD says V(A) = 3/4, batch Monte Carlo 0."""
    world = tabular.Simulator(tabular.random_walk(2, 0.0), 1)
    episodes = [[(0, 0, 1, False), (1, 0, 1, True)], *[[(1, 1, 1, True)]] * 6, [(1, 0, 1, True)]]
    for text, values in ("batch-td", [0.75, 0.75]), ("monte-carlo:power=1", [0, 0.75]):
        agent = tabular.make_agent(text, world=world, gamma=1)
        agent.reset()
        for episode in episodes:
            agent.start(np.array([0]), np.array([episode[0][0]]))
            for s, reward, next_s, end in episode:
                agent.learn(tabular.Step(*np.array([[0], [s], [0], [reward], [next_s]]), *np.array([[end], [end]])))
        np.testing.assert_allclose(agent.q[0, :, 0], values)


# Truncation


@pytest.mark.parametrize("text", tabular.LEARNERS)
@pytest.mark.parametrize("end", [False, True])
def test_truncation_is_not_termination(text, end):
    """One state, reward 1 forever, episodes of 5 steps: Q is 1 / (1 - gamma) = 10, not less; if they terminate, 1."""
    model = tabular.make_model({0: {0: [(1, 0, 1, end)]}}, [1.0])
    agent, _ = recorded(f"{text}:alpha=0.5", tabular.Simulator(model, 2, limit=5), steps=800)
    np.testing.assert_allclose(agent.table(), 1 if end else 10, atol=0.01)


# The book's figures, within five standard errors of an independent simulation, or of the exact value


def figure(name, runs):
    args = tabular.apply_figure(tabular.Args(figure=name, runs=runs))
    world = tabular.make_world(args)
    agents = {text: tabular.make_agent(text, world=world, gamma=args.gamma) for text in args.agents}
    return {text: tabular.run_figure(args, agent, world) for text, agent in agents.items()}


def close(number, expected, error=0.0):
    """Is (mean, standard error) within five standard errors of an expected value with its own?"""
    mean, own_error = number
    return abs(mean - expected) < 5 * (own_error**2 + error**2) ** 0.5


@pytest.mark.slow
def test_example_6_6_the_safe_path_of_sarsa_and_the_optimal_one_of_q_learning():
    results = figure("6.6", runs=50)
    sarsa, q_learning, expected_sarsa = (result.columns for result in results.values())
    assert close(sarsa["401 to 500"], -26.6, 0.2) and close(sarsa["1 to 100"], -70.7, 0.3)
    assert close(q_learning["401 to 500"], -50.2, 0.24) and close(q_learning["1 to 100"], -80.9, 0.3)
    assert close(expected_sarsa["401 to 500"], -20.8, 0.06) and close(expected_sarsa["1 to 100"], -56.2, 0.3)
    model, policies = tabular.cliff(), [result.q.argmax(-1) for result in results.values()]
    lengths = [-tabular.expected_return(model, policy, 100) for policy in policies]  # of the greedy paths
    assert np.all(lengths[1] == 13) and np.mean(lengths[0] == 17) > 0.5 and np.all(lengths[2] == 15)


def test_figure_6_5_maximization_bias():
    q_learning, double = (result.curves["left"][0] for result in figure("6.5", runs=1_000).values())
    assert 85 < q_learning.max() < 97 and double.max() < 60
    assert double[99] < q_learning[99] / 3
    assert abs(q_learning[250:].mean() - 12.4) < 1.5 and abs(double[250:].mean() - 7.0) < 1


@pytest.mark.slow
def test_figure_6_2_batch_td_is_better_than_batch_monte_carlo_and_td_than_monte_carlo():
    errors = [result.columns["episode 100"] for result in figure("6.2", runs=100).values()]
    for error, expected in zip(errors, (0.039, 0.057, 0.035, 0.054, 0.069, 0.097, 0.081, 0.092, 0.106)):
        assert close(error, expected, 0.001)
    assert errors[0] < errors[1] and min(errors[2:5]) < min(errors[5:])


@pytest.mark.slow
def test_figure_7_2_an_intermediate_n_is_best():
    results = figure("7.2", runs=40)
    best = {text: result.columns["error"] for text, result in results.items()}
    for n, expected in ((1, 0.347), (2, 0.278), (4, 0.263), (8, 0.281), (16, 0.324)):
        assert close(best[f"n-step-sarsa:n={n}"], expected, 0.004)
    assert min(best, key=best.get) == "n-step-sarsa:n=4"
    for result in results.values():
        assert result.curves["error"][0][0] == pytest.approx(0.3**0.5)  # alpha 0


@pytest.mark.slow
def test_td_lambda_on_the_random_walk_of_figure_12_6():
    model = tabular.random_walk(19, -1.0)
    for lam, alpha, expected in ((0, 0.8, 0.346), (0.4, 0.7, 0.279), (0.8, 0.36, 0.264), (0.9, 0.2, 0.295)):
        world = tabular.Simulator(model, 200)
        agent = tabular.SarsaLambda(world, 1.0, alpha=alpha, lam=lam, replacing=False)
        episodes, _ = tabular.play(agent, world, 1, episodes=10, error=tabular.rms_error(model, 1.0))
        error = tabular.group_means(episodes.run, episodes.error, 200)
        assert close(tabular.mean_and_error(error), expected, 0.005)


@pytest.mark.slow
def test_figure_8_2_planning_finds_the_path_in_fewer_episodes():
    results = figure("8.2", runs=10)
    expected = {
        "dyna-q:planning=0,alpha=0.1": {2: 654, 3: 576, 5: 264, 10: 127, 25: 23},
        "dyna-q:planning=5,alpha=0.1": {2: 165, 3: 55, 5: 19.7, 10: 16.6},
        "dyna-q:planning=50,alpha=0.1": {2: 42, 3: 17.0, 5: 16.8},
    }
    for text, points in expected.items():
        mean, error = results[text].curves["steps"]
        for episode, number in {1: 868.7, **points}.items():  # 1: a random walk; the book says about 1700
            assert close((mean[episode - 1], error[episode - 1]), number, error[episode - 1])
    none, five, fifty = (results[text].curves["steps"][0][1] for text in expected)  # episode 2
    assert none > 2 * five > 4 * fifty


@pytest.mark.slow
def test_figure_6_3_large_step_sizes_hurt_sarsa_only():
    """Columns: alpha from 0.1 to 1."""
    curves = [result.curves for result in figure("6.3", runs=10).values()]
    (expected, sarsa, q_learning), late = ([c[name] for c in curves] for name in ("interim", "asymptotic"))
    for (mean, error), i, number in (expected, 0, -135), (expected, 9, -44), (sarsa, 8, -68), (q_learning, 8, -73):
        assert close((mean[i], error[i]), number, 1)
    assert np.all(late[0][0] > -30) and np.all(np.abs(late[2][0] + 51) < 8)
    assert late[1][0][1] > -30 and late[1][0][9] < -80


# Environments without a model


def test_spaces_are_numbered_and_boxes_cut_into_bins_and_what_lies_outside_belongs_to_the_first_or_last_one():
    hand = spaces.Tuple([spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2)])
    assert tabular.Numbering(hand).numbers([(21, 10, 1)]).tolist() == [(21 * 11 + 10) * 2 + 1]
    space = spaces.Box(-np.inf, np.inf, (2,))
    numbering = tabular.Numbering(space, bins=(4, 2), low=(-1.0, 0.0), high=(1.0, 10.0))
    points = np.array([[-1, 0], [-0.51, 4.9], [-0.49, 5], [0.99, 9], [7, -3], [-np.inf, np.inf]])
    assert numbering.numbers(points).tolist() == [0, 0, 3, 7, 6, 1]
    assert numbering.total == 8


@pytest.mark.slow
def test_without_its_model_an_environment_teaches_the_same():
    args = tabular.Args(env_id="CliffWalking-v1", runs=2, model=False, max_episode_steps=200)
    world = tabular.make_world(args)
    assert isinstance(world, tabular.Environments)
    agent, _ = recorded("q-learning:alpha=0.5,explore=0", world, gamma=1, steps=10_000)
    assert tabular.expected_return(tabular.cliff(), agent.q.argmax(-1), 100).tolist() == [-13, -13]


def test_an_environment_that_does_not_follow_its_model_is_refused():
    with pytest.raises(tabular.InputError, match="Taxi-v4: its steps do not follow its model P; --no-model"):
        tabular.gymnasium_model(gym.make("Taxi-v4", fickle_passenger=True))
