"""Tabular reinforcement learning: dynamic programming, Monte Carlo and temporal-difference learning.

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", second edition, chapters 3 to 8 and section 12.7.
Read it after bandit.py. dqn.py is q-learning with a network in place of the table.

In state s an agent takes action a, receives reward r and comes to state s'. The return is the sum of the rewards to
come, each discounted by gamma per step. v(s) is the expected return from s, and q(s, a) the expected return after a.

- value-iteration and policy-iteration know the probabilities p(s', r | s, a) and compute the optimal q. They
  need an environment that tells them, such as FrozenLake, CliffWalking or Taxi.
- monte-carlo, sarsa, expected-sarsa, q-learning, double-q-learning, n-step-sarsa, sarsa-lambda and dyna-q learn q from
  experience. Their targets for Q(s, a) differ. The fields of their classes are the parameters that --agents takes.
- Prediction, the evaluation of a given policy, is control with one action per state: model.under(policy) is such a
  process. Then sarsa is TD(0), n-step-sarsa is n-step TD, and value iteration is iterative policy evaluation.

Questions that a learner asks:

- Does Bellman's equation hold for any policy? There are two equations. v(s) = E[r + gamma v(s')], with a from pi, holds
  for any policy pi (Eq. 3.14). v(s) = max_a E[r + gamma v(s')] holds only for optimal policies (Eq. 3.19).
- Bootstrapping or sampling? A method bootstraps if its target contains an estimate, that of the next state. It samples
  if it uses one next state that occurred, instead of an expectation over all, for which it would need a model. Dynamic
  programming bootstraps. Monte Carlo samples: it has the variance of a whole episode, but no bias from wrong estimates.
  Temporal-difference learning does both. The parameters n and lambda choose how much it bootstraps.
- On-policy or off-policy? On-policy methods learn the values of the policy that acts, including its exploration: all
  learners but three. q-learning, double-q-learning and dyna-q explore too, but learn the values of the greedy policy.
  At the cliff (--figure 6.6) the greedy policy walks along the edge, and the agent falls when it explores.
- Why is there no target network? In a table, an update of Q(s, a) changes no other entry, so a target does not move
  with the estimate, and q-learning converges. In a network, an update changes all values, also those in its targets.
- Why is truncation not termination? No reward follows a terminal state, so its value is 0. A time limit is not part of
  the state. The task could go on from s', so the target needs the estimated value of s'. With 0 in its place, a state
  that is often reached late would seem worse than it is.

An agent plays all its runs at once, in arrays. Shapes: N runs, n of them; S states; A actions; K outcomes of an action.
"""
# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "gymnasium>=1.3", "matplotlib>=3.8", "numpy>=1.26", "tqdm>=4.66", "tyro>=0.9.1", "wandb>=0.20",
# ]
# ///

import csv
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import tyro
from gymnasium import spaces
from tqdm import tqdm


@dataclass
class Args:
    figure: Literal["6.2", "6.3", "6.5", "6.6", "7.2", "8.2"] | None = None  # of the book; 6.6 is Example 6.6
    agents: tuple[str, ...] = ()  # to compare; each is name or name:parameter=value,parameter=value; default all
    env_id: str = "FrozenLake-v1"  # Gymnasium environment
    env_kwargs: str = "{}"  # its keyword arguments as JSON, for example '{"is_slippery": false}'
    bins: tuple[int, ...] = ()  # for Box observations: number of intervals per dimension
    low: tuple[float, ...] = ()  # lower end of the first interval, per dimension
    high: tuple[float, ...] = ()  # upper end of the last interval, per dimension
    model: bool = True  # plan and simulate with the environment's probabilities P, if it has them
    runs: int | None = None  # N, runs per agent; default 20, with --figure the figure's own
    steps: int = 15_000  # environment steps per run
    max_episode_steps: int | None = None  # time limit; default the environment's own, or 1000 if it has none
    gamma: float = 0.99  # discount factor
    seed: int = 1  # same seed, same results
    run_dir: str = ""  # folder for the results; default runs/tabular__<seed>__<time>
    track: bool = False  # also log to Weights & Biases, to $WANDB_ENTITY/$WANDB_PROJECT


@dataclass
class Model:
    """p(s', r | s, a) of a Markov decision process. State s has the actions 0 to num_actions[s] - 1."""

    prob: np.ndarray  # of each outcome, [S, A, K]; 0 for outcomes and actions that do not exist
    next_state: np.ndarray  # [S, A, K]
    reward: np.ndarray  # [S, A, K]
    terminated: np.ndarray  # [S, A, K]
    start: np.ndarray  # distribution of the first state, [S]
    num_actions: np.ndarray  # [S]
    shape: tuple[int, int] | None = None  # rows and columns, if the states are the cells of a grid
    reward_std: np.ndarray | None = None  # of normal noise on the rewards, [S]
    visited: np.ndarray | None = None  # states in which an agent may have to act, [S]

    def __post_init__(self):
        S, A, _ = self.prob.shape
        self.legal = np.arange(A) < self.num_actions[:, None]  # [S, A]
        # P has outcomes for terminal states too; in CliffWalking and Taxi the episode seems to go on there. So a
        # terminated outcome leads nowhere.
        self.onward = self.prob * ~self.terminated  # [S, A, K]
        # P may list a next state twice, in FrozenLake at the edge. A sum over outcomes counts both.
        self.mean_reward = (self.prob * self.reward).sum(-1)  # r(s, a) (Eq. 3.5), [S, A]
        # P may have states that no episode visits, in CliffWalking the cliff. Their values do not matter.
        if self.visited is None:
            state, action, outcome = np.nonzero(self.onward)
            edges = np.zeros((S, S), bool)
            edges[state, self.next_state[state, action, outcome]] = True
            self.visited = reachable(edges, self.start > 0)

    def under(self, policy):
        """The process that results from a policy [S, A]: the same states, one action, A * K outcomes."""
        one_action = (len(self.start), 1, -1)
        return replace(
            self,
            prob=(policy[..., None] * self.prob).reshape(one_action),
            next_state=self.next_state.reshape(one_action),
            reward=self.reward.reshape(one_action),
            terminated=self.terminated.reshape(one_action),
            num_actions=np.ones_like(self.num_actions),
        )


def make_model(P, start, shape=None):
    """Model from P[s][a] = [(probability, next state, reward, terminated), ...], as in Gymnasium. Raises InputError."""
    num_actions = np.array([len(P[s]) for s in range(len(P))])
    num_outcomes = max(len(P[s][a]) for s in P for a in P[s])
    table = np.zeros((4, len(P), num_actions.max(), num_outcomes))
    for s in P:
        for a in P[s]:
            outcomes = P[s][a]
            table[:, s, a, : len(outcomes)] = np.transpose(outcomes)
    prob, next_state, reward, terminated = table
    next_state, terminated = next_state.astype(int), terminated.astype(bool)
    model = Model(prob, next_state, reward, terminated, np.array(start, float), num_actions, shape)
    if not np.allclose(prob.sum(-1)[model.legal], 1):
        raise InputError("P: the probabilities of an action's outcomes must sum to 1")
    return model


def reachable(edges, states):
    """States that can be reached from the given ones, themselves included; edges [S, S], states [S] -> [S]."""
    while True:
        more = states | states @ edges
        if (more == states).all():
            return states
        states = more


def q_values(model, v, gamma):
    """q(s, a) = E[r + gamma v(s')], the expectation in Bellman's equations, [S] -> [S, A] (Eq. 4.6)."""
    q = model.mean_reward + gamma * (model.onward * v[model.next_state]).sum(-1)
    return np.where(model.legal, q, -np.inf)


def evaluate(model, policy, gamma):
    """v of a policy [S, A], the solution of the linear system v = r + gamma T v (Eq. 3.14), [S]. Raises InputError."""
    process = model.under(policy)
    S = len(process.start)
    T = np.zeros((S, S))  # probability of each next state that is not terminal
    for state in range(S):
        np.add.at(T[state], process.next_state[state, 0], process.onward[state, 0])
    if gamma == 1:  # the return is finite only if each episode ends
        can_end = reachable((T > 0).T, T.sum(1) < 1 - 1e-9)
        may_not_end = reachable((T > 0).T, ~can_end)
        if (may_not_end & process.visited).any():
            raise InputError("--gamma 1: some policy never ends its episode (it is improper); choose a smaller gamma")
        T[may_not_end] = 0
    return np.linalg.solve(np.eye(S) - gamma * T, process.mean_reward[:, 0])


def value_iteration(model, gamma, tolerance=1e-10):
    """Optimal v [S] (Eq. 4.10). Of model.under(policy), the policy's v: iterative policy evaluation (Eq. 4.5)."""
    v = np.zeros(len(model.start))
    for _ in range(100_000):
        old, v = v, q_values(model, v, gamma).max(-1)
        if np.abs(v - old)[model.visited].max() < tolerance:
            return v
    raise InputError(f"--gamma {gamma}: value iteration does not converge; choose a smaller gamma")


def policy_iteration(model, gamma):
    """Optimal v [S] and policy [S, A], by evaluation and improvement in turn (section 4.3). Raises InputError."""
    policy = model.legal / model.num_actions[:, None]
    while True:
        v = evaluate(model, policy, gamma)
        q = q_values(model, v, gamma)
        improved = q.max(-1) > v + 1e-9  # keep the old action in a tie, otherwise the loop might not end
        if not improved[model.visited].any():
            return v, policy
        policy = np.where(improved[:, None], greedy_policy(q), policy)  # Eq. 4.9


def greedy_policy(q):
    """The first of the best actions with probability 1, [..., A] -> [..., A]."""
    return np.eye(q.shape[-1])[q.argmax(-1)]


def compare(v, w, tolerance=1e-9):
    """How the policy with values v [S] compares to the one with values w [S] (section 3.6).

    ">" is better: higher in some state, lower in none. "<" is worse, "=" equivalent, and "." neither of these, because
    the order is partial. States with nan do not count.
    """
    higher, lower = np.any(v > w + tolerance), np.any(w > v + tolerance)
    if higher and lower:
        return "."
    return ">" if higher else "<" if lower else "="


def expected_return(model, actions, limit):
    """Expected undiscounted return of deterministic policies [N, S] under a time limit, which P does not show, [N]."""
    state = np.arange(len(model.start))
    policy = np.arange(len(actions))[:, None, None]
    next_state, onward = model.next_state[state, actions], model.onward[state, actions]  # [N, S, K]
    reward = model.mean_reward[state, actions]
    v = np.zeros(actions.shape)
    for _ in range(limit):
        old, v = v, reward + (onward * v[policy, next_state]).sum(-1)
        if np.array_equal(v, old):
            break
    return v @ model.start


def best_return(model, limit):
    """The highest expected undiscounted return under a time limit, of all policies, also those that use the time."""
    v = np.zeros(len(model.start))
    for _ in range(limit):
        v = q_values(model, v, gamma=1).max(-1)
    return v @ model.start


class Step(NamedTuple):
    """One step of n of the runs, [n] each."""

    run: np.ndarray  # which runs
    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_state: np.ndarray
    terminated: np.ndarray  # the next state is terminal
    ended: np.ndarray  # terminated, or truncated by a time limit


def highest(q):
    """max_a Q(s, a), [n, A] -> [n]. For many states with few actions it is faster than q.max(-1)."""
    return q[np.arange(len(q)), q.argmax(-1)]


@dataclass
class Agent:
    """Base class: Q(s, a) for each run, and greedy actions. Does not learn.

    The fields that a subclass adds are the agent's parameters. Raises InputError if one is outside its limits.
    """

    world: Any  # Simulator or Environments
    gamma: float
    limits: ClassVar = {}  # parameter: (lowest, highest)

    def __post_init__(self):
        for name, (low, high) in self.limits.items():
            if getattr(self, name) is not None:
                check(name, getattr(self, name), low, high)

    def reset(self, seed=None):
        """Forget everything learned."""
        self.rng = np.random.default_rng(seed)
        self.progress = 1.0  # fraction of the run that is over, set by play
        legal = np.broadcast_to(self.world.legal, (self.world.num_runs, *self.world.legal.shape))
        self.q = np.where(legal, 0.0, -np.inf)  # [N, S, A]

    def start(self, run, state):
        """Begin an episode in these runs, [n], from these states, [n]."""

    def act(self, run, state):
        """Actions, [n]."""
        return self.greedy(run, state)

    def learn(self, step):
        """Learn from a Step."""

    def table(self):
        """Q(s, a), [N, S, A]."""
        return self.q

    def pair(self, run, state, action):
        """Position of Q(s, a) in the table as a single row, [n]. One index is several times faster than three."""
        S, A = self.world.legal.shape
        return (run * S + state) * A + action

    def values(self, run, state):
        """Q(s, .) of these states, [n, A]."""
        S, A = self.world.legal.shape
        return self.q.reshape(-1, A).take(run * S + state, 0)

    def greedy(self, run, state):
        """The actions with the highest Q, [n]. Ties are broken at random."""
        q = self.values(run, state)
        ties = q == highest(q)[:, None]
        return self.choose(ties)

    def choose(self, allowed):
        """One of the allowed actions at random, [n, A] -> [n]."""
        u = self.rng.random(allowed.shape, np.float32)
        return np.where(allowed, u, np.inf).argmin(-1)


@dataclass
class ValueIteration(Agent):
    """Greedy with respect to the exact q, from value iteration. It knows the model."""

    def __post_init__(self):
        if self.world.model is None:
            raise InputError("needs an environment with a model P, and not --no-model")

    def plan(self):
        return value_iteration(self.world.model, self.gamma)

    def reset(self, seed=None):
        super().reset(seed)
        self.q[:] = q_values(self.world.model, self.plan(), self.gamma)


@dataclass
class PolicyIteration(ValueIteration):
    """The same, from policy iteration."""

    def plan(self):
        return policy_iteration(self.world.model, self.gamma)[0]


@dataclass
class Learner(Agent):
    """Base class: acts epsilon-greedily, and moves Q towards a target by a step size alpha.

    A subclass defines next_value(step), what its target takes for the value of the next state, [n].
    epsilon falls linearly from 1 over the first fraction `explore` of the steps. The book's figures have it constant.
    """

    alpha: float | None = None  # step size; null: n^-power at the n-th update of Q(s, a)
    power: float = 0.5  # convergence with probability 1 needs more than 0.5, but is slower
    epsilon: float = 0.1
    explore: float = 0.5
    initial: float = 0.0  # Q(s, a) at first
    limits: ClassVar = dict.fromkeys(("alpha", "power", "epsilon", "explore"), (0, 1))

    def reset(self, seed=None):
        super().reset(seed)
        self.q += self.initial
        self.updates = np.zeros_like(self.q)
        self.step_size = np.ones_like(self.q)
        if self.alpha is not None:
            self.step_size[:] = np.reshape(self.alpha, (-1, 1, 1))  # one number, or one per run

    def current_epsilon(self):
        if self.progress >= self.explore:
            return self.epsilon
        return 1 - (1 - self.epsilon) * self.progress / self.explore

    def act(self, run, state):
        if self.world.legal.shape[1] == 1:
            return np.zeros(len(run), int)  # prediction
        random_action = (self.rng.random(len(run)) * self.world.num_actions[state]).astype(int)
        explore = self.rng.random(len(run)) < self.current_epsilon()
        return np.where(explore, random_action, self.greedy(run, state))

    def learn(self, step):
        next_value = self.next_value(step) * ~step.terminated  # a terminal state has value 0, a truncated one has not
        target = step.reward + self.gamma * next_value
        self.update(self.pair(step.run, step.state, step.action), target)

    def update(self, pair, target):
        """Move Q towards the target, [n], at these positions, [n]."""
        self.count(pair)
        q, step_size = self.q.ravel(), self.step_size.ravel()  # views, not copies
        q[pair] += step_size[pair] * (target - q[pair])

    def count(self, pair):
        """Count an update, for the step size."""
        if self.alpha is None:
            updates, step_size = self.updates.ravel(), self.step_size.ravel()
            updates[pair] += 1
            step_size[pair] = updates[pair] ** -self.power


@dataclass
class Sarsa(Learner):
    """Sarsa (Eq. 6.7): the target has the action that is taken next."""

    def reset(self, seed=None):
        super().reset(seed)
        self.next_action = np.zeros(len(self.q), int)

    def start(self, run, state):
        self.next_action[run] = super().act(run, state)

    def act(self, run, state):
        return self.next_action[run]

    def next_value(self, step):
        action = super().act(step.run, step.next_state)
        self.next_action[step.run] = action
        return self.q.take(self.pair(step.run, step.next_state, action))


@dataclass
class ExpectedSarsa(Learner):
    """Expected Sarsa (Eq. 6.9): the target has the expectation over the actions that may be taken next."""

    def next_value(self, step):
        q = self.values(step.run, step.next_state)
        legal = self.world.legal.take(step.next_state, 0)
        mean = np.where(legal, q, 0).sum(-1) / self.world.num_actions[step.next_state]
        epsilon = self.current_epsilon()
        return epsilon * mean + (1 - epsilon) * highest(q)


@dataclass
class QLearning(Learner):
    """Q-learning (Eq. 6.8): the target has the best next action, whatever is taken."""

    def next_value(self, step):
        return highest(self.values(step.run, step.next_state))


@dataclass
class DoubleQLearning(Learner):
    """Double Q-learning (Eq. 6.10): one table chooses the best next action, another one gives its value."""

    def reset(self, seed=None):
        super().reset(seed)
        self.q = np.stack([self.q, self.q])  # [2, N, S, A]
        self.updates = np.stack([self.updates, self.updates])
        self.step_size = np.stack([self.step_size, self.step_size])

    def table(self):
        return self.q.mean(0)

    def values(self, run, state):
        return self.q[:, run, state].mean(0)

    def learn(self, step):
        table = self.rng.integers(2, size=len(step.run))  # the one to update
        best = self.q[table, step.run, step.next_state].argmax(-1)
        next_value = self.q[1 - table, step.run, step.next_state, best] * ~step.terminated
        pair = self.pair(step.run + table * self.world.num_runs, step.state, step.action)  # table 1 follows table 0
        self.update(pair, step.reward + self.gamma * next_value)


@dataclass
class SarsaLambda(Sarsa):
    """Sarsa(lambda) (section 12.7): the error of each step also corrects the steps before it (Eq. 12.5, 12.6).

    Their share of the error, the trace, decays by gamma lambda per step.
    """

    lam: float = 0.9  # lambda
    replacing: bool = True  # a visit sets the trace to 1; otherwise it adds 1
    limits: ClassVar = {"lam": (0, 1), **Learner.limits}

    def reset(self, seed=None):
        super().reset(seed)
        self.trace = np.zeros_like(self.q)

    def start(self, run, state):
        super().start(run, state)
        self.trace[run] = 0

    def learn(self, step):
        run, pair = step.run, self.pair(step.run, step.state, step.action)
        next_value = self.next_value(step) * ~step.terminated
        error = step.reward + self.gamma * next_value - self.q.take(pair)
        self.count(pair)
        self.trace[run] *= self.gamma * self.lam
        trace = self.trace.ravel()
        trace[pair] = 1 if self.replacing else trace[pair] + 1
        self.q[run] += self.step_size[run] * error[:, None, None] * self.trace[run]


@dataclass
class NStepSarsa(Sarsa):
    """n-step Sarsa (Eq. 7.4, 7.5): the target has n rewards, then the value of the state and action reached."""

    n: int = 4
    limits: ClassVar = {"n": (1, 2**60), **Learner.limits}

    def reset(self, seed=None):
        super().reset(seed)
        self.t = 0  # a clock for all runs
        self.begin = np.zeros(len(self.q), int)  # its time at the start of each run's episode
        self.rewards = np.zeros((0, len(self.q)))  # at each time, [t, N]
        self.pairs = self.rewards.astype(int)  # positions of the pairs (s, a) at each time, [t, N]

    def start(self, run, state):
        super().start(run, state)
        self.begin[run] = self.t

    def learn(self, step):
        run, length = step.run, self.t - self.begin[step.run] + 1
        if self.t == len(self.rewards):
            self.make_room(min(self.n, length.max() - 1))
        self.pairs[self.t][run] = self.pair(run, step.state, step.action)
        self.rewards[self.t][run] = step.reward
        self.t += 1
        next_value = self.next_value(step) * ~step.terminated
        full = (length >= self.n) & ~step.ended
        if full.any():
            self.update_oldest(run[full], next_value[full])
        if step.ended.any():
            self.update_rest(run[step.ended], next_value[step.ended])

    def make_room(self, keep):
        """Add rows, forget the steps before the last `keep` ones, and set the clock back to the number of these."""
        old = slice(self.t - keep, self.t)
        empty = np.zeros((keep + 100, len(self.q)))
        self.pairs = np.concatenate([self.pairs[old], empty.astype(int)])
        self.rewards = np.concatenate([self.rewards[old], empty])
        self.begin -= self.t - keep
        self.t = keep

    def update_oldest(self, run, next_value):
        """Update the estimate of n steps ago."""
        first = self.t - self.n
        discount = self.gamma ** np.arange(self.n)
        ret = discount @ self.rewards[first : self.t, run]
        self.update(self.pairs[first][run], ret + self.gamma**self.n * next_value)

    def update_rest(self, run, next_value):
        """At the end of an episode, update the estimates of its last n steps, in their order."""
        first = max(self.t - self.n, self.begin[run].min())
        ret = self.rewards[first : self.t, run]  # [steps, n]
        ret[-1] += self.gamma * next_value
        for k in reversed(range(len(ret) - 1)):
            ret[k] += self.gamma * ret[k + 1]

        in_episode = np.arange(first, self.t)[:, None] >= self.begin[run]
        pair, ret = self.pairs[first : self.t, run][in_episode], ret[in_episode]
        for visit in self.visits(pair):
            self.update(pair[visit], ret[visit])

    def visits(self, pair):
        """Positions of the first visits to each pair, then those of the second ones, and so on.

        Updates of different pairs do not depend on each other, so this order gives the same result as one by one.
        """
        order = np.argsort(pair, kind="stable")
        first = np.searchsorted(pair[order], pair[order])  # where the visits to the same pair begin
        number = np.arange(len(pair)) - first
        ends = np.bincount(number).cumsum()
        return np.split(order[np.argsort(number, kind="stable")], ends[:-1])


@dataclass
class MonteCarlo(NStepSarsa):
    """Monte Carlo control (section 5.4): the target is the return of the rest of the episode.

    It is n-step Sarsa with n larger than any episode. Only a truncated episode ends with an estimate.
    """

    n: ClassVar = 2**60
    first_visit: bool = True  # update only the first visit to a pair (s, a) in an episode; otherwise every visit

    def visits(self, pair):
        visits = super().visits(pair)
        return visits[:1] if self.first_visit else visits


@dataclass
class DynaQ(QLearning):
    """Dyna-Q (section 8.2): also learns from steps that its own model imagines.

    The model is the last outcome of each pair (s, a). Where outcomes are random, that is wrong, and planning may harm.
    """

    planning: int = 5  # imagined steps per real step
    limits: ClassVar = {"planning": (0, math.inf), **Learner.limits}

    def reset(self, seed=None):
        super().reset(seed)
        self.outcome = np.zeros((*self.q.shape, 3))  # reward, next state, terminated
        self.tried = np.zeros(self.q.shape, bool)

    def learn(self, step):
        super().learn(step)
        pair = step.run, step.state, step.action
        self.outcome[pair] = np.stack([step.reward, step.next_state, step.terminated], -1)
        self.tried[pair] = True
        tried = self.tried[step.run]  # [n, S, A]
        seen = tried.any(-1)
        for _ in range(self.planning):
            super().learn(self.imagine(step.run, seen, tried))

    def imagine(self, run, seen, tried):
        """A Step from a random state seen before [n, S], with a random action tried there [n, S, A]."""
        state = self.choose(seen)
        action = self.choose(tried[np.arange(len(run)), state])
        reward, next_state, terminated = self.outcome[run, state, action].T
        terminated = terminated.astype(bool)
        return Step(run, state, action, reward, next_state.astype(int), terminated, terminated)


@dataclass
class BatchTD(Learner):
    """Batch TD(0), for prediction: after each episode, what TD(0) converges to on all steps so far (section 6.3).

    That is v of the maximum-likelihood model, the certainty-equivalence estimate, so a linear system gives it.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.world.legal.shape[1] > 1:
            raise InputError("is for prediction, where states have one action")

    def reset(self, seed=None):
        super().reset(seed)
        N, S, _ = self.q.shape
        self.visits, self.reward = np.zeros((2, N, S))
        self.onward = np.zeros((N, S, S))  # counts of steps that did not terminate

    def learn(self, step):
        self.visits[step.run, step.state] += 1
        self.reward[step.run, step.state] += step.reward
        self.onward[step.run, step.state, step.next_state] += ~step.terminated
        run = step.run[step.ended]
        visits = np.maximum(self.visits[run], 1)
        T = self.onward[run] / visits[:, :, None]
        r = np.where(self.visits[run], self.reward[run] / visits, self.initial)
        left_side = np.eye(T.shape[1]) - self.gamma * T
        self.q[run] = np.linalg.solve(left_side, r[:, :, None])


AGENTS = {
    "value-iteration": ValueIteration,
    "policy-iteration": PolicyIteration,
    "monte-carlo": MonteCarlo,
    "sarsa": Sarsa,
    "expected-sarsa": ExpectedSarsa,
    "q-learning": QLearning,
    "double-q-learning": DoubleQLearning,
    "n-step-sarsa": NStepSarsa,
    "sarsa-lambda": SarsaLambda,
    "dyna-q": DynaQ,
    "td": Sarsa,
    "batch-td": BatchTD,
}
PLANNERS = ("value-iteration", "policy-iteration")  # need a model
LEARNERS = tuple(name for name in AGENTS if name not in (*PLANNERS, "td", "batch-td"))  # of control


class Episodes(NamedTuple):
    """Finished episodes in the order of their ends, [M] each."""

    run: np.ndarray
    number: np.ndarray  # 0 for the first episode of a run
    end: np.ndarray  # steps of the run until its end
    ret: np.ndarray  # undiscounted return
    length: np.ndarray
    error: np.ndarray  # of the agent's values, after it


def play(agent, world, seed, steps=None, episodes=None, error=None, learn=True):
    """Let the agent play a number of steps, or of episodes, in each run. It is reset and learns, or else is greedy.

    Returns Episodes and, for a number of steps, the greedy actions at the ends of 20 equal parts, [20, N, S].
    error(agent, run) is the error of its values after an episode, [n].
    """
    world_seed, agent_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    world.reset(world_seed)
    if learn:
        agent.reset(agent_seed)
    act = agent.act if learn else agent.greedy
    run = np.arange(world.num_runs)  # those that still play, [n]
    state = world.start(run)
    agent.start(run, state)
    ret = np.zeros(len(run))
    number, begin = np.zeros((2, len(run)), int)  # of the current episode
    finished, policies = [Episodes(*np.zeros((6, 0), int))], []

    bar = {"desc": type(agent).__name__, "unit": "step", "leave": False, "disable": None}
    for t in tqdm(count(1), total=steps, **bar):
        agent.progress = t / steps if steps else 1.0
        action = act(run, state)
        next_state, reward, terminated, truncated = world.step(run, action)
        ended = terminated | truncated
        if learn:
            agent.learn(Step(run, state, action, reward, next_state, terminated, ended))
        ret += reward
        state = next_state.copy()
        if ended.any():
            done = run[ended]
            errors = error(agent, done) if error else np.zeros(len(done))
            end, length = np.full(len(done), t), t - begin[ended]
            finished.append(Episodes(done, number[ended], end, ret[ended], length, errors))
            ret[ended], begin[ended] = 0, t
            number[ended] += 1
            state[ended] = world.start(done)
            agent.start(done, state[ended])
            if episodes:
                playing = number < episodes
                run, state, ret = run[playing], state[playing], ret[playing]
                number, begin = number[playing], begin[playing]
        if steps and t * 20 >= steps * (len(policies) + 1):
            policies.append(agent.table().argmax(-1))
        if t == steps or len(run) == 0:
            break
    columns = zip(*finished)
    return Episodes(*map(np.concatenate, columns)), np.array(policies)


# From here on: worlds, the book's processes and figures, the experiment, and the command line.


class Simulator:
    """N copies of a model. Episodes are truncated after `limit` steps. The copies may share their random numbers."""

    def __init__(self, model, num_runs, limit=math.inf, copies=1):
        check("--runs times states times actions", num_runs * model.legal.size, 1, 10**8)
        self.model, self.num_runs, self.limit = model, num_runs, limit
        self.num_different = num_runs // copies
        self.source = np.arange(num_runs) % self.num_different  # of each run's random numbers
        self.legal, self.num_actions = model.legal, model.num_actions
        self.cdf, self.start_cdf = model.prob.cumsum(-1), model.start.cumsum()
        for cdf in self.cdf, self.start_cdf:
            cdf[cdf > 1 - 1e-9] = 1  # otherwise rounding may leave a gap below 1

    def reset(self, seed=None):
        self.rng = np.random.default_rng(seed)
        self.state, self.time = np.zeros((2, self.num_runs), int)

    def random(self, run):
        return self.rng.random(self.num_different)[self.source[run]]

    def start(self, run):
        """Begin an episode in these runs. Returns the first states, [n]."""
        self.time[run] = 0
        self.state[run] = np.searchsorted(self.start_cdf, self.random(run), "right")  # inverse CDF
        return self.state[run]

    def step(self, run, action):
        """Next state, reward, terminated, truncated, [n] each."""
        model, state = self.model, self.state[run]
        _, A, K = model.prob.shape
        pair = state * A + action
        cdf = self.cdf.reshape(-1, K).take(pair, 0)
        outcome = (cdf > self.random(run)[:, None]).argmax(-1)  # inverse CDF
        at = pair * K + outcome
        reward = model.reward.take(at)
        if model.reward_std is not None:
            reward += model.reward_std[state] * self.rng.standard_normal(len(run))
        next_state = self.state[run] = model.next_state.take(at)
        self.time[run] += 1
        return next_state, reward, model.terminated.take(at), self.time[run] >= self.limit


class Environments:
    """N Gymnasium environments whose observations and actions are numbered. They have no model."""

    model = None

    def __init__(self, envs, observations):
        self.envs, self.num_runs, self.observations = envs, len(envs), observations
        self.actions = Numbering(envs[0].action_space)
        self.legal = np.ones((self.observations.total, self.actions.total), bool)
        self.num_actions = self.legal.sum(-1)

    def reset(self, seed=None):
        seeds = np.random.SeedSequence(seed).generate_state(self.num_runs).tolist()
        for env, env_seed in zip(self.envs, seeds):
            env.reset(seed=env_seed)

    def start(self, run):
        return self.observations.numbers([self.envs[i].reset()[0] for i in run])

    def step(self, run, action):
        elements = map(self.actions.element, action)
        steps = [self.envs[i].step(element) for i, element in zip(run, elements)]
        obs, reward, terminated, truncated, _ = zip(*steps)
        next_state = self.observations.numbers(obs)
        return next_state, np.array(reward, float), np.array(terminated), np.array(truncated)


class Numbering:
    """Numbers the elements of a finite space, or the bins of a Box, from 0. Raises InputError for other spaces."""

    def __init__(self, space, bins=(), low=(), high=()):
        self.space = space
        if isinstance(space, spaces.Box) and bins:
            self.sizes, self.low = np.array(bins), np.array(low)
            self.width = (np.array(high) - low) / bins
        else:
            self.sizes, self.low = finite_parts(space)
            self.width = 1
        self.total = math.prod(self.sizes.tolist())

    def numbers(self, elements):
        """Numbers of n elements, [n]."""
        parts = [np.hstack(x) if isinstance(x, tuple) else np.ravel(x) for x in elements]
        parts = np.floor((np.array(parts) - self.low) / self.width)
        parts = parts.clip(0, self.sizes - 1).astype(int)  # outside of the bins: the first or the last one
        return np.ravel_multi_index(parts.T, self.sizes)

    def element(self, number):
        """The element of a Discrete or MultiDiscrete space with this number."""
        parts = self.low + np.unravel_index(number, self.sizes)
        return parts.reshape(self.space.shape)[()]


def finite_parts(space):
    """Sizes and lowest values of a space's integers, [D] each. Raises InputError."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n]), np.array([space.start])
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel(), space.start.ravel()
    if isinstance(space, spaces.Tuple):
        return tuple(map(np.concatenate, zip(*map(finite_parts, space))))
    raise InputError(f"--env-id: {space} is not finite; observations (not actions) of type Box need --bins")


def make_world(args):
    """N runs of the figure's model or of args.env_id, which is simulated if it has a model. Raises InputError."""
    if args.figure:
        copies = max(len(FIGURES[args.figure].alphas), 1)
        return Simulator(FIGURES[args.figure].model(), args.runs * copies, copies=copies)
    env = make_env(args)
    limit = args.max_episode_steps or env.spec.max_episode_steps or 1_000
    observations = Numbering(env.observation_space, *check_bins(args, env.observation_space))
    if args.model and hasattr(env.unwrapped, "P"):
        return Simulator(gymnasium_model(env), args.runs, limit)
    table_size = observations.total * Numbering(env.action_space).total
    check("--runs times states times actions", args.runs * table_size, 1, 10**8)
    return Environments([make_env(args, limit) for _ in range(args.runs)], observations)


def make_env(args, limit=None):
    try:
        return gym.make(args.env_id, max_episode_steps=limit, **json.loads(args.env_kwargs))
    except (gym.error.Error, ImportError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"--env-id {args.env_id} --env-kwargs {args.env_kwargs}: {error}") from error


def check_bins(args, space):
    """--bins, --low and --high. Raises InputError unless they fit the space."""
    flags = args.bins, args.low, args.high
    size = math.prod(space.shape) if isinstance(space, spaces.Box) else 0
    if any(len(flag) != size for flag in flags):
        raise InputError(f"--bins, --low, --high: need {size} numbers each for the observations, {space}")
    for bins, low, high in zip(*flags):
        check("--bins", bins, 1)
        if not -math.inf < low < high < math.inf:
            raise InputError(f"--low {low} --high {high}: must be finite, the first one lower")
    return flags


def gymnasium_model(env):
    """Model from env.unwrapped.P. Raises InputError if the environment does not act as P says, as a fickle Taxi."""
    raw = env.unwrapped
    shape = getattr(raw, "shape", (getattr(raw, "nrow", 0), getattr(raw, "ncol", 0)))
    is_grid = math.prod(shape) == len(raw.P)
    model = make_model(raw.P, raw.initial_state_distrib, shape if is_grid else None)
    rng, (state, _) = np.random.default_rng(0), env.reset(seed=0)
    for _ in range(10_000):
        action = rng.integers(model.num_actions[state])
        next_state, reward, terminated, truncated, _ = env.step(action)
        possible = [tuple(outcome) for p, *outcome in raw.P[state][action] if p > 0]
        if (next_state, reward, terminated) not in possible:
            raise InputError(f"--env-id {env.spec.id}: its steps do not follow its model P; --no-model ignores P")
        state = env.reset()[0] if terminated or truncated else next_state
    return model


def random_walk(num_states, left_reward):
    """From the center to the left or to the right, until an end is passed; reward 1 at the right end (Example 6.2)."""
    P = {}
    for s in range(num_states):
        left, right = (0.5, s - 1, 0, False), (0.5, s + 1, 0, False)
        P[s] = {0: [left, right]}
    P[0][0][0] = (0.5, 0, left_reward, True)
    P[num_states - 1][0][1] = (0.5, 0, 1, True)
    return make_model(P, start=np.eye(num_states)[num_states // 2])


def maximization_bias():
    """Example 6.7: from A, left (0) to B or right (1) to the end; from B, 10 actions to the end, with N(-0.1, 1)."""
    A, B = 0, 1
    left, right = (1, B, 0, False), (1, A, 0, True)
    P = {A: {0: [left], 1: [right]}, B: {}}
    for action in range(10):
        P[B][action] = [(1, B, -0.1, True)]
    return replace(make_model(P, start=[1, 0]), reward_std=np.array([0, 1]))


MAZE = """
.......#G
..#....#.
S.#....#.
..#......
.....#...
.........
"""


def maze():
    """Example 8.1: moves up, right, down, left; walls # and the edge block them; reward 1 at the goal G, the end."""
    cells = np.array([list(row) for row in MAZE.split()])
    last = np.subtract(cells.shape, 1)
    moves = (-1, 0), (0, 1), (1, 0), (0, -1)
    P = {}
    for s, cell in enumerate(np.ndindex(cells.shape)):
        P[s] = {}
        for a, move in enumerate(moves):
            to = tuple(np.clip(np.add(cell, move), 0, last))
            if cells[to] == "#":
                to = cell
            next_s = np.ravel_multi_index(to, cells.shape)
            is_goal = cells[to] == "G"
            P[s][a] = [(1, next_s, is_goal, is_goal)]
    return make_model(P, (cells == "S").ravel(), cells.shape)


def cliff():
    return gymnasium_model(gym.make("CliffWalking-v1"))


class Figure(NamedTuple):
    """An experiment of the book. All learners have a constant epsilon of 0.1."""

    title: str
    model: Callable[[], Model]
    agents: tuple[str, ...]
    measure: str  # of an episode: its return, its steps, left (100 if chosen), or the error of the values after it
    runs: int
    episodes: int
    windows: dict[str, slice]  # the episodes that the table averages
    ylim: tuple[float, float]
    gamma: float = 1.0
    alphas: tuple[float, ...] = ()  # each agent is run with all of them, and the x-axis is alpha


TENTHS = tuple(i / 10 for i in range(1, 11))
FIGURES = {
    "6.2": Figure(
        title="Figure 6.2 (batch-td; monte-carlo with power 1) and Example 6.2 (the others)",
        model=lambda: random_walk(5, left_reward=0),
        agents=(
            "batch-td:initial=0.5",
            "monte-carlo:initial=0.5,first_visit=false,power=1",  # the average of all returns
            *(f"td:initial=0.5,alpha={alpha}" for alpha in (0.05, 0.1, 0.15)),
            *(f"monte-carlo:initial=0.5,first_visit=false,alpha={alpha}" for alpha in (0.01, 0.02, 0.03, 0.04)),
        ),
        measure="error",
        runs=100,
        episodes=100,
        windows={"episode 100": slice(99, 100)},
        ylim=(0, 0.25),
    ),
    "6.3": Figure(
        title="Figure 6.3: cliff walking, episodes 1 to 100 and 401 to 500 (book: 1 to 100,000)",
        model=cliff,
        agents=("expected-sarsa", "sarsa", "q-learning"),
        measure="return",
        runs=50,
        episodes=500,
        windows={"interim": slice(0, 100), "asymptotic": slice(400, 500)},
        ylim=(-160, 0),
        alphas=TENTHS,
    ),
    "6.5": Figure(
        title="Figure 6.5: maximization bias",
        model=maximization_bias,
        agents=("q-learning:alpha=0.1", "double-q-learning:alpha=0.1"),
        measure="left",
        runs=10_000,
        episodes=300,
        windows={"episode 20": slice(19, 20), "251 to 300": slice(250, 300)},
        ylim=(0, 100),
    ),
    "6.6": Figure(
        title="Example 6.6: cliff walking",
        model=cliff,
        agents=("sarsa:alpha=0.5", "q-learning:alpha=0.5", "expected-sarsa:alpha=0.5"),
        measure="return",
        runs=1_000,
        episodes=500,
        windows={"1 to 100": slice(0, 100), "401 to 500": slice(400, 500)},
        ylim=(-100, 0),
    ),
    "7.2": Figure(
        title="Figure 7.2: n-step TD on a random walk of 19 states",
        model=lambda: random_walk(19, left_reward=-1),
        agents=tuple(f"n-step-sarsa:n={2**i}" for i in range(10)),
        measure="error",
        runs=100,
        episodes=10,
        windows={"error": slice(0, 10)},
        ylim=(0.25, 0.55),
        alphas=(0.0, 0.02, 0.05, *TENTHS),
    ),
    "8.2": Figure(  # the book: about 1700 steps in episode 1; by its rules that is a random walk, 869 on average
        title="Figure 8.2: Dyna-Q in the maze",
        model=maze,
        agents=("dyna-q:planning=0,alpha=0.1", "dyna-q:planning=5,alpha=0.1", "dyna-q:planning=50,alpha=0.1"),
        measure="steps",
        runs=30,
        episodes=50,
        windows={f"episode {k}": slice(k - 1, k) for k in (1, 2, 5, 25)},
        ylim=(14, 800),
        gamma=0.95,
    ),
}


class Result(NamedTuple):
    """What an agent achieved. Curves and columns are means over runs with their standard errors."""

    x_label: str
    x: np.ndarray  # [T]
    curves: dict  # name: (mean [T], error [T])
    columns: dict  # of the table, name: (mean, error)
    q: np.ndarray  # [N, S, A]
    v: np.ndarray | None = None  # exact values of the greedy policy of the first run, [S]


def train(args):
    """Compare the agents and write the results. Returns {agent: Result} and the folder. Raises InputError."""
    args = apply_figure(args)
    check_args(args)
    folder = results_folder(args)
    world = make_world(args)
    names = args.agents or (PLANNERS if world.model else ()) + LEARNERS
    agents = {text: make_agent(text, world=world, gamma=args.gamma) for text in names}

    results = {}
    experiment = run_figure if args.figure else run_steps
    for text, agent in agents.items():
        results[text] = experiment(args, agent, world)
    save(folder, args, world, results)
    if args.track:
        log_to_wandb(folder, args, results)
    return results, folder


def run_steps(args, agent, world):
    """Result of args.steps steps: the returns while learning, and the expected return of the greedy policy."""
    episodes, policies = play(agent, world, args.seed, steps=args.steps)
    x = np.arange(1, 21) * args.steps / 20
    part = np.searchsorted(x, episodes.end)
    ret = group_means(part * args.runs + episodes.run, episodes.ret, 20 * args.runs)
    num_episodes = np.bincount(episodes.run, minlength=args.runs)
    recent = episodes.number >= num_episodes[episodes.run] - 100
    recent_ret = group_means(episodes.run[recent], episodes.ret[recent], args.runs)
    curves = {"return": mean_and_error(ret.reshape(20, args.runs))}
    columns, v = {"return": mean_and_error(recent_ret)}, None
    if world.model is None:
        test, _ = play(agent, world, args.seed, episodes=10, learn=False)
        columns["greedy"] = mean_and_error(group_means(test.run, test.ret, args.runs))
    else:
        greedy = np.array([expected_return(world.model, actions, world.limit) for actions in policies])  # [20, N]
        optimum = best_return(world.model, world.limit)
        curves["greedy"] = mean_and_error(greedy)
        columns["greedy"] = mean_and_error(greedy[-1])
        columns["optimum"] = optimum, 0.0
        columns["gap"] = mean_and_error(optimum - greedy[-1])
        v = exact_values(world.model, agent.table()[0], args.gamma)
    return Result("step", x, curves, columns, agent.table(), v)


def exact_values(model, q, gamma):
    """v of the greedy policy of q [S, A], nan where no episode goes, [S]; None if gamma is 1 and v does not exist."""
    try:
        return np.where(model.visited, evaluate(model, greedy_policy(q), gamma), np.nan)
    except InputError:
        return None


def run_figure(args, agent, world):
    """Result of a figure's episodes. If it compares alphas, each of them has args.runs runs."""
    figure = FIGURES[args.figure]
    if figure.alphas:
        agent.alpha = np.repeat(figure.alphas, args.runs)  # [N]
    error = rms_error(world.model, figure.gamma) if figure.measure == "error" else None
    episodes, _ = play(agent, world, args.seed, episodes=figure.episodes, error=error)
    measures = {
        "return": episodes.ret,
        "steps": episodes.length,
        "left": 100 * (episodes.length == 2),  # in Example 6.7 only left leads to a second step
        "error": episodes.error,
    }
    y = np.zeros((figure.episodes, world.num_runs))
    y[episodes.number, episodes.run] = measures[figure.measure]
    means = {name: y[window].mean(0) for name, window in figure.windows.items()}
    if not figure.alphas:
        curves = {figure.measure: mean_and_error(y)}
        columns = {name: mean_and_error(mean) for name, mean in means.items()}
        return Result("episode", np.arange(1, figure.episodes + 1), curves, columns, agent.table())

    best = np.argmin if figure.measure == "error" else np.argmax
    curves, columns = {}, {}
    for name in means:
        mean, error = curves[name] = mean_and_error(means[name].reshape(-1, args.runs))  # [alphas]
        i = best(mean)
        columns[name] = mean[i], error[i]
        columns[f"{name}, at alpha"] = figure.alphas[i], 0.0
    return Result("alpha", np.array(figure.alphas), curves, columns, agent.table())


def rms_error(model, gamma):
    """A function of the agent and runs [n]: the root mean square error of their v over the states, [n]."""
    v = evaluate(model, np.ones((len(model.start), 1)), gamma)

    def error(agent, run):
        square = (agent.q[run, :, 0] - v) ** 2
        return np.sqrt(square.mean(-1))

    return error


def group_means(group, x, num_groups):
    """Mean of the x [M] of each group, nan if it has none; group [M] -> [num_groups]."""
    with np.errstate(invalid="ignore"):
        return np.bincount(group, x, num_groups) / np.bincount(group, minlength=num_groups)


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


def apply_figure(args):
    """Args with the settings of --figure, and with the default of --runs. Raises InputError."""
    if args.figure is None:
        return replace(args, runs=20 if args.runs is None else args.runs)
    for field in fields(Args)[1:]:
        free = field.name in ("runs", "seed", "run_dir", "track")
        if not free and getattr(args, field.name) != field.default:
            raise InputError(f"--figure {args.figure}: cannot be combined with --{field.name.replace('_', '-')}")
    figure = FIGURES[args.figure]
    runs = figure.runs if args.runs is None else args.runs
    return replace(args, runs=runs, agents=figure.agents, gamma=figure.gamma)


def check_args(args):
    """Raises InputError if a flag is invalid. make_world checks the environment, make_agent the agents."""
    check("--runs", args.runs, 1)
    check("--steps", args.steps, 20)
    check("--gamma", args.gamma, 0, 1)
    if args.max_episode_steps is not None:
        check("--max-episode-steps", args.max_episode_steps, 1, 10**6)
    check("--seed", args.seed, 0)
    if args.track and not importlib.util.find_spec("wandb"):
        raise InputError("--track: needs wandb (pip install wandb)")


def results_folder(args):
    """Path of the folder for the results. Raises InputError if it is a file or already holds results."""
    folder = Path(args.run_dir or f"runs/{Path(__file__).stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}")
    if (folder / "table.csv").exists():
        raise InputError(f"--run-dir {folder}: already holds results; choose another folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run-dir {folder}: is a file; choose a folder")
    return folder


def make_agent(text, **common):
    """Agent from its name and parameters, such as "ucb:c=1,step_size=0.1". Raises InputError.

    common: values for the fields of the base class Agent.
    """
    name, _, rest = text.partition(":")
    if name not in AGENTS:
        raise InputError(f"--agents {text}: unknown agent; use {', '.join(AGENTS)}")
    own_fields = fields(AGENTS[name])[len(fields(Agent)) :]
    defaults = {field.name: field.default for field in own_fields}
    try:
        given = dict(pair.split("=") for pair in rest.split(",") if rest)
        parameters = {key: parse(value, defaults[key]) for key, value in given.items()}
        return AGENTS[name](**common, **parameters)
    except InputError as error:
        raise InputError(f"--agents {text}: {error}") from error
    except (ValueError, KeyError, OverflowError) as error:
        known = ", ".join(f"{key}={json.dumps(value)}" for key, value in defaults.items()) or "no parameters"
        raise InputError(f"--agents {text}: invalid parameter; {name} takes {known}") from error


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


def save(folder, args, world, results):
    """Write args.json, curves.csv, values.csv, figure.png and table.csv."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "args.json").write_text(json.dumps(asdict(args), indent=2))
    except OSError as error:
        raise InputError(f"--run-dir {folder}: {error}") from error
    curves, values, table = [], [], []
    for text, result in results.items():
        columns = [column for curve in result.curves.values() for column in curve]
        curves += [(text, *numbers) for numbers in zip(result.x, *columns)]
        q = result.q[0]  # of the first run
        v = [None] * len(q) if result.v is None else result.v
        for state, q_s in enumerate(q):
            values.append((text, state, q_s.argmax(), q_s.max(), v[state]))
        table.append([text, *(number for column in result.columns.values() for number in column)])
    write(folder / "curves.csv", ["agent", result.x_label, *with_error(result.curves)], curves)
    write(folder / "values.csv", ["agent", "state", "action", "q", "v"], values)
    plot(folder / "figure.png", args, world, results)
    write(folder / "table.csv", ["agent", *with_error(result.columns)], table)  # written last: it marks a finished run


def with_error(names):
    return [column for name in names for column in (name, f"{name}_error")]


def write(path, heading, rows):
    """Write a CSV file."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        writer.writerows(rows)


def plot(path, args, world, results):
    """Write the figure: curves, and for a grid the values and the greedy actions of each agent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first, model = next(iter(results.values())), world.model
    has_grids = model is not None and model.shape is not None and first.x_label != "alpha"
    num_rows, num_columns = math.ceil(len(results) / 5), min(len(results), 5)
    height = 2.2 * num_rows if has_grids else 0
    figure = plt.figure(figsize=(3 + 5 * len(first.curves), 4.5 + height), layout="constrained")
    figure.suptitle(FIGURES[args.figure].title if args.figure else args.env_id)
    upper = figure
    if has_grids:
        upper, lower = figure.subfigures(2, 1, height_ratios=(4.5, height))
        plot_grids(lower.subplots(num_rows, num_columns, squeeze=False).ravel(), model, results)
    all_axes = upper.subplots(1, len(first.curves), squeeze=False)[0]
    for axes, name in zip(all_axes, first.curves):
        for text, result in results.items():
            mean, error = result.curves[name]
            axes.plot(result.x, mean, label=text, linewidth=1)
            axes.fill_between(result.x, mean - error, mean + error, alpha=0.3)
        axes.set(xlabel=first.x_label, ylabel=name)
        if args.figure:
            axes.set_ylim(FIGURES[args.figure].ylim)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_grids(all_axes, model, results):
    """Mean of max_a Q(s, a) over runs as a color, and the action with the highest mean of Q as an arrow."""
    rows, columns = np.nonzero(model.visited.reshape(model.shape))
    arrows = {"angles": "xy", "pivot": "mid", "scale_units": "xy", "scale": 1.5, "width": 0.02}
    for axes in all_axes:
        axes.axis("off")
    for axes, (text, result) in zip(all_axes, results.items()):
        v = np.where(model.visited, result.q.max(-1).mean(0), np.nan)
        axes.imshow(v.reshape(model.shape))
        best = result.q.mean(0).argmax(-1)[model.visited]
        down, right = directions(model)[best].T
        axes.quiver(columns, rows, right, down, facecolor="white", edgecolor="black", linewidth=0.3, **arrows)
        axes.set_title(text, fontsize=7)


def directions(model):
    """The neighbor to which each action leads most of the time, in rows and columns, [A, 2]."""
    cell = np.argwhere(np.ones(model.shape))  # [S, 2]
    move = cell[model.next_state] - cell[:, None, None]  # [S, A, K, 2]
    is_step = np.abs(move).sum(-1, keepdims=True) == 1  # not a leap, as from the cliff to the start
    mean = (model.prob[..., None] * move * is_step).sum((0, 2))
    longer = np.abs(mean) == np.abs(mean).max(-1, keepdims=True)
    return np.sign(mean) * longer


def log_to_wandb(folder, args, results):
    """Log the curves of each agent. If that fails, say so; the results are already saved."""
    first = next(iter(results.values()))
    stdin, sys.stdin = sys.stdin, None  # without an API key, do not wait for one to be typed
    try:
        import wandb

        with wandb.init(dir=folder, name=folder.name, config=asdict(args)) as run:
            for t, x in enumerate(first.x):
                row = {first.x_label: x}
                for text, result in results.items():
                    row |= {f"{name}/{text}": mean[t] for name, (mean, _) in result.curves.items()}
                run.log(row)
    except Exception as error:
        print(f"--track: not logged to Weights & Biases: {error}", file=sys.stderr)
    finally:
        sys.stdin = stdin


def print_table(results):
    """One line per agent, with mean and standard error of each column. Then the order of the agents' policies."""
    width = max(map(len, results))
    names = next(iter(results.values())).columns
    if "greedy" in names:
        print("return: of the last 100 episodes while learning; greedy: of the greedy policy; optimum: of any policy")
    print(" " * width, *(name.rjust(20) for name in names))
    for text, result in results.items():
        cells = []
        for mean, error in result.columns.values():
            mean = round(mean, 3) + 0.0  # not -0.000
            cells.append(f"{mean:.3f} +- {error:.3f}" if error else f"{mean:.3f}")
        print(f"{text:{width}}", *(cell.rjust(20) for cell in cells))
    print_order(results)


def print_order(results):
    """Compare the exact values of the agents' greedy policies, each with each."""
    policies = {text: result.v for text, result in results.items() if result.v is not None}
    if len(policies) < 2:
        return
    print("\ngreedy policies of the first run, row against column: > better, < worse, = equivalent, . neither")
    for i, (text, v) in enumerate(policies.items(), 1):
        order = "  ".join(compare(v, w) for w in policies.values())
        print(f"{text:{max(map(len, policies))}} {i:2}  {order}")


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
