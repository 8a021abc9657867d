"""tabular.py: exact values, updates by hand, identities between the methods, and the figures of the book."""

import inspect
import itertools
import math
from collections import Counter
from functools import cache

import gymnasium as gym
import numpy as np
import pytest

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


def random_policy(P):
    return [[1 / len(actions)] * len(actions) for actions in P]


def optimal_value(model, gamma=1.0):
    """From the start, by value iteration; policy iteration must agree."""
    v = tabular.value_iteration(model.P, gamma)
    w, policy = tabular.policy_iteration(model.P, gamma)
    np.testing.assert_allclose(v, w, atol=1e-6)
    np.testing.assert_allclose(tabular.evaluate(model.P, policy, gamma), w, atol=1e-9)
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


def test_the_greedy_policy_and_the_random_one():
    """Exact, in the maze without a time limit: it is at least 14 steps to the goal, and 869 at random."""
    for env_id, limit, best, at_random in [
        ("FrozenLake-v1", 100, 0.740165, 0.013940),
        ("FrozenLake8x8-v1", 200, 0.862955, 0.001901),
        ("Taxi-v4", 200, 7.93, -771.091),
    ]:
        model = gymnasium_model(env_id)
        q = tabular.q_values(model.P, tabular.value_iteration(model.P, 0.99), 0.99)
        for policy, value in (tabular.greedy_policy(q), best), (random_policy(model.P), at_random):
            assert tabular.expected_return(model, policy, limit) == pytest.approx(value, abs=1e-3)
    maze = tabular.maze()
    maze = maze._replace(P=[[[(p, s, -1, end) for p, s, _, end in o] for o in actions] for actions in maze.P])
    assert optimal_value(maze) == -14
    assert tabular.evaluate(maze.P, random_policy(maze.P), 1) @ maze.start == pytest.approx(-868.7, abs=0.1)


def test_the_outcomes_of_terminal_and_unreachable_states_do_not_matter_and_impossible_ones_neither():
    """From state 0 the episode ends in 1; P goes on from there, as in CliffWalking, and has a state 2 beside."""
    P = [[[(1, 1, 3, True), (0, 2, 9, False)]], [[(1, 0, 5, False)]], [[(1, 2, 1, False)]]]
    model = tabular.make_model(P, [1, 0, 0])
    assert model.P == [[[(1, 1, 3, True)]], [[(1, 1, 0, True)]], [[(1, 2, 0, True)]]]
    assert tabular.evaluate(model.P, [[1.0]] * 3, 1).tolist() == [3, 0, 0]
    assert tabular.value_iteration(model.P, 1) == [3, 0, 0]
    for p in 0.5, 1.1:
        with pytest.raises(tabular.InputError, match="must sum to 1"):
            tabular.make_model([[[(p, 0, 0, True)]]], [1])


def test_a_greedy_policy_takes_the_first_best_action_and_exploration_breaks_ties_at_random():
    assert tabular.greedy_policy([[1, 3, 3], [5], [-2, -3]]) == [[0, 1, 0], [1], [1, 0]]
    tabular.rng.seed(1)
    counts = Counter(tabular.greedy([0, 2, 1, 2]) for _ in range(1_000))
    assert set(counts) == {1, 3} and abs(counts[1] - 500) < 80
    counts = Counter(tabular.epsilon_greedy([0, 2, 1, 0], 0.4) for _ in range(10_000))
    for a, p in enumerate((0.1, 0.7, 0.1, 0.1)):
        assert abs(counts[a] - 10_000 * p) < 5 * (10_000 * p * (1 - p)) ** 0.5


def test_figures_3_2_and_3_5_the_gridworld():
    """From A and B any action jumps, with reward 10 and 5; off the grid costs 1."""

    def move_to(cell, move):
        if cell in ((0, 1), (0, 3)):
            return [(1, (4, 1), 10, False)] if cell == (0, 1) else [(1, (2, 3), 5, False)]
        to = tuple(np.add(cell, move))
        return [(1, to, 0, False)] if to in np.ndindex(5, 5) else [(1, cell, -1, False)]

    model = tabular.make_model(grid(5, 5, move_to), np.full(25, 1 / 25))
    v = tabular.evaluate(model.P, random_policy(model.P), 0.9).reshape(5, 5).round(1)
    assert v[0].tolist() == [3.3, 8.8, 4.4, 5.3, 1.5] and v[4].tolist() == [-1.9, -1.3, -1.2, -1.4, -2.0]
    v, _ = tabular.policy_iteration(model.P, 0.9)
    assert v.reshape(5, 5)[0].round(1).tolist() == [22.0, 24.4, 22.0, 19.4, 17.5]
    assert v[1] == pytest.approx(10 / (1 - 0.9**5))


def test_figure_4_1_iterative_policy_evaluation():
    """Two corners end the episode, each move costs 1."""

    def move_to(cell, move):
        to = tuple(np.clip(np.add(cell, move), 0, 3))
        return [(1, to, -1, to in ((0, 0), (3, 3)))]

    model = tabular.make_model(grid(4, 4, move_to), [0, *[1 / 14] * 14, 0])
    sweeps = [np.zeros(16)]
    for _ in range(10):
        sweeps.append(np.mean(tabular.q_values(model.P, sweeps[-1], 1), -1))
    assert sweeps[1][1] == -1 and sweeps[2][1:3].tolist() == [-1.75, -2]
    assert sweeps[3][1:4].tolist() == [-2.4375, -2.9375, -3]
    assert sweeps[10][1:4].round(1).tolist() == [-6.1, -8.4, -9.0]
    exact = tabular.evaluate(model.P, random_policy(model.P), 1)
    np.testing.assert_allclose(exact[:8], [0, -14, -20, -22, -14, -18, -20, -20])


def test_figure_4_3_the_gambler():
    v = np.array(tabular.value_iteration(gambler(0.4).P, 1))
    np.testing.assert_allclose(v[[24, 49, 74]], [0.16, 0.4, 0.64], atol=1e-9)
    np.testing.assert_allclose(v[[0, 98]], [0.0021, 0.9643], atol=5e-5)
    v = np.array(tabular.value_iteration(gambler(0.25).P, 1))
    np.testing.assert_allclose(v[[24, 49, 74]], [0.0625, 0.25, 0.4375], atol=1e-9)


def test_with_gamma_1_values_that_are_not_finite_are_refused():
    model = tabular.cliff()
    always_left = [[0.0, 0.0, 0.0, 1.0]] * 48
    assert tabular.evaluate(model.P, always_left, 0.9) @ model.start == pytest.approx(-10)
    with pytest.raises(tabular.InputError, match="improper"):
        tabular.evaluate(model.P, always_left, 1)
    P = [[[(1, 0, 1, False)]]]
    assert tabular.value_iteration(P, 0.5) == pytest.approx([2])
    with pytest.raises(tabular.InputError, match="--gamma 1: value iteration does not converge"):
        tabular.value_iteration(P, 1)
    rare = [[[(0.9, 1, 0, False), (0.1, 0, 0, False)]], [[(1 - 1e-6, 0, 1, False), (1e-6, 1, 1, True)]]]
    assert tabular.evaluate(rare, [[1.0]] * 2, 1)[1] == pytest.approx(1e6)


# The learners, step by step


class Recorder(tabular.World):
    """Notes all steps, as (s, a, s', r, terminated, ended)."""

    def step(self, action):
        assert len(self.history) < 10**5
        before, result = self.state, super().step(action)
        self.history.append((before, action, *result))
        return result


def learned(text, model, episodes, gamma=0.9, limit=math.inf, seed=1, initial=0.0):
    """What the agent yields last, and its steps."""
    world = Recorder(model, limit, initial)
    world.begin(seed)
    world.history = []
    agent = tabular.make_agent(text, world, tabular.Args(figure="6.6", gamma=gamma))
    *_, table = itertools.islice(agent, episodes)
    return table, world.history


@pytest.mark.parametrize("kind", ["q-learning", "expected-sarsa", "sarsa", "td"])
def test_one_step_methods_move_q_towards_their_targets(kind):
    model = tabular.random_walk(5, -1) if kind == "td" else gymnasium_model("FrozenLake-v1")
    table, history = learned(f"{kind}:alpha=0.3" + ",epsilon=0.2" * (kind != "td"), model, episodes=50, initial=1.0)
    q = np.ones((5, 1) if kind == "td" else (16, 4))
    for (s, a, next_s, r, terminated, _), after in zip(history, [*history[1:], history[0]]):
        value = {
            "td": q[next_s][0],
            "q-learning": max(q[next_s]),
            "expected-sarsa": 0.2 * sum(q[next_s]) / 4 + 0.8 * max(q[next_s]),
            "sarsa": q[next_s][after[1] if kind == "sarsa" else 0],
        }[kind]
        q[s][a] += 0.3 * (r + (0 if terminated else 0.9 * value) - q[s][a])
    np.testing.assert_allclose(np.reshape(table, q.shape), q, atol=1e-12)


def test_double_q_learning_by_hand(monkeypatch):
    """From A to B, then with reward 4 or 8 to the end. A coin below 0.5 means: not the table of last time."""
    P = [[[(1, 1, 0, False)]], [[(1, 0, 4, True)], [(1, 0, 8, True)]]]
    actions = iter([0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1])
    coins = iter([0.6, 0.6, 0.4, 0.6, 0.6, 0.6, 0.6, 0.4, 0.6, 0.6, 0.4, 0.6])
    world = tabular.World(tabular.make_model(P, [1, 0]))
    world.begin(1)
    monkeypatch.setattr(world, "first_state", lambda: 0)
    monkeypatch.setattr(world, "move", lambda a: (*P[world.state][a][0][1:], False))
    monkeypatch.setattr(tabular, "epsilon_greedy", lambda q, epsilon: next(actions))
    monkeypatch.setattr(tabular.rng, "random", lambda: next(coins))
    agent = tabular.double_q_learning(world, gamma=0.5, alpha=0.5)
    yields = [[list(q) for q in table] for table in itertools.islice(agent, 6)]
    # Episode 3: the second table has B = [2, 0], and the first one [0, 4]. Their B[0] is 0 for the first: A stays 0.
    assert yields[2] == [[0], [1, 4]] and yields[3] == [[0.5], [2, 4]]
    assert yields[4] == [[1], [2, 5]] and yields[5] == [[1.5], [2, 6]]


@pytest.mark.parametrize("n", [1, 2, 5, 1_000])
def test_n_step_td_agrees_with_the_pseudocode_of_section_7_1(n):
    table, history = learned(f"n-step-sarsa:n={n},alpha=0.3", tabular.random_walk(5, -1), episodes=50)
    v, episode = np.zeros(5), []
    for s, _, _, r, terminated, _ in history:
        episode.append((s, r))
        if terminated:
            T = len(episode)
            for tau, (s, _) in enumerate(episode):
                G = sum(0.9 ** (i - tau) * episode[i][1] for i in range(tau, min(tau + n, T)))
                if tau + n < T:
                    G += 0.9**n * v[episode[tau + n][0]]
                v[s] += 0.3 * (G - v[s])
            episode = []
    np.testing.assert_allclose(np.ravel(table), v, atol=1e-12)


@pytest.mark.parametrize("replacing", ["true", "false"])
def test_td_lambda_agrees_with_a_plain_loop(replacing):
    text = f"sarsa-lambda:lam=0.7,alpha=0.2,replacing={replacing}"
    table, history = learned(text, tabular.random_walk(5, -1), episodes=50)
    v, z = np.zeros(5), np.zeros(5)
    for s, _, next_s, r, terminated, _ in history:
        error = r + (0 if terminated else 0.9 * v[next_s]) - v[s]
        z *= 0.9 * 0.7
        z[s] = 1 if replacing == "true" else z[s] + 1
        v += 0.2 * error * z
        z *= not terminated
    np.testing.assert_allclose(np.ravel(table), v, atol=1e-12)


@pytest.mark.parametrize("first_visit", ["true", "false"])
@pytest.mark.parametrize("alpha", ["null", "0.3"])
def test_monte_carlo_averages_the_returns_of_an_episode_or_moves_towards_them(first_visit, alpha):
    text = f"monte-carlo:first_visit={first_visit},alpha={alpha},epsilon=0.3"
    table, history = learned(text, gymnasium_model("FrozenLake-v1"), episodes=200)
    q, returns, episode = np.zeros((16, 4)), {}, []
    for s, a, _, r, terminated, _ in history:
        episode.append(((s, a), r))
        if terminated:
            pairs, rewards = zip(*episode)
            for t in reversed(range(len(episode))):
                if first_visit == "true" and pairs[t] in pairs[:t]:
                    continue
                G = sum(0.9**k * reward for k, reward in enumerate(rewards[t:]))
                returns.setdefault(pairs[t], []).append(G)
                q[pairs[t]] = np.mean(returns[pairs[t]]) if alpha == "null" else 0.7 * q[pairs[t]] + 0.3 * G
            episode = []
    np.testing.assert_allclose(table, q, atol=1e-12)
    assert np.count_nonzero(q) > 5


def test_dyna_q_plans_from_states_and_actions_it_has_tried(monkeypatch):
    """With planning, the first end is enough to learn the whole path."""
    P = [[[(1, s + 1, s == 4, s == 4)], [(1, 0, 0, False)]] for s in range(5)] + [[[(1, 0, 0, True)]]]
    model = tabular.make_model(P, np.eye(6)[0])
    start = [learned(f"dyna-q:planning={n},alpha=1", model, 1, gamma=0.5)[0][0][0] for n in (0, 200)]
    assert start == [0, 0.5**4]
    choices, choice = [], tabular.rng.choice
    monkeypatch.setattr(tabular.rng, "choice", lambda options: choices.append(options) or choice(options))
    monkeypatch.setattr(tabular, "greedy", lambda q: 1 if len(choices) < 6 else 0)
    learned("dyna-q:planning=3,alpha=1,epsilon=0", model, 1)
    # A state seen before, then an action tried in it. At first that is action 1 in state 0, then also action 0.
    assert choices[:8] == [[0], [1]] * 3 + [[0], [1, 0]] and choices[-6] == [0, 1, 2, 3, 4]


def test_batch_td_is_the_value_of_the_most_likely_model_and_batch_monte_carlo_the_mean_return(monkeypatch):
    """Example 6.4: A, 0, B, 0 once, B, 1 six times, B, 0 once. TD says V(A) = 3/4, Monte Carlo 0."""
    steps = [(1, 0.0, False), (1, 0.0, True), *[(1, 1.0, True)] * 6, (1, 0.0, True)]
    for agent, values in (tabular.batch_td, [0.75, 0.75, 0.2]), (tabular.monte_carlo, [0, 0.75, 0.2]):
        world, todo, starts = tabular.World(tabular.random_walk(3, 0), initial=0.2), iter(steps), iter([0] + [1] * 7)
        world.begin(1)
        monkeypatch.setattr(world, "first_state", lambda starts=starts: next(starts))
        monkeypatch.setattr(world, "move", lambda action, todo=todo: [(*next(todo), False)][action])
        *_, table = itertools.islice(agent(world, 1), 8)
        np.testing.assert_allclose(np.ravel(table), values)


def test_importance_sampling_by_hand(monkeypatch):
    """Two actions, pi always takes 0, so a ratio is 2 per step or 0. Returns 3, 5, 1; ratios 2, 0, 4."""
    model = tabular.make_model([[[(1, 0, 1, True)], [(1, 0, 1, True)]]], [1], policy=[[1.0, 0.0]])
    for weighted, estimates in (True, [3, 3, (2 * 3 + 4 * 1.5) / 6]), (False, [6, 3, (2 * 3 + 4 * 1.5) / 3]):
        world = tabular.World(model)
        world.begin(1)
        steps = iter([(0, 3, True, False), (0, 5, True, False), (0, 1, False, False), (0, 1, True, False)])
        actions = iter([0, 1, 0, 0])
        monkeypatch.setattr(world, "move", lambda action, steps=steps: next(steps))
        monkeypatch.setattr(tabular.rng, "randrange", lambda n, actions=actions: next(actions))
        assert [*itertools.islice(tabular.importance_sampling(world, 0.5, weighted), 3)] == estimates
    monkeypatch.undo()
    never = tabular.make_model([[[(1, 0, 1, True)]]], [1], policy=[[0.0]])
    assert learned("importance-sampling", never, 1)[0] == 0


def test_a_step_of_semi_gradient_td_by_hand(monkeypatch):
    """From state 0 (v = 2 w_0 + w_7 = 3) the solid action leads to state 6 (v = w_6 + 2 w_7 = 12); its ratio is 7."""
    world = tabular.World(tabular.baird())
    world.begin(1)
    monkeypatch.setattr(world, "first_state", lambda: 0)
    actions = iter([6, 3, 6, 6])
    monkeypatch.setattr(tabular.rng, "randrange", lambda n: next(actions))
    v, after_dashed = itertools.islice(tabular.semi_gradient_td(world, 0.99, alpha=0.1), 2)
    delta = 0.99 * 12 - 3
    w = [1 + 0.1 * 7 * delta * 2, *[1] * 5, 10, 1 + 0.1 * 7 * delta]
    expected = [2 * w[s] + w[7] for s in range(6)] + [w[6] + 2 * w[7]]
    np.testing.assert_allclose(v, expected)
    np.testing.assert_allclose(after_dashed, v)  # pi never takes the dashed action: nothing is learned
    actions = iter([6, 6])
    *_, v = itertools.islice(tabular.semi_gradient_td(world, 0.99, alpha=0.1, copy_every=2), 2)
    delta = 0.99 * 12 - expected[6]  # the target is still that of the first weights
    np.testing.assert_allclose(v[6], expected[6] + 0.1 * 7 * delta * (1 + 4))


def test_reinforce_follows_the_gradient_of_the_return(monkeypatch):
    """One episode, left and then right, rewards -1: returns -1.9 and -1. At first, right has probability 0.05."""
    world = tabular.World(tabular.make_model([[[(1, 0, -1, False)], [(1, 0, -1, True)]]], [1]))
    draws = iter([0.051, 0.1, 0.049, 0.1] * 2)  # for an action and for a step in turn
    world.begin(1)
    monkeypatch.setattr(tabular.rng, "random", lambda: next(draws))
    monkeypatch.setattr(world, "first_state", lambda: 0)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    for baseline in 0.0, 0.1:
        difference = -math.log(19)  # between the preferences for right and left
        first = difference - 0.2 * -1.9 * 0.05 - 0.2 * -1.9 * 0.05  # G_0 = -1 + 0.9 * -1
        b = -0.19 if baseline else 0.0  # v after the first update
        second = first + 2 * 0.2 * 0.9 * (-1 - b) * (1 - sigmoid(first))
        theta = next(tabular.reinforce(world, 0.9, alpha=0.2, baseline=baseline))
        assert theta[1] - theta[0] == pytest.approx(second) and sum(theta) == pytest.approx(math.log(19))


def test_the_defaults_are_the_settings_of_the_book():
    """Monte Carlo averages the returns of first visits (section 5.4); 11.2 and 13.1 have their figures' step sizes."""
    own = {"monte_carlo": {"first_visit": True, "alpha": None}, "n_step_sarsa": {"n": 4}, "dyna_q": {"planning": 5}}
    own |= {"sarsa_lambda": {"lam": 0.9, "replacing": True}, "importance_sampling": {"weighted": True}}
    own |= {"semi_gradient_td": {"alpha": 0.01, "copy_every": 1}, "reinforce": {"alpha": 2**-13, "baseline": 0}}
    for learner in tabular.AGENTS.values():
        parameters = [*inspect.signature(learner).parameters.values()][2:]
        common = {"alpha": 0.1, "epsilon": 0.1} | own.get(learner.__name__, {})
        assert all(common[parameter.name] == parameter.default for parameter in parameters)


# Identities, bit for bit


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("n-step-sarsa:n=1", "sarsa"),
        ("sarsa-lambda:lam=0,replacing=true", "sarsa"),
        ("sarsa-lambda:lam=0,replacing=false", "sarsa"),
        ("expected-sarsa:epsilon=0", "q-learning:epsilon=0"),
        ("dyna-q:planning=0", "q-learning"),
    ],
)
def test_identities(one, other):
    tables = [learned(text, gymnasium_model("FrozenLake-v1"), 300, limit=100)[0] for text in (one, other)]
    assert tables[0] == tables[1]
    assert np.count_nonzero(tables[0]) > 5


def test_with_n_beyond_the_end_n_step_sarsa_is_monte_carlo_and_so_is_lambda_1_without_discount():
    """A chain, in which no pair is visited twice; lambda 1 with accumulating traces differs by the moves in between."""
    P = [[[(0.5, s + 1, a, s == 4), (0.5, s + 1, -1, s == 4)] for a in range(2)] for s in range(5)]
    model = tabular.make_model([*P, [[(1, 0, 0, True)]]], np.eye(6)[0])
    texts = "n-step-sarsa:n=9", "monte-carlo:alpha=0.1", "sarsa-lambda:lam=1"
    one, other, third = (np.concatenate(learned(text, model, 50)[0][:5]) for text in texts)
    np.testing.assert_allclose(one, other, atol=1e-12)
    first = [np.concatenate(learned(text, model, 1, gamma=1)[0][:5]) for text in texts]
    np.testing.assert_allclose(first[2], first[0], atol=1e-12)
    assert third.any()


# Truncation


@pytest.mark.parametrize("text", [*tabular.CONTROL[2:], "td"])
@pytest.mark.parametrize("end", [False, True])
def test_truncation_is_not_termination(text, end):
    """One state, reward 1 forever, episodes of 5 steps: Q is 1 / (1 - gamma) = 10, not less; if they terminate, 1."""
    model = tabular.make_model([[[(1, 0, 1, end)]]], [1])
    table, history = learned(f"{text}:alpha=0.5", model, 800 if end else 160, limit=5)
    np.testing.assert_allclose(np.ravel(table), 1 if end else 10, atol=0.01)
    assert [step[-1] for step in history[:5]] == [end or i == 4 for i in range(5)]


def test_the_last_episode_of_a_run_is_truncated_and_not_counted():
    world = tabular.World(tabular.make_model([[[(1, 0, 1, False)]]], [1]), limit=4)
    world.begin(1, steps=10)
    *_, _ = itertools.takewhile(lambda _: world.time < 10, tabular.follow(world, [[0.0]]))
    assert world.returns == [4, 4] and world.length == 2


# The book's figures, within five standard errors of an independent simulation, or of the exact value


def figure(name, runs, agents=None):
    """{agent: (curve, columns)} of some of the figure's agents, in this process."""
    args = tabular.settings(tabular.Args(figure=name, runs=runs))
    world, seeds = tabular.make_world(args), range(101, 101 + runs)
    jobs = {text: [(args, world, text, seed) for seed in seeds] for text in agents or args.agents}
    return {text: tabular.summarize(map(tabular.play, job)) for text, job in jobs.items()}


def close(number, expected, error=0.0):
    """Is (mean, standard error) within five standard errors of an expected value with its own?"""
    mean, own_error = number
    return abs(mean - expected) < 5 * (own_error**2 + error**2) ** 0.5


@pytest.mark.slow
def test_example_6_6_the_safe_path_of_sarsa_and_the_optimal_one_of_q_learning():
    sarsa, q_learning, expected_sarsa = (columns for _, columns in figure("6.6", runs=50).values())
    assert close(sarsa["401 to 500"], -26.6, 0.2) and close(sarsa["1 to 100"], -70.7, 0.3)
    assert close(q_learning["401 to 500"], -50.2, 0.24) and close(q_learning["1 to 100"], -80.9, 0.3)
    assert close(expected_sarsa["401 to 500"], -20.8, 0.06) and close(expected_sarsa["1 to 100"], -56.2, 0.3)


def test_figure_6_5_maximization_bias():
    q_learning, double = (mean for (mean, _), _ in figure("6.5", runs=300).values())
    assert 85 < q_learning.max() <= 100 and double.max() < 60
    assert double[99] < q_learning[99] / 2
    assert abs(q_learning[250:].mean() - 12.4) < 3 and abs(double[250:].mean() - 7.0) < 2


@pytest.mark.slow
def test_figure_6_2_batch_td_is_better_than_batch_monte_carlo_and_td_than_monte_carlo():
    errors = [columns["100 to 100"] for _, columns in figure("6.2", runs=100).values()]
    for error, expected in zip(errors, (0.039, 0.057, 0.035, 0.054, 0.069, 0.097, 0.081, 0.092, 0.106)):
        assert close(error, expected, 0.001)
    assert errors[0] < errors[1] and min(errors[2:5]) < min(errors[5:])


@pytest.mark.slow
def test_figure_7_2_an_intermediate_n_is_best():
    best = {1: (0.8, 0.347), 2: (0.6, 0.278), 4: (0.4, 0.263), 8: (0.2, 0.281), 16: (0.2, 0.324)}  # alpha and error
    texts = {n: f"n-step-sarsa:n={n},alpha={alpha}" for n, (alpha, _) in best.items()}
    results = figure("7.2", 40, [*texts.values(), "n-step-sarsa:n=512,alpha=0.0"])
    errors = {n: results[text][1]["1 to 10"] for n, text in texts.items()}
    assert all(close(errors[n], expected, 0.004) for n, (_, expected) in best.items())
    assert min(errors, key=errors.get) == 4
    assert results["n-step-sarsa:n=512,alpha=0.0"][1]["1 to 10"][0] == pytest.approx(0.3**0.5)


@pytest.mark.slow
def test_figure_8_2_planning_finds_the_path_in_fewer_episodes():
    expected = {
        "dyna-q:planning=0": {2: 654, 3: 576, 5: 264, 10: 127, 25: 23},
        "dyna-q:planning=5": {2: 165, 3: 55, 5: 19.7, 10: 16.6},
        "dyna-q:planning=50": {2: 42, 3: 17.0, 5: 16.8},
    }
    results = figure("8.2", runs=20)
    for text, points in expected.items():
        mean, error = results[text][0]
        for episode, number in {1: 868.7, **points}.items():  # 1: a random walk; the book says about 1700
            assert close((mean[episode - 1], error[episode - 1]), number, error[episode - 1])
    none, five, fifty = (results[text][0][0][1] for text in expected)  # episode 2
    assert none > 2 * five > 4 * fifty


@pytest.mark.slow
def test_figure_6_3_large_step_sizes_hurt_sarsa_only():
    interim = {"expected-sarsa:alpha=0.1": -135, "expected-sarsa:alpha=1.0": -44}
    interim |= {"sarsa:alpha=0.9": -68, "q-learning:alpha=0.9": -73}
    asymptotic = {"expected-sarsa:alpha=1.0": (-30, -18), "q-learning:alpha=0.9": (-59, -43)}
    asymptotic |= {"sarsa:alpha=0.3": (-30, -20), "sarsa:alpha=1.0": (-500, -80)}
    results = figure("6.3", 20, interim | asymptotic)
    for text, number in interim.items():
        assert close(results[text][1]["1 to 100"], number, 1)
    for text, (low, high) in asymptotic.items():
        assert low < results[text][1]["401 to 500"][0] < high


def test_figure_5_4_ordinary_importance_sampling_may_have_an_infinite_variance():
    """v is 1. A weighted estimate is exactly that after the first episode that pi can have; an ordinary one is not."""
    results = figure("5.4", runs=5)
    ordinary, weighted = (curve for curve, _ in results.values())
    assert weighted[0][-1] == 1 and weighted[1][-1] == 0
    assert ordinary[1][-1] > 0.01 and 0.2 < ordinary[0][-1] < 5


def test_figure_11_2_the_weights_diverge_unless_the_targets_come_from_an_old_copy():
    """The mean of the update is that of semi-gradient DP (Eq. 11.9): v grows, under pi, by the same factors."""
    x, w, v = tabular.BAIRD_FEATURES, tabular.BAIRD_WEIGHTS.copy(), []
    for _ in range(1_000):
        w += 0.01 / 7 * (0.99 * x[6] @ w - x @ w) @ x
        v.append(np.mean((x @ w) ** 2) ** 0.5)
    assert w[7] == pytest.approx(335, abs=0.5) and w[0] == pytest.approx(114.4, abs=0.1)  # as in the book's figure
    td, with_target = (curve for curve, _ in figure("11.2", runs=20).values())
    for step in 0, 99, 499:
        assert td[0][step] == pytest.approx(v[step], rel=0.15)
    assert td[0][-1] > 300 and with_target[0].max() < 20


@pytest.mark.slow
def test_figure_13_1_reinforce_comes_to_the_best_probability_of_right():
    model = tabular.corridor()
    values = {p: tabular.evaluate(model.P, [[1 - p, p]] * 3, 1)[0] for p in np.arange(1, 100) / 100}
    best = max(values, key=values.get)
    assert best == 0.59 and values[best] == pytest.approx(-11.66, abs=0.01)
    assert values[0.05] == pytest.approx(-82.1, abs=0.05) and values[0.95] == pytest.approx(-44.2, abs=0.05)
    results = figure("13.1", runs=20)
    one, two, three, baseline = (columns for _, columns in results.values())
    assert baseline["901 to 1000"][0] > -12.5 and two["901 to 1000"][0] > -13.5
    assert three["901 to 1000"][0] < two["901 to 1000"][0]  # a small step size is slow
    assert baseline["1 to 100"][0] > two["1 to 100"][0] + 5  # figure 13.2: a baseline is faster
    assert one["1 to 100"][0] < -20


# Worlds and runs


def test_without_its_model_an_environment_teaches_the_same():
    args = tabular.Args(steps=10_000, env_id="CliffWalking-v1", env_kwargs='{"max_episode_steps": 200}')
    for world in tabular.make_world(args), tabular.Environment(args, 200):
        points, columns = tabular.play((args, world, "q-learning:alpha=0.5", 101))
        assert len(points) == 20 and -100 < points[-1] < -20 and columns["greedy"] == -13
    assert [world.model is None, world.limit] == [True, 200]
    with pytest.raises(tabular.InputError, match="value-iteration: needs an environment with a model"):
        tabular.make_agent("value-iteration", world, args)


def test_observations_become_states_and_what_lies_outside_of_the_bins_belongs_to_the_first_or_last_one():
    hand = tabular.make_world(tabular.Args(env_id="Blackjack-v1"))
    assert hand.discretize((21, 10, 1)) == (21, 10, 1) and hand.num_actions == 2
    flags = {"bins": (4, 2, 1, 1), "low": (-1.0, 0.0, 0.0, 0.0), "high": (1.0, 10.0, 1.0, 1.0)}
    pole = tabular.make_world(tabular.Args(env_id="CartPole-v1", **flags))
    points = [[-1, 0], [-0.51, 4.9], [-0.49, 5], [0.99, 9], [7, -3], [-np.inf, np.inf]]
    bins = [pole.discretize(np.array([*point, 0, 0]))[:2] for point in points]
    assert bins == [(0, 0), (0, 0), (1, 1), (3, 1), (3, 0), (0, 1)]


class OwnWorld(gym.Env):
    """Two states and one's own P, without initial_state_distrib; action 1 in state 1 ends it with reward 1."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)
    P = {s: {a: [(1.0, 1, float(s * a), bool(s * a))] for a in range(2)} for s in range(2)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = int(self.np_random.random() < 0.3)
        return self.s, {}

    def step(self, action):
        ((_, self.s, reward, terminated),) = self.P[self.s][action]
        return self.s, reward, terminated, False, {}


def test_ones_own_P_needs_no_distribution_of_the_first_state_and_a_wrong_one_is_not_used():
    gym.register("Own-v0", OwnWorld)
    model = tabular.make_world(tabular.Args(env_id="Own-v0")).model
    assert model.start == pytest.approx([0.7, 0.3], abs=0.08)
    assert tabular.value_iteration(model.P, 0.5) == [0.5, 1]
    assert tabular.gymnasium_model(gym.make("Taxi-v4", fickle_passenger=True)) is None


@pytest.mark.slow
def test_the_results_do_not_depend_on_the_number_of_processes(tmp_path):
    tables = []
    for processes in 1, 2, 3:
        folder = tmp_path / str(processes)
        tabular.train(tabular.Args(runs=3, steps=300, processes=processes, run_dir=str(folder)))
        tables.append([(folder / name).read_text() for name in ("table.csv", "curves.csv")])
    assert tables[0] == tables[1] == tables[2]


def test_a_folder_that_cannot_be_made_is_refused_before_the_run(tmp_path, monkeypatch):
    (tmp_path / "text").touch()
    monkeypatch.setattr(tabular, "play_all", None)
    with pytest.raises(tabular.InputError, match="--run-dir .*text/new"):
        tabular.train(tabular.Args(run_dir=f"{tmp_path}/text/new"))
