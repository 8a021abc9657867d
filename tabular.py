"""Tabular reinforcement learning: dynamic programming, Monte Carlo and temporal-difference learning.

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", second edition, chapters 3 to 8, and one method each
from chapters 11, 12 and 13. Read it after bandit.py, with the book at hand: most learners are one of its boxes.

In state s an agent takes action a, receives reward r and comes to state s'. The return G is the sum of the rewards to
come, each discounted by gamma per step. Under a policy, v(s) is the expected return from s, q(s, a) that after a in s.

- value-iteration and policy-iteration plan: they know the probabilities p(s', r | s, a).
- monte-carlo, sarsa, expected-sarsa, q-learning, double-q-learning, n-step-sarsa, sarsa-lambda and dyna-q learn Q(s, a)
  from experience. The keyword arguments of these functions are the parameters that --agents takes.
- td, batch-td, importance-sampling and semi-gradient-td predict the value of a given policy; reinforce has a policy
  without values. They are for the book's figures only.

Questions that a learner asks:

- Does Bellman's equation hold for any policy? There are two equations. v(s) = E[r + gamma v(s')], with a from pi, holds
  for any policy pi (Eq. 3.14). v(s) = max_a E[r + gamma v(s')] holds only for optimal policies (Eq. 3.18).
- Bootstrapping or sampling? A method bootstraps if its target contains an estimate, that of the next state. It samples
  if it uses one next state that occurred, instead of an expectation over all, for which it would need a model. Dynamic
  programming bootstraps. Monte Carlo samples: it has the variance of a whole episode, but no bias from wrong estimates.
  Temporal-difference learning does both. The parameters n and lambda choose how much it bootstraps.
- On-policy or off-policy? On-policy methods learn the values of the policy that acts, including its exploration.
  q-learning, double-q-learning and dyna-q explore too, but learn the values of the greedy policy. At the cliff
  (--figure 6.6) the greedy policy walks along the edge, and the agent falls when it explores.
- Why does Q-learning converge? All pairs (s, a) must be visited again and again. In expectation, its update is a
  contraction for gamma < 1: the largest error of the targets is at most gamma times that of Q. Step sizes with an
  infinite sum and a finite sum of squares (Eq. 2.7) average out the noise. A constant one, as here, leaves some noise.
- Why does dqn.py have a target network? With function approximation, an update also changes other values, even those in
  its own target. Off-policy, the weights may then diverge (--figure 11.2). Targets from a copy of the weights that lags
  behind make it more like regression; with a copy made every 500 steps, the error there ends at 14, not 574.
- Why is truncation not termination? No reward follows a terminal state, so its value is 0. A time limit is not part of
  the state. The task could go on from s', so the target needs the estimated value of s'.
"""
# /// script
# requires-python = ">=3.10"
# dependencies = ["gymnasium>=1.3", "matplotlib>=3.8", "numpy>=1.26", "tqdm>=4.66", "tyro>=0.9.1"]
# ///

import csv
import inspect
import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import tyro
from gymnasium import spaces
from tqdm import tqdm

rng = random.Random()  # all random numbers of a run; seeded at its start


@dataclass
class Args:
    figure: Literal["5.4", "6.2", "6.3", "6.5", "6.6", "7.2", "8.2", "11.2", "13.1"] | None = None  # of the book
    agents: tuple[str, ...] = ()  # to compare; each is name or name:parameter=value,parameter=value; default all
    env_id: str = "FrozenLake-v1"  # Gymnasium environment
    env_kwargs: str = "{}"  # its arguments as JSON: '{"is_slippery": false, "max_episode_steps": 50}'
    bins: tuple[int, ...] = ()  # for Box observations: number of intervals per dimension
    low: tuple[float, ...] = ()  # lower end of the first interval, per dimension
    high: tuple[float, ...] = ()  # upper end of the last interval, per dimension
    runs: int | None = None  # runs per agent; default 20, with --figure the figure's own
    steps: int = 15_000  # environment steps per run
    gamma: float = 0.99  # discount factor
    initial: float = 0.0  # Q(s, a) at first; a high one makes agents explore
    seed: int = 1  # same seed, same results
    processes: int = os.cpu_count() or 1  # that share the runs, with the same results; default one per core
    run_dir: str = ""  # folder for the results; default runs/tabular__<seed>__<time>


class Model(NamedTuple):
    """p(s', r | s, a) of a Markov decision process, and where it starts."""

    P: list  # P[s][a] = [(probability, s', r, whether s' is terminal; if so, any number stands for s'), ...]
    start: list  # probability of each state to be the first
    policy: list | None = None  # to evaluate: probability of each action, [S][A]
    noise: list | None = None  # standard deviation of normal noise on the rewards, per state


def make_model(P, start, **others):
    """Model from P as in Gymnasium, of lists or dicts. Raises InputError if probabilities do not sum to 1."""

    def clean(outcomes):
        if abs(sum(p for p, *_ in outcomes) - 1) > 1e-6:
            raise InputError("P: the probabilities of an action's outcomes must sum to 1")
        return [(float(p), int(s), *result) for p, s, *result in outcomes if p]

    # Only the states that an episode visits keep their P; the others end it at once, with value 0. Among these are the
    # terminal states, from which the episode seems to go on in the P of CliffWalking and Taxi.
    model = []
    for s in range(len(P)):
        model.append([[(1.0, s, 0.0, True)]] * len(P[s]))
    visited, todo = set(), set(np.flatnonzero(start).tolist())
    while todo:
        s = todo.pop()
        visited.add(s)
        model[s] = [clean(P[s][a]) for a in range(len(P[s]))]
        for outcomes in model[s]:
            todo |= {next_s for _, next_s, _, end in outcomes if not end} - visited
    return Model(model, list(start), **others)


def q_values(P, v, gamma):
    """q(s, a) = E[r + gamma v(s')], the expectation in Bellman's equations (Eq. 4.6): v [S] -> q [S][A]."""

    def expectation(outcomes):
        total = 0.0
        for p, next_s, r, terminated in outcomes:
            total += p * (r + gamma * v[next_s] * (not terminated))
        return total

    return [[expectation(outcomes) for outcomes in actions] for actions in P]


def value_iteration(P, gamma, tolerance=1e-10):
    """The optimal v, [S] (Eq. 4.10). Raises InputError if it is not found in 100,000 sweeps."""
    v = [0.0] * len(P)
    for _ in range(100_000):
        old, v = v, [max(q) for q in q_values(P, v, gamma)]
        if np.abs(np.subtract(v, old)).max() < tolerance:
            return v
    raise InputError(f"--gamma {gamma}: value iteration does not converge; choose a smaller gamma")


def policy_iteration(P, gamma):
    """v of an optimal policy, [S], and the policy, [S][A]: evaluation and improvement in turn (section 4.3)."""
    policy = [[1 / len(actions)] * len(actions) for actions in P]  # with gamma = 1 the first one must end, too
    while True:
        v = evaluate(P, policy, gamma)
        q = q_values(P, v, gamma)
        improved = [max(q[s]) > v[s] + 1e-9 for s in range(len(P))]  # a tie keeps the old action, or it might not end
        if not any(improved):
            return v, policy
        policy = [new if better else old for new, old, better in zip(greedy_policy(q), policy, improved)]  # Eq. 4.9


def evaluate(P, policy, gamma):
    """v of a policy [S][A], the solution of the linear system v = r + gamma T v (Eq. 3.14), [S]. Raises InputError."""
    T, r = transitions(P, policy)
    can_end = T.sum(1) < 1 - 1e-9  # in one step; then, in two, in three, until no state is added
    while gamma == 1 and not can_end.all():
        before, can_end = can_end, can_end | (T @ can_end > 0)
        if np.array_equal(before, can_end):
            raise InputError("--gamma 1: some policy never ends its episode (it is improper); choose a smaller gamma")
    return np.linalg.solve(np.eye(len(P)) - gamma * T, r)


def transitions(P, policy):
    """Under a policy [S][A]: the probability T(s, s') to go on in s', [S, S], and the expected reward r(s), [S]."""
    r, T = np.zeros(len(P)), np.zeros((len(P), len(P)))
    for s, actions in enumerate(P):
        for a, outcomes in enumerate(actions):
            for p, next_s, reward, terminated in outcomes:
                T[s, next_s] += policy[s][a] * p * (not terminated)
                r[s] += policy[s][a] * p * reward
    return T, r


def greedy_policy(q):
    """The first of the best actions with probability 1, [S][A] -> [S][A]."""
    policy = []
    for q_s in q:
        best = q_s.index(max(q_s))
        policy.append([float(a == best) for a in range(len(q_s))])
    return policy


def expected_return(model, policy, limit):
    """Expected undiscounted return of a policy [S][A] under a time limit, which P does not show."""
    T, r = transitions(model.P, policy)
    v = np.zeros(len(r))
    for _ in range(limit):
        v = r + T @ v
    return model.start @ v


# Each learner is a generator. It plays one episode, learns, yields its estimate, and so on. world (class World, below)
# has reset(), the first state; step(a), which returns s', r, whether s' is terminal and whether the episode has ended;
# and table(), Q at first. In a truncated episode, the last target of control has the value of the state reached.


def greedy(q):
    """The action with the highest of the values q [A]. Ties are broken at random."""
    best = max(q)
    ties = [a for a, value in enumerate(q) if value == best]
    return ties[0] if len(ties) == 1 else rng.choice(ties)


def epsilon_greedy(q, epsilon):
    """With probability epsilon any action, otherwise the greedy one."""
    return rng.randrange(len(q)) if rng.random() < epsilon else greedy(q)


def follow(world, q):
    """Greedy with respect to a q that does not change."""
    while True:
        s, ended = world.reset(), False
        while not ended:
            s, _, _, ended = world.step(greedy(q[s]))
        yield q


def monte_carlo(world, gamma, first_visit=True, alpha=None, epsilon=0.1):
    """On-policy Monte Carlo control (section 5.4): the target is the return of the rest of the episode.

    Q is the average of the returns or, with a constant step size alpha, moves towards each of them (Eq. 6.1).
    """
    q, visits = world.table(), world.table(0)
    while True:
        episode, first = [], {}
        s, ended = world.reset(), False
        a = epsilon_greedy(q[s], epsilon)
        while not ended:
            next_s, r, terminated, ended = world.step(a)
            first.setdefault((s, a), len(episode))
            episode.append((s, a, r))
            s, a = next_s, epsilon_greedy(q[next_s], epsilon)  # if next_s is terminal, a is not used
        G = 0.0 if terminated else q[s][a]
        for t, (s, a, r) in reversed([*enumerate(episode)]):
            G = r + gamma * G
            if t == first[s, a] or not first_visit:
                visits[s][a] += 1
                step_size = 1 / visits[s][a] if alpha is None else alpha
                q[s][a] += step_size * (G - q[s][a])
        yield q


def td(world, gamma, alpha=0.1):
    """TD(0) prediction (Eq. 6.2). A state has one action, 0: what the policy to evaluate does."""
    v = [world.initial] * len(world.model.P)
    while True:
        s, ended = world.reset(), False
        while not ended:
            next_s, r, terminated, ended = world.step(0)
            target = r if terminated else r + gamma * v[next_s]
            v[s] += alpha * (target - v[s])
            s = next_s
        yield v


def batch_td(world, gamma):
    """Batch TD(0) prediction: what TD(0) converges to if all steps so far are repeated (section 6.3).

    That is v of the maximum-likelihood model, the certainty-equivalence estimate.
    """
    outcomes = [Counter() for _ in world.model.P]  # how often each followed the state
    while True:
        s, ended = world.reset(), False
        while not ended:
            next_s, r, terminated, ended = world.step(0)
            outcomes[s][next_s, r, terminated] += 1
            s = next_s
        P = []
        for s, seen in enumerate(outcomes):
            seen = seen or Counter({(s, world.initial, True): 1})  # a state without a visit keeps its initial value
            total = seen.total()
            P.append([[(n / total, *outcome) for outcome, n in seen.items()]])
        yield evaluate(P, [[1.0]] * len(P), gamma)


def sarsa(world, gamma, alpha=0.1, epsilon=0.1):
    """Sarsa, on-policy TD control (Eq. 6.7): the target has the action that is taken next."""
    q = world.table()
    while True:
        s, ended = world.reset(), False
        a = epsilon_greedy(q[s], epsilon)
        while not ended:
            next_s, r, terminated, ended = world.step(a)
            next_a = epsilon_greedy(q[next_s], epsilon)
            target = r if terminated else r + gamma * q[next_s][next_a]
            q[s][a] += alpha * (target - q[s][a])
            s, a = next_s, next_a
        yield q


def expected_sarsa(world, gamma, alpha=0.1, epsilon=0.1):
    """Expected Sarsa (Eq. 6.9): the target has the expectation over the actions that may be taken next."""
    q = world.table()
    while True:
        s, ended = world.reset(), False
        while not ended:
            a = epsilon_greedy(q[s], epsilon)
            next_s, r, terminated, ended = world.step(a)
            mean = sum(q[next_s]) / len(q[next_s])
            expectation = epsilon * mean + (1 - epsilon) * max(q[next_s])
            target = r if terminated else r + gamma * expectation
            q[s][a] += alpha * (target - q[s][a])
            s = next_s
        yield q


def q_learning(world, gamma, alpha=0.1, epsilon=0.1):
    """Q-learning, off-policy TD control (Eq. 6.8): the target has the best next action, whatever is taken."""
    q = world.table()
    while True:
        s, ended = world.reset(), False
        while not ended:
            a = epsilon_greedy(q[s], epsilon)
            next_s, r, terminated, ended = world.step(a)
            target = r if terminated else r + gamma * max(q[next_s])
            q[s][a] += alpha * (target - q[s][a])
            s = next_s
        yield q


def double_q_learning(world, gamma, alpha=0.1, epsilon=0.1):
    """Double Q-learning (Eq. 6.10): one table chooses the best next action, the other one gives its value."""
    one, two = world.table(), world.table()
    q = world.table()  # their mean, which acts; the greedy action is that of the sum
    while True:
        s, ended = world.reset(), False
        while not ended:
            a = epsilon_greedy(q[s], epsilon)
            next_s, r, terminated, ended = world.step(a)
            if rng.random() < 0.5:
                one, two = two, one
            best = one[next_s].index(max(one[next_s]))
            target = r if terminated else r + gamma * two[next_s][best]
            one[s][a] += alpha * (target - one[s][a])
            q[s][a] = (one[s][a] + two[s][a]) / 2
            s = next_s
        yield q


def n_step_sarsa(world, gamma, n=4, alpha=0.1, epsilon=0.1):
    """n-step Sarsa (Eq. 7.4, 7.5): the target has n rewards, then the value of the state and action reached.

    With one action per state it is n-step TD prediction (Eq. 7.1, 7.2).
    """
    q = world.table()
    while True:
        steps = []  # those that wait for their update
        s, ended = world.reset(), False
        a = epsilon_greedy(q[s], epsilon)
        while not ended:
            next_s, r, terminated, ended = world.step(a)
            steps.append((s, a, r))
            s, a = next_s, epsilon_greedy(q[next_s], epsilon)
            while len(steps) == n or (ended and steps):  # update the oldest; at the end, all that are left
                G = 0.0 if terminated else q[s][a]
                for _, _, reward in reversed(steps):
                    G = reward + gamma * G
                first_s, first_a, _ = steps.pop(0)
                q[first_s][first_a] += alpha * (G - q[first_s][first_a])
        yield q


def sarsa_lambda(world, gamma, lam=0.9, replacing=True, alpha=0.1, epsilon=0.1):
    """Sarsa(lambda) (section 12.7): the error of a step also corrects earlier pairs (s, a) (Eq. 12.7).

    Each is corrected in proportion to its trace z, which decays by gamma lambda per step (Eq. 12.5). A visit adds 1 to
    a trace, or sets it to 1 if it is replacing (Eq. 12.12). With one action per state and adding, it is TD(lambda).
    """
    q = world.table()
    while True:
        z = {}
        s, ended = world.reset(), False
        a = epsilon_greedy(q[s], epsilon)
        while not ended:
            next_s, r, terminated, ended = world.step(a)
            next_a = epsilon_greedy(q[next_s], epsilon)
            target = r if terminated else r + gamma * q[next_s][next_a]
            delta = target - q[s][a]  # Eq. 12.16
            z[s, a] = 1 if replacing else z.get((s, a), 0) + 1
            for i, j in z:
                q[i][j] += alpha * delta * z[i, j]
                z[i, j] *= gamma * lam
            s, a = next_s, next_a
        yield q


def dyna_q(world, gamma, planning=5, alpha=0.1, epsilon=0.1):
    """Dyna-Q (section 8.2): Q-learning that also learns from steps that its model imagines, `planning` per real step.

    The model is the last outcome of each pair (s, a). Where outcomes are random, that is wrong, and planning may harm.
    """
    q, model = world.table(), defaultdict(dict)

    def learn(s, a, next_s, r, terminated):
        target = r if terminated else r + gamma * max(q[next_s])
        q[s][a] += alpha * (target - q[s][a])

    while True:
        s, ended = world.reset(), False
        while not ended:
            a = epsilon_greedy(q[s], epsilon)
            next_s, r, terminated, ended = world.step(a)
            learn(s, a, next_s, r, terminated)
            model[s][a] = next_s, r, terminated
            seen = list(model)
            for _ in range(planning):
                past_s = rng.choice(seen)
                past_a = rng.choice(list(model[past_s]))
                learn(past_s, past_a, *model[past_s][past_a])
            s = next_s
        yield q


def importance_sampling(world, gamma, weighted=True):
    """Off-policy Monte Carlo prediction of v(start): weighted importance sampling (Eq. 5.6), or ordinary (Eq. 5.5).

    The behavior b is uniformly random. Each return is multiplied by how much more probable its actions are under the
    policy pi to evaluate (Eq. 5.3). The ratio in trpo.py and ppo.py is that of a single action.
    """
    total = weight = 0.0
    while True:
        s, ended = world.reset(), False
        G, discount, ratio = 0.0, 1.0, 1.0
        while not ended:
            a = rng.randrange(world.num_actions[s])
            ratio *= world.model.policy[s][a] * world.num_actions[s]  # pi(a|s) / b(a|s)
            s, r, _, ended = world.step(a)
            G += discount * r
            discount *= gamma
        total += ratio * G
        weight += ratio if weighted else 1
        yield total / weight if weight else 0.0


def semi_gradient_td(world, gamma, alpha=0.01, copy_every=1):
    """Semi-gradient off-policy TD(0) with v(s) = w . x(s), here of Baird's counterexample (Eq. 11.2, 11.3).

    The task goes on for ever; it yields v, [S], after each step, which stands for an episode. The target's w is a copy,
    made after every copy_every steps: with more than 1 it is the target network of the DQN paper.
    """
    x, w = BAIRD_FEATURES, BAIRD_WEIGHTS.copy()
    s = world.reset()
    for t in count():
        if t % copy_every == 0:
            w_target = w.copy()
        a = rng.randrange(world.num_actions[s])
        ratio = world.model.policy[s][a] * world.num_actions[s]
        next_s, r, _, _ = world.step(a)
        delta = r + gamma * w_target @ x[next_s] - w @ x[s]
        w += alpha * ratio * delta * x[s]
        s = next_s
        yield x @ w


def reinforce(world, gamma, alpha=2**-13, baseline=0.0):
    """REINFORCE (Eq. 13.8, with the box's gamma^t), one softmax policy for all states of Example 13.1: left or right.

    baseline: step size with which the mean return is learned, to be subtracted from each return (Eq. 13.11).
    """
    theta, v = [math.log(19), 0.0], 0.0  # preferences, ln(0.95 / 0.05): at first the probability of right is 0.05
    while True:
        right = 1 / (1 + math.exp(theta[0] - theta[1]))
        episode, ended = [], False
        world.reset()
        while not ended:
            a = int(rng.random() < right)
            _, r, _, ended = world.step(a)
            episode.append((a, r))
        G, returns = 0.0, []
        for _, r in reversed(episode):
            G = r + gamma * G
            returns.insert(0, G)
        for t, (a, _) in enumerate(episode):
            delta = returns[t] - v
            v += baseline * delta
            right = 1 / (1 + math.exp(theta[0] - theta[1]))
            theta[0] += alpha * gamma**t * delta * ((a == 0) - (1 - right))  # the gradient of ln pi(a)
            theta[1] += alpha * gamma**t * delta * ((a == 1) - right)
        yield theta


PLANNERS = ("value-iteration", "policy-iteration")  # need a model
LEARNERS = (monte_carlo, sarsa, expected_sarsa, q_learning, double_q_learning, n_step_sarsa, sarsa_lambda, dyna_q)
LESSONS = (td, batch_td, importance_sampling, semi_gradient_td, reinforce)  # for figures only
CONTROL = PLANNERS + tuple(learner.__name__.replace("_", "-") for learner in LEARNERS)
AGENTS = {learner.__name__.replace("_", "-"): learner for learner in LEARNERS + LESSONS}


# From here on: worlds, the book's processes and figures, the experiment, and the command line.


class World:
    """Steps in a model, whose episodes are truncated after `limit` steps. Keeps their returns."""

    def __init__(self, model, limit=math.inf, initial=0.0):
        self.model, self.limit, self.initial = model, limit, initial
        self.num_actions = [len(actions) for actions in model.P]

    def begin(self, seed, steps=math.inf):
        """A new run. After this many steps in all, the current episode is truncated."""
        rng.seed(seed)
        self.time, self.steps, self.returns = 0, steps, []

    def table(self, initial=None):
        """Q(s, a) at first, [S][A]."""
        initial = self.initial if initial is None else initial
        return [[initial] * n for n in self.num_actions]

    def reset(self):
        """The first state of an episode."""
        self.ret, self.length = 0.0, 0
        self.state = self.first_state()
        return self.state

    def step(self, action):
        """s', r, whether s' is terminal, and whether the episode has ended: there, or by a time limit."""
        self.state, r, terminated, truncated = self.move(action)
        self.time += 1
        self.length += 1
        self.ret += r
        ended = terminated or truncated or self.length == self.limit
        if ended:
            self.returns.append(self.ret)
        return self.state, r, terminated, ended or self.time == self.steps

    def first_state(self):
        return rng.choices(range(len(self.model.P)), self.model.start)[0]

    def move(self, action):
        u = rng.random()
        for outcome in self.model.P[self.state][action]:
            u -= outcome[0]
            if u < 0:
                break
        _, next_s, r, terminated = outcome
        if self.model.noise:
            r += rng.gauss(0, self.model.noise[self.state])
        return next_s, r, terminated, False


class Environment(World):
    """A Gymnasium environment. A state is a tuple of integers, and a table has the states that were seen."""

    def __init__(self, args, limit):
        self.args, self.model, self.limit, self.initial = args, None, limit, args.initial
        action_space = make_env(args).action_space
        if not isinstance(action_space, spaces.Discrete):
            raise InputError(f"--env-id {args.env_id}: its actions, {action_space}, are not Discrete")
        self.first, self.num_actions = int(action_space.start), int(action_space.n)

    def begin(self, seed, steps=math.inf):
        super().begin(seed, steps)
        self.env = make_env(self.args)
        self.env.reset(seed=seed)

    def table(self, initial=None):
        initial = self.initial if initial is None else initial
        return defaultdict(lambda: [initial] * self.num_actions)

    def first_state(self):
        return self.discretize(self.env.reset()[0])

    def move(self, action):
        obs, r, terminated, truncated, _ = self.env.step(self.first + action)
        return self.discretize(obs), float(r), terminated, truncated

    def discretize(self, obs):
        """The numbers of the bins in which an observation is. What is outside belongs to the first or the last one."""
        obs = np.hstack(obs) if isinstance(obs, tuple) else np.ravel(obs)
        if self.args.bins:
            low, bins = np.array(self.args.low), np.array(self.args.bins)
            fraction = (obs - low) / (self.args.high - low)
            obs = np.floor(fraction * bins).clip(0, bins - 1)
        return tuple(obs.tolist())


def make_env(args):
    """The environment. Raises InputError if there is none, or if the bins do not fit its observations."""
    try:
        env = gym.make(args.env_id, **json.loads(args.env_kwargs))
    except (gym.error.Error, ImportError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"--env-id {args.env_id} --env-kwargs {args.env_kwargs}: {error}") from error
    space = env.observation_space
    size = math.prod(space.shape) if isinstance(space, spaces.Box) else 0
    fits = len(args.bins) == len(args.low) == len(args.high) == size
    widths = (high - low for low, high in zip(args.low, args.high))
    if not fits or not all(0 < number < math.inf for number in (*args.bins, *widths)):
        raise InputError(f"--bins, --low < --high: need {size} finite numbers each for the observations, {space}")
    return env


def make_world(args):
    """World of the figure's model or of args.env_id, which is simulated if it has a model. Raises InputError."""
    if args.figure:
        figure = FIGURES[args.figure]
        return World(figure.model(), figure.limit, figure.initial)
    env = make_env(args)
    limit = env.spec.max_episode_steps or 1_000  # CliffWalking has none
    model = gymnasium_model(env)
    return World(model, limit, args.initial) if model else Environment(args, limit)


def gymnasium_model(env):
    """Model from env.unwrapped.P; None if it has no P or does not act as P says, as Taxi with a fickle passenger."""
    raw = env.unwrapped
    if not hasattr(raw, "P"):
        return None
    start = getattr(raw, "initial_state_distrib", None)
    if start is None:  # estimated
        first_states = Counter(int(env.reset(seed=seed)[0]) for seed in range(1_000))
        start = [first_states[s] / 1_000 for s in range(len(raw.P))]
    model = make_model(raw.P, start)
    random_actions, (s, _) = random.Random(0), env.reset(seed=0)
    for _ in range(10_000):
        a = random_actions.randrange(len(model.P[s]))
        next_s, r, terminated, truncated, _ = env.step(a)
        possible = [outcome[1:] for outcome in model.P[s][a]]
        if (next_s, r, terminated) not in possible:
            return None
        s = env.reset()[0] if terminated or truncated else next_s
    return model


def random_walk(num_states, left_reward):
    """From the center to the left or to the right, until an end is passed; reward 1 at the right end (Example 6.2)."""
    P = []
    for s in range(num_states):
        left, right = (0.5, s - 1, 0, False), (0.5, s + 1, 0, False)
        P.append([[left, right]])
    P[0][0][0] = (0.5, 0, left_reward, True)
    P[-1][0][1] = (0.5, 0, 1, True)
    return make_model(P, np.eye(num_states)[num_states // 2], policy=[[1.0]] * num_states)


def maximization_bias():
    """Example 6.7: from A, left (0) to B or right (1) to the end; from B, 10 actions to the end, with N(-0.1, 1)."""
    from_a = [[(1, 1, 0, False)], [(1, 0, 0, True)]]
    from_b = [[(1, 1, -0.1, True)]] * 10
    return make_model([from_a, from_b], [1, 0], noise=[0, 1])


def maze():
    """Example 8.1: moves up, right, down, left in 6 rows and 9 columns; reward 1 at the end, the upper right corner."""
    walls = 7, 11, 16, 20, 25, 29, 41  # 9 * row + column
    P = [[] for _ in range(54)]
    for s in range(54):
        for move in (-1, 0), (0, 1), (1, 0), (0, -1):
            row, column = np.add(divmod(s, 9), move).clip(0, (5, 8))
            next_s = s if 9 * row + column in walls else 9 * row + column
            end = next_s == 8
            P[s].append([(1, next_s, float(end), end)])
    return make_model(P, np.eye(54)[18])


def cliff():
    return gymnasium_model(gym.make("CliffWalking-v1"))


def infinite_variance():
    """Example 5.5: left (0) comes back with probability 0.9, otherwise ends with reward 1; right (1) ends with 0."""
    left = [(0.9, 0, 0, False), (0.1, 0, 1, True)]
    right = [(1, 0, 0, True)]
    return make_model([[left, right]], [1], policy=[[1.0, 0.0]])


BAIRD_FEATURES = np.eye(7, 8) * 2  # x(s), [7, 8]
BAIRD_FEATURES[:6, 7] = 1
BAIRD_FEATURES[6, 6:] = 1, 2
BAIRD_WEIGHTS = np.array([1, 1, 1, 1, 1, 1, 10, 1.0])  # at first


def baird():
    """Baird's counterexample (figure 11.1). The action "dashed" is split into six: action a leads to state a."""
    actions = [[(1, a, 0, False)] for a in range(7)]
    solid = [0.0] * 6 + [1.0]
    return make_model([actions] * 7, [1 / 7] * 7, policy=[solid] * 7)


def corridor():
    """Example 13.1: left (0) or right (1) from the first of three states to the end; the second state reverses them."""
    first = [[(1, 0, -1, False)], [(1, 1, -1, False)]]
    second = [[(1, 2, -1, False)], [(1, 0, -1, False)]]
    third = [[(1, 1, -1, False)], [(1, 0, -1, True)]]
    return make_model([first, second, third], [1, 0, 0])


class Figure(NamedTuple):
    """An experiment of the book; the defaults are those of the cliff."""

    agents: tuple[str, ...]
    model: Callable[[], Model] = cliff
    measure: str = "return"  # of MEASURES
    episodes: int = 500
    windows: tuple[tuple[int, int], ...] = ((1, 100), (401, 500))  # episodes (first, last) that the table averages
    runs: int = 100
    gamma: float = 1.0
    initial: float = 0.0  # estimate at first
    limit: float = math.inf  # steps after which an episode is truncated
    ylim: tuple[float, float] | None = None


MEASURES = {  # of an episode; estimate is what the agent yields after it, v the exact value of the policy to evaluate
    "return": lambda world, estimate, v: world.ret,
    "steps": lambda world, estimate, v: world.length,
    "left, %": lambda world, estimate, v: 100 * (world.length == 2),  # in Example 6.7 only left has a second step
    "error": lambda world, estimate, v: np.mean((np.ravel(estimate) - v) ** 2) ** 0.5,
    "estimate": lambda world, estimate, v: estimate,
}
TENTHS = tuple(i / 10 for i in range(1, 11))
FIGURES = {
    "5.4": Figure(  # v is 1; the book has single runs of ordinary importance sampling
        agents=("importance-sampling:weighted=false", "importance-sampling:weighted=true"),
        model=infinite_variance,
        measure="estimate",
        episodes=10_000,
        windows=((10, 10), (100, 100), (1_000, 1_000), (10_000, 10_000)),
        ylim=(0, 2),
    ),
    "6.2": Figure(  # batch TD and batch Monte Carlo, the average of all returns; then Example 6.2
        agents=(
            "batch-td",
            "monte-carlo:first_visit=false",
            *(f"td:alpha={alpha}" for alpha in (0.05, 0.1, 0.15)),
            *(f"monte-carlo:first_visit=false,alpha={alpha}" for alpha in (0.01, 0.02, 0.03, 0.04)),
        ),
        model=lambda: random_walk(5, left_reward=0),
        measure="error",
        episodes=100,
        windows=((100, 100),),
        initial=0.5,
    ),
    "6.3": Figure(  # the book averages 100,000 episodes for the asymptotic performance
        agents=tuple(f"{name}:alpha={alpha}" for name in ("expected-sarsa", "sarsa", "q-learning") for alpha in TENTHS),
        runs=30,
        ylim=(-160, 0),
    ),
    "6.5": Figure(
        agents=("q-learning", "double-q-learning"),
        model=maximization_bias,
        measure="left, %",
        episodes=300,
        windows=((20, 20), (251, 300)),
    ),
    "6.6": Figure(  # the unnumbered figure of Example 6.6, and Expected Sarsa
        agents=("sarsa:alpha=0.5", "q-learning:alpha=0.5", "expected-sarsa:alpha=0.5"),
        ylim=(-100, 0),
    ),
    "7.2": Figure(
        agents=tuple(f"n-step-sarsa:n={2**i},alpha={alpha}" for i in range(10) for alpha in (0.0, 0.02, 0.05, *TENTHS)),
        model=lambda: random_walk(19, left_reward=-1),
        measure="error",
        episodes=10,
        windows=((1, 10),),
        runs=40,
        ylim=(0.25, 0.55),
    ),
    "8.2": Figure(  # the book: about 1700 steps in episode 1; by its rules that is a random walk, 869 on average
        agents=("dyna-q:planning=0", "dyna-q:planning=5", "dyna-q:planning=50"),
        model=maze,
        measure="steps",
        episodes=50,
        windows=((1, 1), (2, 2), (5, 5), (25, 25)),
        runs=30,
        gamma=0.95,
    ),
    "11.2": Figure(  # the book shows the weights, which grow like the error, here of v(s)
        agents=("semi-gradient-td", "semi-gradient-td:copy_every=500"),
        model=baird,
        measure="error",
        episodes=1_000,
        windows=((1, 1), (500, 500), (1_000, 1_000)),
        gamma=0.99,
    ),
    # The last agent is that of figure 13.2, with half of its step size. With 2^-9, as with 2^-12 and no baseline, a few
    # runs in 100 come to a policy that never reaches the end. Hence the limit.
    "13.1": Figure(
        agents=(
            *(f"reinforce:alpha={2.0**-i}" for i in (12, 13, 14)),
            f"reinforce:alpha={2.0**-10},baseline={2.0**-6}",
        ),
        model=corridor,
        episodes=1_000,
        windows=((1, 100), (901, 1_000)),
        limit=1_000,
    ),
}


def train(args):
    """Compare the agents and write the results. Raises InputError.

    Returns {agent: (curve, columns of the table)} and the folder. A curve is its mean and standard error over runs,
    [T] each, and columns is {name: (mean, standard error)}.
    """
    args = settings(args)
    folder = results_folder(args)
    world = make_world(args)
    names = args.agents or CONTROL[0 if world.model else len(PLANNERS) :]
    for text in names:
        make_agent(text, world, args)
    try:  # before the long part
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "args.json").write_text(json.dumps(asdict(args), indent=2))
    except OSError as error:
        raise InputError(f"--run-dir {folder}: {error}") from error

    seeds = np.random.SeedSequence(args.seed).generate_state(args.runs).tolist()
    runs = play_all([(args, world, text, seed) for text in names for seed in seeds], args.processes)
    results = {text: summarize(islice(runs, args.runs)) for text in names}
    if world.model and not args.figure:
        _, best = policy_iteration(world.model.P, args.gamma)  # optimal without a time limit, discounted
        optimum = expected_return(world.model, best, world.limit)
        for _, columns in results.values():
            columns["optimum"] = optimum, 0.0
    save(folder, args, results)
    return results, folder


def play_all(jobs, processes):
    """What play returns for each job, in their order. A Ctrl-C ends the processes, too."""
    with ProcessPoolExecutor(processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)) as pool:
        chunksize = 1 + len(jobs) // (20 * processes)
        runs = map(play, jobs) if processes == 1 else pool.map(play, jobs, chunksize=chunksize)
        yield from tqdm(runs, total=len(jobs), unit="run", leave=False, disable=None)


def play(job):
    """One run of an agent: the points of its curve, [T], and its numbers for the table, {column: number}."""
    args, world, text, seed = job
    world.begin(seed, math.inf if args.figure else args.steps)
    agent = make_agent(text, world, args)
    points = []
    if args.figure:
        figure, model = FIGURES[args.figure], world.model
        v = model.policy and evaluate(model.P, model.policy, args.gamma)
        for estimate in islice(agent, figure.episodes):
            points.append(MEASURES[figure.measure](world, estimate, v))
        return points, {f"{first} to {last}": np.mean(points[first - 1 : last]) for first, last in figure.windows}

    while world.time < args.steps:
        q = next(agent)
        passed = 20 * world.time // args.steps - len(points)  # of the curve's 20 points, in this episode
        points += [np.mean(world.returns[-100:] or math.nan)] * passed
    if world.model:
        value = expected_return(world.model, greedy_policy(q), world.limit)
    else:
        world.steps = math.inf
        value = np.mean([world.ret for _ in islice(follow(world, q), 10)])
    return points, {"return": points[-1], "greedy": value}


def summarize(runs):
    """Of what play returned for each run of an agent: mean and standard error of the curve and of each column."""
    points, columns = zip(*runs)
    numbers = np.transpose([list(row.values()) for row in columns])  # [columns, N]
    table = zip(columns[0], zip(*mean_and_error(numbers)))
    return mean_and_error(np.transpose(points)), dict(table)


def mean_and_error(x):
    """Mean over runs and its standard error (nan for a single run): [..., N] -> [...] each."""
    mean, runs = x.mean(-1), x.shape[-1]
    if runs == 1:
        return mean, np.full_like(mean, np.nan)
    return mean, x.std(-1, ddof=1) / runs**0.5


class InputError(ValueError):
    """Invalid flag, parameter or action. The message names it and what is accepted."""


def check(name, number, low, high=math.inf):
    """Raises InputError if number is nan or not between low and high."""
    if not low <= number <= high:
        accepted = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise InputError(f"{name} {number}: must be {accepted}")


def settings(args):
    """Args with the settings of --figure and the default of --runs. Raises InputError if a flag is invalid."""
    figure = FIGURES.get(args.figure)
    for name in "agents", "env_id", "env_kwargs", "bins", "low", "high", "steps", "gamma", "initial":
        if figure and getattr(args, name) != getattr(Args, name):
            raise InputError(f"--figure {args.figure}: cannot be combined with --{name.replace('_', '-')}")
    if args.runs is None:
        args = replace(args, runs=figure.runs if figure else 20)
    check("--runs", args.runs, 1, 10**6)
    check("--steps", args.steps, 20)
    check("--gamma", args.gamma, 0, 1)
    check("--initial", args.initial, -(10**6), 10**6)
    check("--seed", args.seed, 0)
    check("--processes", args.processes, 1)
    return replace(args, agents=figure.agents, gamma=figure.gamma) if figure else args


def results_folder(args):
    """Path of the folder for the results. Raises InputError if it is a file or already holds results."""
    folder = Path(args.run_dir or f"runs/{Path(__file__).stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}")
    if (folder / "table.csv").exists():
        raise InputError(f"--run-dir {folder}: already holds results; choose another folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run-dir {folder}: is a file; choose a folder")
    return folder


def make_agent(text, world, args):
    """Agent from its name and parameters, such as "n-step-sarsa:n=2,alpha=0.4". Raises InputError."""
    name, _, rest = text.partition(":")
    if text in PLANNERS:
        if world.model is None:
            raise InputError(f"--agents {text}: needs an environment with a model P that its steps follow")
        P = world.model.P
        v = value_iteration(P, args.gamma) if name == "value-iteration" else policy_iteration(P, args.gamma)[0]
        return follow(world, q_values(P, v, args.gamma))
    if name not in AGENTS or (AGENTS[name] in LESSONS and not args.figure):
        raise InputError(f"--agents {text}: unknown agent; use {', '.join(CONTROL)}")
    parameters = [*inspect.signature(AGENTS[name]).parameters.values()][2:]
    defaults = {parameter.name: parameter.default for parameter in parameters}
    try:
        given = dict(pair.split("=") for pair in rest.split(",") if rest)
        given = {key: parse(value, defaults[key]) for key, value in given.items()}
    except (ValueError, KeyError, OverflowError) as error:
        known = ", ".join(f"{key}={json.dumps(value)}" for key, value in defaults.items())
        raise InputError(f"--agents {text}: invalid parameter; {name} takes {known}") from error
    for key, value in given.items():
        high = 10**6 if isinstance(defaults[key], int) else 1
        check(f"--agents {text}: {key}", value or 0, int(key == "n"), high)
    return AGENTS[name](world, args.gamma, **given)


def parse(text, default):
    """Value of a parameter, given as JSON text. Raises ValueError if it is not finite or not of the default's type.

    A parameter whose default is null can be null or a number.
    """
    value = json.loads(text)
    if value is None and default is None:
        return None
    types = [type(default)] if isinstance(default, int) else [int, float]  # a bool only takes a bool, an int an int
    if type(value) not in types or not math.isfinite(value):
        raise ValueError
    return value


def save(folder, args, results):
    """Write curves.csv, figure.png and table.csv, in which x is the episode of a figure, otherwise the step."""
    x = np.linspace(args.steps / 20, args.steps, 20)
    if args.figure:
        x = np.arange(FIGURES[args.figure].episodes) + 1
    curves, table = [], []
    for text, (curve, columns) in results.items():
        heading = ["agent", *(column for name in columns for column in (name, f"{name}_error"))]
        curves += [(text, *point) for point in zip(x, *curve)]
        table.append([text, *np.ravel([*columns.values()])])
    write(folder / "curves.csv", ["agent", "x", "mean", "error"], curves)
    plot(folder / "figure.png", args, results, x)
    write(folder / "table.csv", heading, table)  # written last: it marks a finished run


def write(path, heading, rows):
    """Write a CSV file."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        writer.writerows(rows)


def plot(path, args, results, x):
    """Write the figure: curves or, in 6.3 and 7.2, the columns of the table against alpha."""
    import matplotlib.figure

    lines, x_label = defaultdict(list), "episode" if args.figure else "step"  # label: [(x, mean, error), ...]
    for text, (curve, _) in results.items():
        lines[text] += zip(x, *curve)
    if args.figure in ("6.3", "7.2"):
        lines, x_label = defaultdict(list), "alpha"
        for text, (_, columns) in results.items():
            label, alpha = text.split("alpha=")
            for name, numbers in columns.items():
                lines[f"{label} {name}"].append((float(alpha), *numbers))

    picture = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = picture.subplots()
    for label, points in lines.items():
        x, mean, error = np.transpose(points)
        axes.plot(x, mean, label=label, linewidth=1)
        axes.fill_between(x, mean - error, mean + error, alpha=0.3)
    axes.set(xlabel=x_label, ylabel="return", title=args.env_id)
    if args.figure:
        figure = FIGURES[args.figure]
        axes.set(ylabel=figure.measure, ylim=figure.ylim, title=f"Sutton and Barto, {args.figure}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)
    picture.savefig(path, dpi=150)


def print_table(results):
    """One line per agent: mean and standard error of each column."""
    width, (_, first) = max(map(len, results)), next(iter(results.values()))
    print(" " * width, *(name.rjust(20) for name in first))
    for text, (_, columns) in results.items():
        cells = (f"{mean:.3f} +- {error:.3f}" for mean, error in columns.values())
        print(f"{text:{width}}", *(cell.rjust(20) for cell in cells))


def main():
    """The command line. Exit status 2 for invalid input, 1 for a full disk, 130 for Ctrl-C."""
    try:
        table, folder = train(tyro.cli(Args, description=__doc__))
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    print_table(table)
    print(f"results: {folder}")


if __name__ == "__main__":
    main()
