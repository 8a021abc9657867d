"""CPU seconds per run of Example 6.6 and Figure 7.2: tabular.py, and one run after another in a plain loop.

The plain loops follow the book's pseudocode with NumPy arrays, as most published code for the book does. They do fewer
runs, so times are compared per run; the results of both are printed too, to show that they are the same experiment.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import tabular


def choose(rng, q, epsilon=0.1):
    """Epsilon-greedy, ties broken at random."""
    if rng.random() < epsilon:
        return rng.integers(len(q))
    return rng.choice(np.flatnonzero(q == q.max()))


def plain_cliff(rng, kind, alpha=0.5, epsilon=0.1, episodes=500):
    """Returns of the episodes of one run."""
    P = gym.make("CliffWalking-v1").unwrapped.P
    q, returns = np.zeros((48, 4)), []
    for _ in range(episodes):
        state, total, terminated = 36, 0, False
        action = choose(rng, q[state], epsilon)
        while not terminated:
            if kind != "sarsa":
                action = choose(rng, q[state], epsilon)
            _, next_state, reward, terminated = P[state][action][0]
            total += reward
            if kind == "sarsa":
                next_action = choose(rng, q[next_state], epsilon)
                value = q[next_state, next_action]
            elif kind == "q-learning":
                value = q[next_state].max()
            else:
                value = epsilon * q[next_state].mean() + (1 - epsilon) * q[next_state].max()
            q[state, action] += alpha * (reward + value * (not terminated) - q[state, action])
            state = next_state
            if kind == "sarsa":
                action = next_action
        returns.append(total)
    return np.array(returns)


def plain_walk(rng, n, alpha, episodes=10, num_states=19):
    """Mean RMS error over the episodes of one run of n-step TD."""
    true = np.arange(-(num_states - 1), num_states + 1, 2) / (num_states + 1)
    v, errors = np.zeros(num_states + 2), []
    for _ in range(episodes):
        states, rewards, t, T = [(num_states + 1) // 2], [0], 0, np.inf
        while True:
            if t < T:
                states.append(states[t] + rng.choice([-1, 1]))
                end = states[-1] in (0, num_states + 1)
                rewards.append((-1 if states[-1] == 0 else 1) if end else 0)
                T = t + 1 if end else T
            tau = t - n + 1
            if tau >= 0:
                target = sum(rewards[tau + 1 : int(min(tau + n, T)) + 1])
                if tau + n < T:
                    target += v[states[tau + n]]
                v[states[tau]] += alpha * (target - v[states[tau]])
            if tau == T - 1:
                break
            t += 1
        errors.append(np.sqrt(np.mean((v[1:-1] - true) ** 2)))
    return np.mean(errors)


def time_figure(name, runs):
    """Results of tabular.py and its seconds per run."""
    args = tabular.apply_figure(tabular.Args(figure=name, runs=runs))
    start = time.process_time()
    world = tabular.make_world(args)
    results = {}
    for text in args.agents:
        agent = tabular.make_agent(text, world=world, gamma=args.gamma)
        results[text] = tabular.run_figure(args, agent, world)
    return results, (time.process_time() - start) / runs


def compare_cliff(runs, plain_runs):
    results, ours = time_figure("6.6", runs)
    rng = np.random.default_rng(1)
    start, plain = time.process_time(), {}
    for kind in ("sarsa", "q-learning", "expected-sarsa"):
        plain[kind] = np.array([plain_cliff(rng, kind)[-100:].mean() for _ in range(plain_runs)])
    theirs = (time.process_time() - start) / plain_runs
    for text, result in results.items():
        mean, error = tabular.mean_and_error(plain[text.split(":")[0]])
        print(f"  {text}: {result.columns['401 to 500'][0]:.2f}, plain {mean:.2f} +- {error:.2f}")
    return {"runs": runs, "seconds": ours * runs, "plain_seconds": theirs * runs, "ratio": theirs / ours}


def compare_walk(runs, plain_runs):
    results, ours = time_figure("7.2", runs)
    rng = np.random.default_rng(1)
    start, plain = time.process_time(), {}
    for text in results:
        n = int(text.split("=")[1])
        for alpha in tabular.FIGURES["7.2"].alphas:
            plain[text, alpha] = np.array([plain_walk(rng, n, alpha) for _ in range(plain_runs)])
    theirs = (time.process_time() - start) / plain_runs
    for text, result in results.items():
        (best, _), (alpha, _) = result.columns.values()
        print(f"  {text}, alpha {alpha}: {best:.3f}, plain {plain[text, alpha].mean():.3f}")
    return {"runs": runs, "seconds": ours * runs, "plain_seconds": theirs * runs, "ratio": theirs / ours}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain-runs", type=int, default=3)
    flags = parser.parse_args()
    for name, compare, runs in (("6.6", compare_cliff, 1_000), ("7.2", compare_walk, 100)):
        print(f"figure {name}")
        rows = [compare(runs, flags.plain_runs) for _ in range(flags.repeats)]
        rows.sort(key=lambda row: row["seconds"])
        for label, row in (("best", rows[0]), ("median", rows[len(rows) // 2])):
            print(" ", label, json.dumps({key: round(value, 1) for key, value in row.items()}))
