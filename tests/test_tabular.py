"""Tabular methods: exact values, identities between the methods, plain loops, and the book's figures."""

import csv
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import tabular
from tests.helpers import ROOT

# Models


def gymnasium_model(env_id, **kwargs):
    return tabular.gymnasium_model(gym.make(env_id, **kwargs))


def grid(rows, columns, move_to):
    """P of a grid with moves up, right, down, left; move_to(cell, move) gives [(p, next cell, reward, end), ...]."""
    P = {}
    for cell in itertools.product(range(rows), range(columns)):
        s = cell[0] * columns + cell[1]
        P[s] = {}
        for a, move in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)]):
            P[s][a] = [(p, to[0] * columns + to[1], r, end) for p, to, r, end in move_to(cell, move)]
    return P


def gridworld_3_5():
    """Example 3.5: from A and B any action jumps, with reward 10 and 5; off the grid costs 1."""

    def move_to(cell, move):
        if cell in ((0, 1), (0, 3)):
            return [(1, (4, 1), 10, False)] if cell == (0, 1) else [(1, (2, 3), 5, False)]
        to = cell[0] + move[0], cell[1] + move[1]
        inside = 0 <= to[0] < 5 and 0 <= to[1] < 5
        return [(1, to, 0, False)] if inside else [(1, cell, -1, False)]

    return tabular.make_model(grid(5, 5, move_to), np.full(25, 1 / 25), (5, 5))


def gridworld_4_1():
    """Example 4.1: two corners end the episode, each move costs 1."""
    corners = (0, 0), (3, 3)

    def move_to(cell, move):
        to = tuple(np.clip(np.add(cell, move), 0, 3))
        return [(1, to, -1, to in corners)]

    start = np.ones(16)
    start[[0, 15]] = 0
    return tabular.make_model(grid(4, 4, move_to), start / 14, (4, 4))


def norvig(forward, sideways, back, penalty_at_goal):
    """Russell and Norvig's grid: a wall at (1, 1), ends at (0, 3) with 1 and at (1, 3) with -1, a penalty of .04."""
    ends = {(0, 3): 1, (1, 3): -1}

    def move_to(cell, move):
        outcomes = []
        turns = move, (-move[1], move[0]), (move[1], -move[0]), (-move[0], -move[1])
        for p, (down, right) in zip((forward, sideways, sideways, back), turns):
            to = cell[0] + down, cell[1] + right
            if to == (1, 1) or not (0 <= to[0] < 3 and 0 <= to[1] < 4):
                to = cell
            reward = ends.get(to, 0) - 0.04 * (to not in ends or penalty_at_goal)
            outcomes.append((p, to, reward, to in ends))
        return outcomes

    return tabular.make_model(grid(3, 4, move_to), np.eye(12)[8], (3, 4))


def gambler(p):
    """Example 4.3: state s is a capital of s + 1, action a a stake of a + 1; reward 1 at a capital of 100."""
    P = {}
    for capital in range(1, 100):
        P[capital - 1] = {}
        for stake in range(1, min(capital, 100 - capital) + 1):
            win, lose = capital + stake, capital - stake
            outcomes = [(p, min(win, 99) - 1, float(win == 100), win == 100), (1 - p, max(lose, 1) - 1, 0, lose == 0)]
            P[capital - 1][stake - 1] = outcomes
    return tabular.make_model(P, np.full(99, 1 / 99))


CARDS = {card: 1 / 13 for card in range(1, 10)} | {10: 4 / 13}


def hand(total, ace):
    """Value of a hand whose aces count 1 in total, and whether an ace counts 11."""
    return (total + 10, True) if ace and total + 10 <= 21 else (total, False)


def dealer_results(total, ace, num_cards):
    """Probability of each final (score, is a natural); a bust scores 0."""
    value, _ = hand(total, ace)
    if value >= 17:
        return {(value if value <= 21 else 0, num_cards == 2 and value == 21): 1.0}
    results = {}
    for card, p in CARDS.items():
        for result, q in dealer_results(total + card, ace or card == 1, num_cards + 1).items():
            results[result] = results.get(result, 0) + p * q
    return results


def blackjack(sab=False, natural=False):
    """Exact model of Blackjack-v1. States (total, dealer's card, ace, natural); actions stick and hit."""
    states = list(itertools.product(range(2, 22), range(1, 11), (False, True), (False, True)))
    number = {state: i for i, state in enumerate(states)}
    dealers = {card: dealer_results(card, card == 1, 1) for card in range(1, 11)}
    P = {}
    for (total, dealer, ace, is_natural), s in number.items():
        value, _ = hand(total, ace)
        stick = []
        for (score, dealer_natural), p in dealers[dealer].items():
            reward = float(np.sign(value - score))
            if sab and is_natural and not dealer_natural:
                reward = 1.0
            if natural and not sab and is_natural and reward == 1:
                reward = 1.5
            stick.append((p, s, reward, True))
        hit = []
        for card, p in CARDS.items():
            if total + card > 21:
                hit.append((p, s, -1.0, True))
            else:
                hit.append((p, number[total + card, dealer, ace or card == 1, False], 0.0, False))
        P[s] = {0: stick, 1: hit}
    start = np.zeros(len(states))
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


@pytest.mark.parametrize(
    ("env_id", "kwargs", "gamma", "value"),
    [
        ("FrozenLake-v1", {}, 1, 14 / 17),
        ("FrozenLake-v1", {}, 0.99, 0.542026),
        ("FrozenLake-v1", {}, 0.9, 0.068891),
        ("FrozenLake-v1", {"is_slippery": False}, 0.99, 0.99**5),
        ("FrozenLake8x8-v1", {}, 0.99, 0.414640),
        ("CliffWalking-v1", {}, 1, -13),
        ("CliffWalking-v1", {}, 0.99, -12.247898),
        ("CliffWalking-v1", {}, 0.9, -7.458134),
        ("CliffWalkingSlippery-v1", {}, 1, -64.709176),
        ("CliffWalkingSlippery-v1", {}, 0.99, -46.352672),
        ("Taxi-v4", {}, 1, 7.93),
        ("Taxi-v4", {}, 0.99, 6.327464),
        ("Taxi-v4", {}, 0.9, -1.263323),
        ("Taxi-v4", {"is_rainy": True}, 1, 3.954575),
    ],
)
def test_the_optimal_value_of_gymnasiums_environments(env_id, kwargs, gamma, value):
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


def test_with_gamma_1_all_actions_tie_and_the_first_of_the_best_never_arrives():
    model = gymnasium_model("FrozenLake-v1", is_slippery=False)
    q = tabular.q_values(model, tabular.value_iteration(model, 1), 1)
    assert tabular.expected_return(model, q.argmax(-1)[None], 100) == 0


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

    def soft(model, epsilon=0.1):  # the same model, in which an action is replaced by any one now and then
        own = [getattr(model, name) for name in ("prob", "next_state", "reward", "terminated")]
        S, A, K = own[0].shape
        mixed = [np.concatenate([x, np.broadcast_to(x.reshape(S, 1, A * K), (S, A, A * K))], -1) for x in own]
        mixed[0] = np.concatenate([(1 - epsilon) * mixed[0][..., :K], epsilon / A * mixed[0][..., K:]], -1)
        return tabular.Model(*mixed, model.start, model.num_actions)

    assert optimal_value(soft(tabular.cliff())) == pytest.approx(-20.708, abs=1e-3)
    maze = tabular.maze()
    cost = replace(maze, reward=-np.ones_like(maze.reward))
    assert -optimal_value(cost) == 14
    assert -optimal_value(soft(cost)) == pytest.approx(15.81, abs=0.005)


def test_figures_3_2_and_3_5_the_gridworld():
    model = gridworld_3_5()
    v = tabular.evaluate(model, random_policy(model), 0.9).reshape(5, 5).round(1)
    assert v[0].tolist() == [3.3, 8.8, 4.4, 5.3, 1.5] and v[4].tolist() == [-1.9, -1.3, -1.2, -1.4, -2.0]
    v, _ = tabular.policy_iteration(model, 0.9)
    assert v.reshape(5, 5)[0].round(1).tolist() == [22.0, 24.4, 22.0, 19.4, 17.5]
    assert v[1] == pytest.approx(10 / (1 - 0.9**5))


def test_figure_4_1_iterative_policy_evaluation():
    model = gridworld_4_1()
    process = model.under(random_policy(model))
    v, sweeps = np.zeros(16), {}
    for k in range(1, 11):
        v = tabular.q_values(process, v, 1).max(-1)
        v[[0, 15]] = 0  # terminal
        sweeps[k] = v.copy()
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


def test_outcomes_that_share_a_next_state_are_weighted_and_added():
    """In Norvig's grid a wall sends two outcomes back to the same cell; adding up their rewards gives .555956."""
    model = norvig(0.7, 0.1, 0.1, penalty_at_goal=False)
    assert optimal_value(model, 0.99) == pytest.approx(0.607991, abs=1e-6)
    assert optimal_value(model, 0.9) == pytest.approx(0.263208, abs=1e-6)
    v = tabular.value_iteration(norvig(0.8, 0.1, 0, penalty_at_goal=True), 1)
    expected = [0.8116, 0.8678, 0.9178, 0.7616, 0.6603, 0.7053, 0.6553, 0.6114, 0.3879]
    np.testing.assert_allclose(v[[0, 1, 2, 4, 6, 8, 9, 10, 11]], expected, atol=5e-5)


@pytest.mark.parametrize(
    ("rules", "optimum", "stick_on_20"),
    [({"sab": True}, -0.043113, -0.350111), ({}, -0.046556, -0.353554), ({"natural": True}, -0.025729, None)],
)
def test_blackjack(rules, optimum, stick_on_20):
    model, number = blackjack(**rules)
    assert optimal_value(model) == pytest.approx(optimum, abs=1e-6)
    if stick_on_20 is None:
        return
    policy = np.array([[1.0, 0.0] if hand(total, ace)[0] >= 20 else [0.0, 1.0] for total, _, ace, _ in number])
    v = tabular.evaluate(model, policy, 1)
    assert v @ model.start == pytest.approx(stick_on_20, abs=1e-6)
    assert v[number[3, 2, True, False]] == pytest.approx(-0.277204, abs=1e-6)  # an ace and a 2: 13


def test_the_optimal_policy_of_blackjack_is_that_of_figure_5_2():
    model, number = blackjack(sab=True)
    q = tabular.q_values(model, tabular.value_iteration(model, 1), 1)
    hit = {state[:3]: q[i].argmax() == 1 for state, i in number.items() if not state[3]}
    for dealer in range(1, 11):
        soft = [hit[total - 10, dealer, True] for total in range(12, 22)]
        hard = [hit[total, dealer, False] for total in range(12, 22)]
        assert soft == [total <= (18 if dealer in (1, 9, 10) else 17) for total in range(12, 22)]
        limit = 16 if dealer in (1, 7, 8, 9, 10) else 12 if dealer in (2, 3) else 11
        assert hard == [total <= limit for total in range(12, 22)]


def test_policies_are_ordered_by_their_values_in_all_states_and_only_partly():
    assert tabular.compare(np.array([1.0, 2]), np.array([1.0, 1])) == ">"
    assert tabular.compare(np.array([1.0, 1]), np.array([1.0, 2])) == "<"
    assert tabular.compare(np.array([1.0, 2]), np.array([2.0, 1])) == "."
    assert tabular.compare(np.array([1.0, np.nan]), np.array([1 + 1e-12, np.nan])) == "="
    model = gymnasium_model("Taxi-v4")
    optimal, policy = tabular.policy_iteration(model, 0.99)
    other = tabular.greedy_policy(tabular.q_values(model, optimal, 0.99)[:, ::-1])[:, ::-1]  # the last of the best
    assert np.any((policy != other)[model.visited])
    assert tabular.compare(optimal, tabular.evaluate(model, other, 0.99)) == "="
    assert tabular.compare(optimal, tabular.evaluate(model, random_policy(model), 0.99)) == ">"


def test_policy_improvement_never_makes_a_policy_worse():
    model = gymnasium_model("FrozenLake8x8-v1")
    policy = random_policy(model)
    v = tabular.evaluate(model, policy, 0.9)
    for _ in range(5):
        policy = tabular.greedy_policy(tabular.q_values(model, v, 0.9))
        improved = tabular.evaluate(model, policy, 0.9)
        assert tabular.compare(improved, v) in ">="
        v = improved


def test_an_improper_policy_has_no_values_with_gamma_1():
    model = gymnasium_model("CliffWalking-v1")
    always_left = np.eye(4)[np.full(48, 3)]
    with pytest.raises(tabular.InputError, match="improper"):
        tabular.evaluate(model, always_left, 1)
    assert tabular.evaluate(model, always_left, 0.9) @ model.start == pytest.approx(-10)


# The learners against plain loops


def recorded(text, world, gamma=0.9, steps=2_000, seed=1):
    """An agent after some steps, and those steps."""
    agent, history = tabular.make_agent(text, world=world, gamma=gamma), []
    learn, agent.chosen = agent.learn, []

    def learn_and_record(step):
        learn(step)
        history.append(step)
        agent.chosen.append(getattr(agent, "next_action", step.action).copy())  # Sarsa's next action

    agent.learn = learn_and_record
    tabular.play(agent, world, seed, steps=steps)
    return agent, history


@pytest.mark.parametrize("kind", ["q-learning", "expected-sarsa", "sarsa"])
def test_one_step_methods_agree_with_a_plain_loop_over_one_run(kind):
    world = tabular.Simulator(gymnasium_model("FrozenLake-v1"), 3, limit=20)
    agent, history = recorded(f"{kind}:alpha=0.3,epsilon=0.2,explore=0", world)
    for run in range(3):
        q = np.zeros((16, 4))
        for step, chosen in zip(history, agent.chosen):
            s, a, next_s = step.state[run], step.action[run], step.next_state[run]
            value = {
                "q-learning": max(q[next_s]),
                "expected-sarsa": 0.2 * sum(q[next_s]) / 4 + 0.8 * max(q[next_s]),
                "sarsa": q[next_s, chosen[run]],
            }[kind]
            target = step.reward[run] + (0 if step.terminated[run] else 0.9 * value)
            q[s, a] += 0.3 * (target - q[s, a])
        np.testing.assert_allclose(agent.q[run], q, atol=1e-12)
    assert np.count_nonzero(agent.q) > 20


def test_sarsa_takes_the_action_that_its_target_had():
    world = tabular.Simulator(gymnasium_model("FrozenLake-v1"), 3, limit=20)
    agent, history = recorded("sarsa", world, steps=500)
    for now, after, chosen in zip(history, history[1:], agent.chosen):
        assert np.array_equal(after.action[~now.ended], chosen[~now.ended])


def episodes_of(history, run):
    episodes, episode = [], []
    for step in history:
        i = list(step.run).index(run)
        episode.append((step.state[i], step.reward[i]))
        if step.ended[i]:
            episodes.append(episode)
            episode = []
    return episodes


def plain_n_step_td(episodes, n, gamma, alpha, num_states):
    """The book's pseudocode (section 7.1)."""
    v = np.zeros(num_states)
    for episode in episodes:
        T = len(episode)
        for tau in range(T):
            G = sum(gamma ** (i - tau) * episode[i][1] for i in range(tau, min(tau + n, T)))
            if tau + n < T:
                G += gamma**n * v[episode[tau + n][0]]
            s = episode[tau][0]
            v[s] += alpha * (G - v[s])
    return v


@pytest.mark.parametrize("n", [1, 2, 5, 30, 1_000])
def test_n_step_td_agrees_with_a_plain_loop_over_one_run(n):
    world = tabular.Simulator(tabular.random_walk(5, -1.0), 4)
    _, history = recorded(f"n-step-sarsa:n={n},alpha=0.3", world)
    for run in range(4):
        episodes = episodes_of(history, run)
        steps = sum(map(len, episodes))
        agent_at_end, _ = recorded(f"n-step-sarsa:n={n},alpha=0.3", world, steps=steps)
        plain = plain_n_step_td(episodes, n, 0.9, 0.3, 5)
        np.testing.assert_allclose(agent_at_end.q[run, :, 0], plain, atol=1e-12)


@pytest.mark.parametrize("first_visit", [True, False])
def test_monte_carlo_agrees_with_a_plain_loop_over_one_run(first_visit):
    """The average of the returns that follow the first visits, or all visits, to each state."""
    world = tabular.Simulator(tabular.random_walk(5, -1.0), 3)
    text = f"monte-carlo:power=1,first_visit={json.dumps(first_visit)}"
    agent, history = recorded(text, world)
    for run in range(3):
        returns = {s: [] for s in range(5)}
        for episode in episodes_of(history, run):
            states = [s for s, _ in episode]
            G = 0.0
            for t in reversed(range(len(episode))):
                G = episode[t][1] + 0.9 * G
                if not first_visit or states[t] not in states[:t]:
                    returns[states[t]].append(G)
        np.testing.assert_allclose(agent.q[run, :, 0], [np.mean(returns[s]) for s in range(5)], atol=1e-12)


def test_first_visit_is_unbiased_after_one_episode_and_every_visit_is_not():
    """A state that repeats with probability 1/2, reward 1: v = 2, but the mean over visits is 1.5 on average."""
    P = {0: {0: [(0.5, 0, 1, False), (0.5, 0, 1, True)]}}
    world = tabular.Simulator(tabular.make_model(P, [1.0]), 20_000)
    for first_visit, expected in ((True, 2.0), (False, 1.5)):
        agent = tabular.MonteCarlo(world, 1.0, power=1, first_visit=first_visit)
        finished, _ = tabular.play(agent, world, 1, episodes=1, error=lambda agent, run: agent.q[run, 0, 0])
        values = finished.error  # after the first episode
        assert len(values) == 20_000
        assert abs(values.mean() - expected) < 5 * values.std() / 20_000**0.5


@pytest.mark.parametrize("replacing", [True, False])
def test_td_lambda_agrees_with_a_plain_loop_over_one_run(replacing):
    world = tabular.Simulator(tabular.random_walk(5, -1.0), 2)
    agent, history = recorded(f"sarsa-lambda:lam=0.7,alpha=0.2,replacing={json.dumps(replacing)}", world)
    for run in range(2):
        v, z = np.zeros(5), np.zeros(5)
        for step in history:
            s, r, next_s, end = (getattr(step, x)[run] for x in ("state", "reward", "next_state", "terminated"))
            error = r + (0 if end else 0.9 * v[next_s]) - v[s]
            z *= 0.9 * 0.7
            z[s] = 1 if replacing else z[s] + 1
            v += 0.2 * error * z
            if end:
                z[:] = 0
        np.testing.assert_allclose(agent.q[run, :, 0], v, atol=1e-12)


def test_double_q_learning_by_hand():
    world = tabular.Simulator(gymnasium_model("FrozenLake-v1"), 1)
    agent = tabular.DoubleQLearning(world, 0.5, alpha=0.5)
    agent.reset(seed=0)
    agent.q[0, 0, 4] = [1, 5, 0, 0]  # the first table's best action is 1, the second one's 0
    agent.q[1, 0, 4] = [8, 2, 0, 0]
    step = tabular.Step(*(np.array([x]) for x in (0, 0, 2, 10.0, 4, False, False)))
    agent.learn(step)
    updated = agent.q[:, 0, 0, 2].tolist()
    assert updated in ([0.5 * (10 + 0.5 * 2), 0], [0, 0.5 * (10 + 0.5 * 1)])


def test_dyna_q_plans_from_pairs_it_has_tried():
    world = tabular.Simulator(tabular.maze(), 5)
    agent, history = recorded("dyna-q:planning=3,alpha=0.5", world, steps=300)
    tried = np.zeros_like(agent.tried)
    for step in history:
        tried[step.run, step.state, step.action] = True
    assert np.array_equal(agent.tried, tried)
    assert np.all(agent.q[~tried] == 0)
    run = np.arange(5)
    imagined = [agent.imagine(run, agent.tried.any(-1), agent.tried) for _ in range(200)]
    model = world.model
    for step in imagined:
        at = step.state, step.action, 0
        assert np.all(agent.tried[run, step.state, step.action])
        assert np.array_equal(step.next_state, model.next_state[at])
        assert np.array_equal(step.reward, model.reward[at])
        assert np.array_equal(step.terminated, model.terminated[at])


# Identities, bit for bit


def learned(text, model=None, limit=100, num_runs=5, steps=3_000):
    world = tabular.Simulator(model or gymnasium_model("FrozenLake-v1"), num_runs, limit)
    agent, _ = recorded(text, world, steps=steps)
    return agent.q


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
    a, b = learned(one), learned(other)
    assert np.array_equal(a, b)
    assert np.count_nonzero(a) > 20


@pytest.mark.parametrize("text", ["q-learning", "expected-sarsa:epsilon=0,explore=0", "n-step-sarsa:n=1", "td"])
def test_with_one_action_all_one_step_methods_are_td_0(text):
    walk = tabular.random_walk(5, -1.0)
    assert np.array_equal(learned(text, walk), learned("sarsa", walk))


def test_batch_td_is_the_certainty_equivalence_estimate():
    """TD(0) over the same episodes again and again with a small step size comes to the same values."""
    world = tabular.Simulator(tabular.random_walk(5, 0.0), 1)
    agent, history = recorded("batch-td", world, gamma=1, steps=200)
    last = max(i for i, step in enumerate(history) if step.ended[0]) + 1
    agent, history = recorded("batch-td", world, gamma=1, steps=last)
    v = np.zeros(5)
    for _ in range(20_000):
        increments = np.zeros(5)
        for step in history:
            s, next_s = step.state[0], step.next_state[0]
            increments[s] += step.reward[0] + (0 if step.terminated[0] else v[next_s]) - v[s]
        v += 0.005 * increments
        if np.abs(increments).max() < 1e-10:
            break
    np.testing.assert_allclose(agent.q[0, :, 0], v, atol=1e-8)


def test_example_6_4_you_are_the_predictor():
    """A, 0, B, 0 once, B, 1 six times, B, 0 once: batch TD says V(A) = 3/4, batch Monte Carlo 0."""
    world = tabular.Simulator(tabular.random_walk(2, 0.0), 1)
    values = {}
    for text in ("batch-td", "monte-carlo:power=1"):
        agent = tabular.make_agent(text, world=world, gamma=1)
        agent.reset()
        for episode in [[(0, 0, 1, False), (1, 0, 1, True)]] + [[(1, 1, 1, True)]] * 6 + [[(1, 0, 1, True)]]:
            agent.start(np.array([0]), np.array([episode[0][0]]))
            for s, reward, next_s, end in episode:
                row = (np.array([x]) for x in (0, s, 0, float(reward), next_s, end, end))
                agent.learn(tabular.Step(*row))
        values[text] = agent.q[0, :, 0]
    np.testing.assert_allclose(values["batch-td"], [0.75, 0.75])
    np.testing.assert_allclose(values["monte-carlo:power=1"], [0, 0.75])


# Truncation


@pytest.mark.parametrize("text", tabular.LEARNERS)
def test_truncation_is_not_termination(text):
    """One state, reward 1 forever, episodes of 5 steps: Q is 1 / (1 - gamma) = 10, not less."""
    model = tabular.make_model({0: {0: [(1, 0, 1, False)]}}, [1.0])
    world = tabular.Simulator(model, 2, limit=5)
    q = learned_in(world, f"{text}:alpha=0.1", gamma=0.9, steps=4_000)
    np.testing.assert_allclose(q, 10, atol=0.01)

    end = replace(model, terminated=np.ones_like(model.terminated))
    np.testing.assert_allclose(learned_in(tabular.Simulator(end, 2), f"{text}:alpha=0.1", 0.9, 4_000), 1, atol=0.01)


def learned_in(world, text, gamma, steps):
    agent = tabular.make_agent(text, world=world, gamma=gamma)
    tabular.play(agent, world, 1, steps=steps)
    return agent.table()


def test_the_simulator_truncates_at_the_limit_and_follows_its_model():
    model = gymnasium_model("FrozenLake-v1")
    world = tabular.Simulator(model, 50_000, limit=2)
    world.reset(1)
    run = np.arange(50_000)
    world.state[:] = 14  # next to the goal
    next_state, reward, terminated, truncated = world.step(run, np.full(50_000, 2))
    np.testing.assert_allclose(np.bincount(next_state, minlength=16)[[10, 14, 15]] / 50_000, 1 / 3, atol=0.011)
    assert np.array_equal(reward == 1, next_state == 15) and np.array_equal(terminated, next_state == 15)
    assert not truncated.any() and world.step(run, np.full(50_000, 2))[3].all()


def test_many_runs_at_once_have_the_distribution_of_single_runs():
    model = tabular.cliff()

    def returns(num_runs, seed):
        world = tabular.Simulator(model, num_runs)
        agent = tabular.make_agent("q-learning:alpha=0.5", world=world, gamma=1)
        episodes, _ = tabular.play(agent, world, seed, episodes=30)
        return tabular.group_means(episodes.run, episodes.ret, num_runs)

    many = returns(400, seed=1)
    single = np.concatenate([returns(1, seed) for seed in range(20)])
    error = np.sqrt(many.var(ddof=1) / 400 + single.var(ddof=1) / 20)
    assert abs(many.mean() - single.mean()) < 5 * error


def test_the_standard_error_by_hand():
    mean, error = tabular.mean_and_error(np.array([[1.0, 2, 3, 6], [5, 5, 5, 5]]))
    assert mean.tolist() == [3, 5]
    np.testing.assert_allclose(error, [(14 / 3) ** 0.5 / 2, 0])
    assert np.isnan(tabular.mean_and_error(np.ones((2, 1)))[1]).all()


def test_the_table_has_the_return_of_the_last_100_episodes():
    args = tabular.Args(runs=3, steps=3_000)
    world = tabular.make_world(args)
    agent = tabular.make_agent("q-learning", world=world, gamma=0.99)
    mean, _ = tabular.run_steps(args, agent, world).columns["return"]
    episodes, _ = tabular.play(agent, world, args.seed, steps=args.steps)
    returns = [episodes.ret[episodes.run == run] for run in range(3)]
    assert all(len(ret) > 150 for ret in returns)
    assert mean == pytest.approx(np.mean([ret[-100:].mean() for ret in returns]))


def test_value_iteration_without_a_finite_value_is_refused():
    model = tabular.make_model({0: {0: [(1, 0, 1, False)]}}, [1.0])
    assert tabular.value_iteration(model, 0.5) == pytest.approx(2)
    with pytest.raises(tabular.InputError, match="--gamma 1: value iteration does not converge"):
        tabular.value_iteration(model, 1)


def test_copies_share_their_random_numbers():
    world = tabular.Simulator(tabular.random_walk(19, -1.0), 6, copies=3)
    _, history = recorded("td:alpha=0.1", world, steps=300)
    for step in history:
        assert np.array_equal(step.state[:2], step.state[2:4]) and np.array_equal(step.state[:2], step.state[4:])
    assert any(step.state[0] != step.state[1] for step in history)


# The book's figures, within five standard errors of an independent simulation, or of the exact value


def figure(name, runs):
    args = tabular.apply_figure(tabular.Args(figure=name, runs=runs))
    world = tabular.make_world(args)
    results = {}
    for text in args.agents:
        agent = tabular.make_agent(text, world=world, gamma=args.gamma)
        results[text] = tabular.run_figure(args, agent, world)
    return results


def close(number, expected, error=0.0):
    """Is (mean, standard error) within five standard errors of an expected value with its own?"""
    mean, own_error = number
    return abs(mean - expected) < 5 * (own_error**2 + error**2) ** 0.5


@pytest.mark.slow
def test_example_6_6_the_safe_path_of_sarsa_and_the_optimal_one_of_q_learning():
    results = figure("6.6", runs=200)
    sarsa, q_learning, expected_sarsa = (result.columns for result in results.values())
    assert close(sarsa["401 to 500"], -26.6, 0.2) and close(sarsa["1 to 100"], -70.7, 0.3)
    assert close(q_learning["401 to 500"], -50.2, 0.24) and close(q_learning["1 to 100"], -80.9, 0.3)
    assert close(expected_sarsa["401 to 500"], -20.8, 0.06) and close(expected_sarsa["1 to 100"], -56.2, 0.3)
    assert abs(expected_sarsa["401 to 500"][0] - -20.708) < 1  # the best policy that explores
    model = tabular.cliff()
    lengths = [
        -tabular.expected_return(model, result.q.argmax(-1), 100) for result in results.values()
    ]  # of the greedy paths
    assert np.all(lengths[1] == 13) and np.mean(lengths[0] == 17) > 0.5 and np.all(lengths[2] == 15)


def test_figure_6_5_maximization_bias():
    q_learning, double = (result.curves["left"][0] for result in figure("6.5", runs=1_000).values())
    assert 85 < q_learning.max() < 97 and double.max() < 60
    assert double[99] < q_learning[99] / 3
    assert abs(q_learning[250:].mean() - 12.4) < 1.5 and abs(double[250:].mean() - 7.0) < 1


def test_figure_6_2_batch_td_is_better_than_batch_monte_carlo_and_td_than_monte_carlo():
    errors = {text: result.columns["episode 100"] for text, result in figure("6.2", runs=100).items()}
    batch_td, batch_mc, *others = errors.values()
    assert close(batch_td, 0.039, 0.0016) and close(batch_mc, 0.057, 0.0016)
    assert batch_td[0] < batch_mc[0]
    for number, expected in zip(others, (0.035, 0.054, 0.069, 0.097, 0.081, 0.092, 0.106)):
        assert close(number, expected, 0.001)
    assert min(others[:3])[0] < min(others[3:])[0]


def test_the_error_at_first_is_that_of_the_initial_values():
    """Five states from 1/6 to 5/6 at 1/2: sqrt(1/18). Nineteen states from -.9 to .9 at 0: sqrt(.3)."""
    for num_states, left_reward, initial, expected in ((5, 0.0, 0.5, (1 / 18) ** 0.5), (19, -1.0, 0.0, 0.3**0.5)):
        model = tabular.random_walk(num_states, left_reward)
        agent = tabular.Sarsa(tabular.Simulator(model, 2), 1.0, initial=initial)
        agent.reset()
        np.testing.assert_allclose(tabular.rms_error(model, 1.0)(agent, np.arange(2)), expected)


@pytest.mark.slow
def test_figure_7_2_an_intermediate_n_is_best():
    results = figure("7.2", runs=60)
    best = {text: result.columns["error"] for text, result in results.items()}
    for n, expected in ((1, 0.347), (2, 0.278), (4, 0.263), (8, 0.281), (16, 0.324)):
        assert close(best[f"n-step-sarsa:n={n}"], expected, 0.004)
    assert min(best, key=best.get) == "n-step-sarsa:n=4"
    for result in results.values():
        assert result.curves["error"][0][0] == pytest.approx(0.3**0.5)  # alpha 0


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
    results = figure("8.2", runs=30)
    steps = {text: result.curves["steps"] for text, result in results.items()}
    expected = {
        "dyna-q:planning=0,alpha=0.1": {2: 654, 3: 576, 5: 264, 10: 127, 25: 23},
        "dyna-q:planning=5,alpha=0.1": {2: 165, 3: 55, 5: 19.7, 10: 16.6},
        "dyna-q:planning=50,alpha=0.1": {2: 42, 3: 17.0, 5: 16.8},
    }
    for text, points in expected.items():
        mean, error = steps[text]
        for episode, number in points.items():
            assert close((mean[episode - 1], error[episode - 1]), number, error[episode - 1])
    assert steps["dyna-q:planning=50,alpha=0.1"][0][2] <= 19
    first = np.array([(mean[0], error[0]) for mean, error in steps.values()])
    assert np.all(np.abs(first[:, 0] - 868.7) < 5 * first[:, 1])  # a random walk; the book says about 1700
    for mean, _ in steps.values():
        assert mean[-10:].mean() > 15.81 - 0.5  # the best policy that explores


@pytest.mark.slow
def test_figure_6_3_large_step_sizes_hurt_sarsa_only():
    results = {text: result.curves for text, result in figure("6.3", runs=30).items()}
    interim = {text: curves["interim"] for text, curves in results.items()}
    late = {text: curves["asymptotic"] for text, curves in results.items()}
    at = {alpha: i for i, alpha in enumerate(tabular.FIGURES["6.3"].alphas)}
    point = lambda curve, alpha: (curve[0][at[alpha]], curve[1][at[alpha]])  # noqa: E731
    assert close(point(interim["expected-sarsa"], 0.1), -135, 0.5)
    assert close(point(interim["expected-sarsa"], 1.0), -44, 0.5)
    assert close(point(interim["sarsa"], 0.9), -68.0, 1) and close(point(interim["q-learning"], 0.9), -73.0, 1)
    assert np.all(late["expected-sarsa"][0] > -30) and np.all(np.abs(late["q-learning"][0] + 51) < 6)
    assert point(late["sarsa"], 0.2)[0] > -30 and point(late["sarsa"], 1.0)[0] < -80


def test_example_6_5_the_windy_gridworld():
    """The shortest path takes 15 steps; in 8000 steps Sarsa finishes about 159 episodes."""
    wind = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)

    def move_to(cell, move):
        row = cell[0] + move[0] - wind[cell[1]]
        to = tuple(np.clip((row, cell[1] + move[1]), 0, (6, 9)))
        return [(1, to, -1, to == (3, 7))]

    model = tabular.make_model(grid(7, 10, move_to), np.eye(70)[30], (7, 10))
    assert optimal_value(model) == -15
    world = tabular.Simulator(model, 50)
    agent = tabular.make_agent("sarsa:alpha=0.5,explore=0", world=world, gamma=1)
    episodes, _ = tabular.play(agent, world, 1, steps=8_000)
    assert abs(np.bincount(episodes.run).mean() - 159) < 8


# Environments without a model


@pytest.mark.parametrize(
    ("space", "elements", "numbers"),
    [
        (spaces.Discrete(3, start=5), [5, 6, 7], [0, 1, 2]),
        (spaces.MultiDiscrete([2, 3]), [np.array([0, 2]), np.array([1, 0])], [2, 3]),
        (spaces.MultiDiscrete([2, 3], start=[1, -1]), [np.array([1, -1]), np.array([2, 1])], [0, 5]),
        (spaces.Tuple([spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2)]), [(21, 10, 1)], [483]),
        (spaces.Tuple([spaces.MultiDiscrete([2, 2]), spaces.Discrete(3, start=1)]), [(np.array([1, 0]), 2)], [7]),
    ],
)
def test_the_elements_of_finite_spaces_are_numbered(space, elements, numbers):
    numbering = tabular.Numbering(space)
    assert numbering.numbers(elements).tolist() == numbers
    if not isinstance(space, spaces.Tuple):
        everything = [numbering.element(number) for number in range(numbering.total)]
        assert all(element in space for element in everything)
        assert numbering.numbers(everything).tolist() == list(range(numbering.total))


def test_boxes_are_cut_into_bins_and_what_lies_outside_belongs_to_the_first_or_last_one():
    space = spaces.Box(-np.inf, np.inf, (2,))
    numbering = tabular.Numbering(space, bins=(4, 2), low=(-1.0, 0.0), high=(1.0, 10.0))
    points = np.array([[-1, 0], [-0.51, 4.9], [-0.49, 5], [0.99, 9], [7, -3], [-np.inf, np.inf]])
    assert numbering.numbers(points).tolist() == [0, 0, 3, 7, 6, 1]
    assert numbering.total == 8


class Shifted(gym.Env):
    """Observations 10 and 11, actions 5 and 6 or their pairs. The action that equals the parity of the state pays 1."""

    def __init__(self, pairs=False):
        self.observation_space = spaces.Discrete(2, start=10)
        self.action_space = spaces.MultiDiscrete([2, 2], start=[5, 5]) if pairs else spaces.Discrete(2, start=5)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 10
        return 10, {}

    def step(self, action):
        assert action in self.action_space
        reward = float(np.all(action == self.state - 5))
        self.state = 21 - self.state
        return self.state, reward, False, False, {}


gym.register("Shifted-v0", Shifted, max_episode_steps=4)


@pytest.mark.parametrize("pairs", [False, True])
def test_observations_and_actions_that_do_not_start_at_0(pairs):
    args = tabular.Args(env_id="Shifted-v0", env_kwargs=json.dumps({"pairs": pairs}), runs=3, steps=2_000)
    world = tabular.make_world(args)
    assert world.model is None and world.legal.shape == (2, 4 if pairs else 2)
    q = learned_in(world, "q-learning:alpha=0.2", gamma=0.5, steps=2_000)
    best = q.argmax(-1)
    assert np.all(best == ([0, 3] if pairs else [0, 1]))
    np.testing.assert_allclose(q.max(-1), 2, atol=0.05)  # 1 / (1 - gamma): the limit of 4 steps only truncates


def test_without_its_model_an_environment_teaches_the_same():
    args = tabular.Args(env_id="CliffWalking-v1", runs=2, model=False, max_episode_steps=200)
    world = tabular.make_world(args)
    assert isinstance(world, tabular.Environments)
    q = learned_in(world, "q-learning:alpha=0.5,explore=0", gamma=1, steps=10_000)
    assert tabular.expected_return(tabular.cliff(), q.argmax(-1), 100).tolist() == [-13, -13]


def test_an_environment_that_does_not_follow_its_model_is_refused():
    tabular.gymnasium_model(gym.make("Taxi-v4", is_rainy=True))
    with pytest.raises(tabular.InputError, match="Taxi-v4: its steps do not follow its model P; --no-model"):
        tabular.gymnasium_model(gym.make("Taxi-v4", fickle_passenger=True))
    world = tabular.make_world(
        tabular.Args(env_id="Taxi-v4", env_kwargs='{"fickle_passenger": true}', model=False, runs=1)
    )
    assert world.legal.shape == (500, 6)


def test_only_the_states_that_an_episode_visits_count():
    assert np.flatnonzero(~tabular.cliff().visited).tolist() == list(range(37, 48))
    assert gymnasium_model("Taxi-v4").visited.sum() == 400  # the passenger is never at the destination
    assert np.flatnonzero(~gymnasium_model("FrozenLake-v1").visited).tolist() == [5, 7, 11, 12, 15]


@pytest.mark.parametrize(("env_id", "arrows"), [("FrozenLake-v1", "LDRU"), ("CliffWalking-v1", "URDL")])
def test_arrows_show_where_an_action_leads(env_id, arrows):
    steps = {"U": [-1, 0], "D": [1, 0], "L": [0, -1], "R": [0, 1]}
    assert tabular.directions(gymnasium_model(env_id)).tolist() == [steps[arrow] for arrow in arrows]


@pytest.mark.slow
def test_cartpole_is_solved_with_a_table():
    args = tabular.Args(
        env_id="CartPole-v1",
        bins=(6, 6, 12, 12),
        low=(-2.4, -3, -0.21, -3),
        high=(2.4, 3, 0.21, 3),
        runs=2,
        steps=200_000,
        agents=("q-learning:alpha=0.1,epsilon=0.02",),
    )
    world = tabular.make_world(args)
    agent = tabular.make_agent(args.agents[0], world=world, gamma=0.99)
    greedy, _ = tabular.run_steps(args, agent, world).columns["greedy"]
    assert greedy >= 475


# Learning


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "steps", "mean", "worst"),
    [("FrozenLake-v1", 100_000, 0.72, 0.68), ("Taxi-v4", 100_000, 7, 5), ("CliffWalking-v1", 20_000, -13, -13)],
)
def test_q_learning_with_its_defaults_comes_close_to_the_optimum(env_id, steps, mean, worst):
    args = tabular.Args(env_id=env_id, steps=steps, runs=20)
    world = tabular.make_world(args)
    agent = tabular.make_agent("q-learning", world=world, gamma=0.99)
    _, policies = tabular.play(agent, world, 1, steps=steps)
    values = tabular.expected_return(world.model, policies[-1], world.limit)
    assert values.mean() >= mean and values.min() >= worst


# The command line


def run(*flags, cwd):
    argv = [sys.executable, ROOT / "tabular.py", *flags]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=120)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_compares_all_agents_and_leaves_tables_and_a_figure(tmp_path):
    done = run("--runs=3", "--steps=400", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    files = {"args.json", "curves.csv", "values.csv", "figure.png", "table.csv"}
    assert {path.name for path in folder.iterdir()} == files
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "args.json").read_text())["runs"] == 3
    table = read(folder / "table.csv")
    agents = [*tabular.PLANNERS, *tabular.LEARNERS]
    assert [row["agent"] for row in table] == agents
    assert float(table[0]["optimum"]) == pytest.approx(0.744190, abs=1e-6)
    for row in table:
        gap = float(row["optimum"]) - float(row["greedy"])
        assert float(row["gap"]) == pytest.approx(gap) and gap > 0
    assert len(read(folder / "curves.csv")) == 20 * len(agents)
    values = read(folder / "values.csv")
    assert len(values) == 16 * len(agents)
    assert float(values[0]["v"]) == pytest.approx(0.542026, abs=1e-6) == float(values[0]["q"])
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:12]] == agents
    assert lines[14].split()[:4] == ["value-iteration", "1", "=", "="]
    assert lines[-1] == f"results: runs/{folder.name}"


@pytest.mark.parametrize("flags", ["--figure 6.6 --runs 2", "--figure 6.2 --runs 2", "--figure 8.2 --runs 2"])
def test_a_figure_is_drawn(tmp_path, flags):
    done = run(*flags.split(), "--run-dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = tabular.FIGURES[flags.split()[1]]
    assert [row["agent"] for row in read(tmp_path / "out/table.csv")] == list(settings.agents)
    assert len(read(tmp_path / "out/curves.csv")) == settings.episodes * len(settings.agents)


def test_the_same_seed_gives_the_same_numbers_and_another_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        args = tabular.Args(run_dir=str(tmp_path / name), seed=seed, runs=3, steps=300)
        tabular.train(args)
    a, b, c = ((tmp_path / name / "curves.csv").read_text() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--runs 0", "--runs 0: must be at least 1"),
        ("--steps 5", "--steps 5: must be at least 20"),
        ("--gamma 1.5", "--gamma 1.5: must be between 0 and 1"),
        ("--gamma nan", "--gamma nan: must be between 0 and 1"),
        ("--seed -1", "--seed -1: must be at least 0"),
        ("--max-episode-steps 0", "--max-episode-steps 0: must be between 1 and 1000000"),
        ("--figure 6.6 --gamma 0.9", "--figure 6.6: cannot be combined with --gamma"),
        ("--figure 6.6 --env-id Taxi-v4", "--figure 6.6: cannot be combined with --env-id"),
        ("--figure 6.7", "--figure"),
        ("--agents nobody", "--agents nobody: unknown agent; use value-iteration, policy-iteration, monte-carlo"),
        ("--agents sarsa:alpha=2", "--agents sarsa:alpha=2: alpha 2: must be between 0 and 1"),
        ("--agents n-step-sarsa:n=0", "--agents n-step-sarsa:n=0: n 0: must be between 1 and 1152921504606846976"),
        (
            "--agents n-step-sarsa:n=1.5",
            "--agents n-step-sarsa:n=1.5: invalid parameter; n-step-sarsa takes alpha=null",
        ),
        ("--agents q-learning:n=2", "--agents q-learning:n=2: invalid parameter; q-learning takes alpha=null"),
        ("--agents value-iteration:alpha=1", "invalid parameter; value-iteration takes no parameters"),
        ("--agents monte-carlo:n=3", "invalid parameter; monte-carlo takes alpha=null"),
        ("--agents batch-td", "--agents batch-td: is for prediction, where states have one action"),
        (
            "--agents value-iteration --env-id Blackjack-v1",
            "--agents value-iteration: needs an environment with a model",
        ),
        ("--agents value-iteration --no-model", "--agents value-iteration: needs an environment with a model P"),
        ("--env-id Nowhere-v0", "--env-id Nowhere-v0"),
        ("--env-id Taxi-v3", "--env-id Taxi-v3"),
        ("--env-kwargs {", "--env-kwargs {"),
        ("--env-kwargs [1]", "must be a mapping"),
        ('--env-kwargs {"wet":true}', "wet"),
        ("--env-id CartPole-v1", "--bins, --low, --high: need 4 numbers each for the observations"),
        ("--env-id CartPole-v1 --bins 3 3 --low 0 0 --high 1 1", "--bins, --low, --high: need 4 numbers each"),
        ("--env-id MountainCar-v0 --bins 3 0 --low 0 0 --high 1 1", "--bins 0: must be at least 1"),
        ("--env-id MountainCar-v0 --bins 3 3 --low 0 2 --high 1 1", "--low 2.0 --high 1.0: must be finite"),
        ("--env-id MountainCar-v0 --bins 3 3 --low 0 0 --high 1 inf", "--low 0.0 --high inf: must be finite"),
        ("--env-id MountainCar-v0 --bins 99999 99999 --low 0 0 --high 1 1", "must be between 1 and 100000000"),
        ("--bins 3", "--bins, --low, --high: need 0 numbers each for the observations, Discrete(16)"),
        ("--env-id Pendulum-v1 --bins 3 3 3 --low 0 0 0 --high 1 1 1", "is not finite"),
        ('--env-id Taxi-v4 --env-kwargs {"fickle_passenger":true}', "its steps do not follow its model P"),
        (
            '--gamma 1 --env-kwargs {"desc":["SF","FF"]} --agents policy-iteration',
            "--gamma 1: some policy never ends its episode (it is improper); choose a smaller gamma",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(capsys, monkeypatch, tmp_path, flags, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tabular.py", *flags.split()])
    with pytest.raises(SystemExit) as exit:
        tabular.main()
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in " ".join(captured.err.split())
    assert list(tmp_path.iterdir()) == []


def test_results_are_not_overwritten(tmp_path):
    flags = "--runs=2", "--steps=100", "--agents=sarsa", "--run-dir=out"
    assert run(*flags, cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = run(*flags, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "tabular.py: --run-dir out: already holds results; choose another folder\n"
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_tracking_works_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = run("--track", "--run-dir=out", "--runs=2", "--steps=100", "--agents", "sarsa", "q-learning", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb"))
