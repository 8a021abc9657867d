"""Tabular reinforcement learning: dynamic programming, Monte Carlo and temporal-difference learning.

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", second edition, chapters 3 to 8 and 12.

TODO docstring
"""
# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "gymnasium>=1.3", "matplotlib>=3.8", "numpy>=1.26", "tqdm>=4.66", "tyro>=0.9", "wandb>=0.18",
# ]
# ///

import csv
import importlib.util
import json
import math
import sys
import time
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
    figure: Literal["6.2", "6.3", "6.5", "6.6", "7.2", "8.2", "12.6"] | None = None  # reproduce this figure of the book
    agents: tuple[str, ...] = ()  # to compare; each is name or name:parameter=value,...; default all
    env_id: str = "FrozenLake-v1"  # Gymnasium environment
    env_kwargs: str = "{}"  # its keyword arguments as JSON, for example '{"is_slippery": false}'
    bins: tuple[int, ...] = ()  # for a Box observation: number of intervals per dimension
    low: tuple[float, ...] = ()  # lower end of the intervals, per dimension
    high: tuple[float, ...] = ()  # upper end of the intervals, per dimension
    model: bool = True  # use the environment's table of probabilities P if it has one, to simulate and to plan
    runs: int | None = None  # N, independent runs per agent; default 20, with --figure the figure's own
    steps: int = 20_000  # environment steps per run
    gamma: float = 0.99  # discount factor
    max_episode_steps: int | None = None  # time limit; default the environment's, or 1000 if it has none
    seed: int = 1  # same seed, same results
    run_dir: str = ""  # folder for the results; default runs/tabular__<seed>__<time>
    track: bool = False  # also log to Weights & Biases
    wandb_project_name: str = "rl"  # Weights & Biases project
    wandb_entity: str | None = None  # Weights & Biases team


@dataclass
class Model:
    """p(s', r | s, a) of a Markov decision process with S states, A actions, and K outcomes of each action.

    Outcomes are padded to the same number K with probability 0. A(s) is {0, ..., num_actions[s] - 1}.
    """

    prob: np.ndarray  # [S, A, K]
    next_state: np.ndarray  # [S, A, K]
    reward: np.ndarray  # [S, A, K]
    terminated: np.ndarray  # [S, A, K]
    start: np.ndarray  # distribution of the first state, [S]
    num_actions: np.ndarray  # [S]
    shape: tuple[int, int] | None = None  # rows and columns, if the states are the cells of a grid
    visited: np.ndarray | None = None  # states that an episode can visit, [S]

    def __post_init__(self):
        num_states, max_actions, _ = self.prob.shape
        self.legal = np.arange(max_actions) < self.num_actions[:, None]  # [S, A]
        # P lists outcomes of terminal states too, in CliffWalking and Taxi as if the episode went on. No value may
        # flow back from there: only outcomes that do not terminate lead on.
        self.onward = self.prob * ~self.terminated  # [S, A, K]
        # P may list one next state twice, in FrozenLake at the border. Summing over outcomes counts both.
        self.mean_reward = (self.prob * self.reward).sum(-1)  # r(s, a) (Eq. 3.5), [S, A]
        # P may hold states that no episode visits, such as the cells of the cliff.
        if self.visited is None:
            state, action, k = np.nonzero(self.onward)
            edges = np.zeros((num_states, num_states), bool)
            edges[state, self.next_state[state, action, k]] = True
            self.visited = reachable(edges, self.start > 0)

    def under(self, policy):
        """The Markov reward process of a policy [S, A]: the same states, and a single action in each."""
        num_states = len(self.start)
        flat = (num_states, 1, -1)
        return replace(
            self,
            prob=(policy[..., None] * self.prob).reshape(flat),
            next_state=self.next_state.reshape(flat),
            reward=self.reward.reshape(flat),
            terminated=self.terminated.reshape(flat),
            num_actions=np.ones(num_states, int),
        )


def make_model(P, start, shape=None):
    """Model from Gymnasium's P[s][a] = [(probability, next state, reward, terminated), ...]. Raises InputError."""
    num_actions = np.array([len(P[s]) for s in range(len(P))])
    max_outcomes = max(len(outcomes) for actions in P.values() for outcomes in actions.values())
    size = len(P), num_actions.max(), max_outcomes
    prob, reward = np.zeros(size), np.zeros(size)
    next_state, terminated = np.zeros(size, int), np.zeros(size, bool)
    for s, actions in P.items():
        for a, outcomes in actions.items():
            for k, outcome in enumerate(outcomes):
                at = s, a, k
                prob[at], next_state[at], reward[at], terminated[at] = outcome
    model = Model(prob, next_state, reward, terminated, np.asarray(start), num_actions, shape)
    if not np.allclose(prob.sum(-1)[model.legal], 1) or not np.isclose(model.start.sum(), 1):
        raise InputError("P: the probabilities of an action's outcomes must sum to 1")
    return model


def reachable(edges, states):
    """The states [S] that one gets to from the given ones [S] along edges [S, S], themselves included."""
    while True:
        more = states | (states @ edges)
        if (more == states).all():
            return states
        states = more


def q_values(model, v, gamma):
    """q(s, a) = E[r + gamma v(s')], [S] -> [S, A] (Eq. 4.6 for v of a policy, Eq. 4.1 for the optimal v)."""
    q = model.mean_reward + gamma * (model.onward * v[model.next_state]).sum(-1)
    return np.where(model.legal, q, -np.inf)


def evaluate(model, policy, gamma):
    """v of a policy [S, A], exactly: the linear system v = r + gamma T v (Eq. 3.14), [S]. Raises InputError."""
    process = model.under(policy)
    num_states = len(process.start)
    T = np.zeros((num_states, num_states))  # probability of each next state, without termination
    np.add.at(T, (np.arange(num_states)[:, None], process.next_state[:, 0]), process.onward[:, 0])
    endless = np.zeros(num_states, bool)
    if gamma == 1:  # a state from which the episode may never end has no value
        can_end = reachable((T > 0).T, T.sum(1) < 1 - 1e-9)
        endless = reachable((T > 0).T, ~can_end)
        T[endless] = 0
    if (endless & process.visited).any():
        raise InputError("--gamma 1: the policy is improper, its episodes may never end; choose gamma below 1")
    return np.linalg.solve(np.eye(num_states) - gamma * T, process.mean_reward[:, 0] * ~endless)


def value_iteration(model, gamma, tolerance=1e-10):
    """Optimal v (Eq. 4.10), [S]; of model.under(policy) the policy's v: iterative policy evaluation (Eq. 4.5)."""
    v = np.zeros(len(model.start))
    for _ in range(100_000):
        new_v = q_values(model, v, gamma).max(-1)
        change = np.abs(new_v - v)[model.visited].max()
        v = new_v
        if change < tolerance:
            return v
    raise InputError(f"--gamma {gamma}: value iteration does not converge; choose a smaller gamma")


def greedy(q):
    """The policy that takes the first of the best actions, [S, A] -> [S, A]."""
    return np.eye(q.shape[-1])[q.argmax(-1)]


def policy_iteration(model, gamma):
    """Optimal v [S] and policy [S, A]: evaluation and improvement in turn (section 4.3). Raises InputError."""
    policy = model.legal / model.num_actions[:, None]
    while True:
        v = evaluate(model, policy, gamma)
        q = q_values(model, v, gamma)
        improved = q.max(-1) > v + 1e-9  # a tie is no improvement: taking it, the loop might never end
        if not improved[model.visited].any():
            return v, policy
        policy = np.where(improved[:, None], greedy(q), policy)  # Eq. 4.9


def compare(model, v, w, tolerance=1e-9):
    """Is the policy with values v [S] "better" than the one with w [S], "worse", "equivalent" or "incomparable"?

    A policy is better if no state has a lower value, and one a higher (section 3.6). It is a partial order.
    """
    difference = (v - w)[model.visited]
    higher, lower = (difference > tolerance).any(), (difference < -tolerance).any()
    if higher and lower:
        return "incomparable"
    return "better" if higher else "worse" if lower else "equivalent"


def expected_return(model, action, limit):
    """Expected return, not discounted, of deterministic policies [N, S] in episodes of at most `limit` steps, [N]."""
    state = np.arange(len(model.start))
    next_state, onward = model.next_state[state, action], model.onward[state, action]  # [N, S, K]
    reward = model.mean_reward[state, action]
    policy = np.arange(len(action))[:, None, None]
    v = np.zeros(action.shape)
    for _ in range(limit):
        new_v = reward + (onward * v[policy, next_state]).sum(-1)
        if np.array_equal(new_v, v):
            break
        v = new_v
    return v @ model.start


def best_return(model, limit):
    """The highest expected return of any policy in `limit` steps, also of those that count the steps left."""
    v = np.zeros(len(model.start))
    for _ in range(limit):
        v = q_values(model, v, gamma=1).max(-1)
    return v @ model.start


class Step(NamedTuple):
    """One step of n of the N runs, [n] each."""

    run: np.ndarray  # their numbers
    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_state: np.ndarray
    terminated: np.ndarray  # the next state is terminal
    ended: np.ndarray  # terminated, or truncated by a time limit


@dataclass
class Agent:
    """Base class: a table Q(s, a) for each of N runs and the greedy policy. Does not learn.

    The fields that a subclass adds are the agent's parameters. Raises InputError if one is outside its limits.
    """

    world: Any
    gamma: float
    limits: ClassVar = {}  # parameter: (lowest, highest)

    def __post_init__(self):
        for name, (low, high) in self.limits.items():
            if getattr(self, name) is not None:
                check(name, getattr(self, name), low, high)

    def reset(self, seed=None):
        """Forget everything learned."""
        self.rng = np.random.default_rng(seed)
        self.progress = 0.0  # fraction of the steps done, set by play
        self.q = np.zeros((self.world.num_runs, *self.world.legal.shape))  # [N, S, A]
        self.q[:, ~self.world.legal] = -np.inf  # never greedy

    def start(self, run, state):
        """An episode begins in these runs, [n], in these states, [n]."""

    def act(self, run, state):
        """The action of each run, [n]."""
        return self.greedy(run, state)

    def learn(self, step):
        """Learn from one step."""

    def greedy(self, run, state):
        """The action with the highest Q, [n]. Ties are broken at random."""
        q = self.q[run, state]
        ties = q == q.max(-1, keepdims=True)
        u = self.rng.random(q.shape, np.float32)
        return np.where(ties, u, np.inf).argmin(-1)


@dataclass
class ValueIteration(Agent):
    """Knows the model: Q from value iteration."""

    def __post_init__(self):
        if self.world.model is None:
            raise InputError("needs an environment with a table of probabilities P (and no --no-model)")

    def reset(self, seed=None):
        super().reset(seed)
        self.q[:] = q_values(self.world.model, self.plan(), self.gamma)

    def plan(self):
        return value_iteration(self.world.model, self.gamma)


@dataclass
class PolicyIteration(ValueIteration):
    """Knows the model: Q from policy iteration."""

    def plan(self):
        return policy_iteration(self.world.model, self.gamma)[0]


@dataclass
class Learner(Agent):
    """Base class: epsilon-greedy actions, and Q moved by a step size towards targets.

    epsilon falls from 1 to its value over the first fraction `explore` of the steps.
    """

    alpha: float | None = None  # step size; None: n^-power, at the n-th update of Q(s, a)
    power: float = 0.6
    epsilon: float = 0.1
    explore: float = 0.5
    initial: float = 0.0  # Q at first
    limits: ClassVar = {"alpha": (0, 1), "power": (0, 1), "epsilon": (0, 1), "explore": (0, 1)}

    def reset(self, seed=None):
        super().reset(seed)
        self.q += self.initial
        self.updates = np.zeros(self.q.shape, int)
        self.step_size = np.empty(self.q.shape)
        self.step_size[:] = 1 if self.alpha is None else np.reshape(self.alpha, (-1, 1, 1))

    def current_epsilon(self):
        done = min(self.progress / self.explore, 1) if self.explore else 1
        return 1 - done * (1 - self.epsilon)

    def act(self, run, state):
        if self.q.shape[-1] == 1:
            return np.zeros(len(run), int)  # prediction: there is nothing to choose
        num_actions = self.world.num_actions[state]
        random_action = (self.rng.random(len(run)) * num_actions).astype(int)
        explore = self.rng.random(len(run)) < self.current_epsilon()
        return np.where(explore, random_action, self.greedy(run, state))

    def learn(self, step):
        next_value = ~step.terminated * self.next_value(step)  # 0 if terminal; after a truncation it counts
        self.update(step.run, step.state, step.action, step.reward + self.gamma * next_value)

    def next_value(self, step):
        """Estimated value of the next state, [n]."""
        raise NotImplementedError

    def update(self, run, state, action, target):
        """Move Q(s, a) a step towards the target, [n] each."""
        at = run, state, action
        self.count(at)
        self.q[at] += self.step_size[at] * (target - self.q[at])

    def count(self, at):
        """Count one more update of Q(s, a), at = run, state, action; if alpha is None its step size falls."""
        if self.alpha is None:
            self.updates[at] += 1
            self.step_size[at] = self.updates[at] ** -self.power


@dataclass
class QLearning(Learner):
    """Q-learning (Eq. 6.8): off-policy, its target assumes the best action next."""

    def next_value(self, step):
        return self.q[step.run, step.next_state].max(-1)


@dataclass
class ExpectedSarsa(Learner):
    """Expected Sarsa (Eq. 6.9): the target is an average over the actions that the policy may take next."""

    def next_value(self, step):
        q = self.q[step.run, step.next_state]
        mean = np.where(q > -np.inf, q, 0).sum(-1) / self.world.num_actions[step.next_state]
        epsilon = self.current_epsilon()
        return epsilon * mean + (1 - epsilon) * q.max(-1)


@dataclass
class DoubleQLearning(Learner):
    """Double Q-learning (Eq. 6.10): one table chooses the best next action, the other one says what it is worth."""

    def reset(self, seed=None):
        super().reset(seed)
        self.tables = np.stack([self.q, self.q])  # [2, N, S, A]; self.q is their mean

    def learn(self, step):
        table = self.rng.integers(2, size=len(step.run))  # the table to update
        at = step.run, step.state, step.action
        here, there = (table, *at), (1 - table, *at)
        best = self.tables[table, step.run, step.next_state].argmax(-1)
        next_value = ~step.terminated * self.tables[1 - table, step.run, step.next_state, best]
        self.q[at] = self.tables[here]
        self.update(*at, step.reward + self.gamma * next_value)
        self.tables[here] = self.q[at]
        self.q[at] = (self.tables[here] + self.tables[there]) / 2


@dataclass
class Sarsa(Learner):
    """Sarsa (Eq. 6.7): on-policy, the target has the action that is taken next. With one action, TD(0) (Eq. 6.2)."""

    def reset(self, seed=None):
        super().reset(seed)
        self.next_action = np.zeros(len(self.q), int)  # chosen, not yet taken

    def start(self, run, state):
        self.next_action[run] = super().act(run, state)

    def act(self, run, state):
        return self.next_action[run]

    def next_value(self, step):
        action = super().act(step.run, step.next_state)
        self.next_action[step.run] = action
        return self.q[step.run, step.next_state, action]


@dataclass
class SarsaLambda(Sarsa):
    """Sarsa(lambda) (section 12.7): a TD error also updates the earlier steps of the episode. TD(lambda) (Eq. 12.5).

    The trace z of a pair (s, a) says how much of the error it gets. It decays by gamma lambda at each step.
    """

    lam: float = 0.9  # lambda
    replacing: bool = True  # a visit sets the trace to 1; otherwise it adds 1
    limits: ClassVar = {"lam": (0, 1), **Learner.limits}

    def reset(self, seed=None):
        super().reset(seed)
        self.trace = np.zeros(self.q.shape)

    def start(self, run, state):
        super().start(run, state)
        self.trace[run] = 0

    def learn(self, step):
        at = step.run, step.state, step.action
        next_value = ~step.terminated * self.next_value(step)
        error = step.reward + self.gamma * next_value - self.q[at]
        self.count(at)
        trace = self.gamma * self.lam * self.trace[step.run]
        self.trace[step.run] = trace
        self.trace[at] = 1 if self.replacing else self.trace[at] + 1
        self.q[step.run] += self.step_size[step.run] * error[:, None, None] * self.trace[step.run]


@dataclass
class NStepSarsa(Sarsa):
    """n-step Sarsa (Eq. 7.4 and 7.5): n rewards, then the value of the state and action reached. n-step TD (Eq. 7.2).

    The last n estimates of an episode are updated at its end.
    """

    n: int = 4
    limits: ClassVar = {"n": (1, math.inf), **Learner.limits}

    def reset(self, seed=None):
        super().reset(seed)
        self.time = np.zeros(len(self.q), int)  # steps of the current episode, [N]
        self.states = np.zeros((len(self.q), 1), int)  # of the current episode, [N, T]
        self.actions = np.zeros_like(self.states)
        self.rewards = np.zeros(self.states.shape)

    def start(self, run, state):
        super().start(run, state)
        self.time[run] = 0

    def learn(self, step):
        self.remember(step)
        next_value = ~step.terminated * self.next_value(step)
        full = (self.time[step.run] >= self.n) & ~step.ended
        if full.any():
            self.update_oldest(step.run[full], next_value[full])
        if step.ended.any():
            self.update_rest(step.run[step.ended], next_value[step.ended])

    def remember(self, step):
        time = self.time[step.run]
        if time.max() == self.states.shape[1]:  # double the memory
            self.states, self.actions, self.rewards = (
                np.concatenate([x, np.zeros_like(x)], axis=1) for x in (self.states, self.actions, self.rewards)
            )
        self.states[step.run, time] = step.state
        self.actions[step.run, time] = step.action
        self.rewards[step.run, time] = step.reward
        self.time[step.run] += 1

    def update_oldest(self, run, next_value):
        """Update the estimate of n steps ago; next_value [n] is that of the state reached now."""
        tau = self.time[run] - self.n
        rewards = self.rewards[run[:, None], tau[:, None] + np.arange(self.n)]
        target = rewards @ self.gamma ** np.arange(self.n) + self.gamma**self.n * next_value
        self.update(run, self.states[run, tau], self.actions[run, tau], target)

    def update_rest(self, run, next_value):
        """Update the estimates that are left at the end of the episode, in the order of the steps."""
        steps = min(self.n, self.time[run].max())
        time = self.time[run, None] - steps + np.arange(steps)  # [n, steps], the last column is the last step
        ret = np.empty(time.shape)
        for k in reversed(range(steps)):
            next_value = self.rewards[run, time[:, k]] + self.gamma * next_value
            ret[:, k] = next_value
        row, column = np.nonzero(time >= 0)
        run, time, ret = run[row], time[row, column], ret[row, column]
        pair = run, self.states[run, time], self.actions[run, time]
        for visit in self.visits(np.ravel_multi_index(pair, self.q.shape)):
            self.update(*(index[visit] for index in pair), ret[visit])

    def visits(self, pair):
        """Where each pair occurs for the first time, then for the second time, ...; no two of one visit depend on each
        other, so all are updated at once."""
        order = np.argsort(pair, kind="stable")
        new = np.diff(pair[order], prepend=-1) != 0
        position = np.arange(len(pair))
        earlier = position - np.maximum.accumulate(np.where(new, position, 0))  # earlier visits to the same pair
        for number in range(earlier.max() + 1):
            yield order[earlier == number]


@dataclass
class MonteCarlo(NStepSarsa):
    """Monte Carlo (Eq. 6.1): the target is the return of the whole episode, n-step Sarsa without a limit on n."""

    n: ClassVar = 2**40
    first_visit: bool = False  # update only the first visit to (s, a) in an episode (section 5.1)

    def visits(self, pair):
        every = super().visits(pair)
        return [next(every)] if self.first_visit else every


@dataclass
class DynaQ(QLearning):
    """Dyna-Q (section 8.2): Q-learning, also from steps that a learned model imagines.

    The model is the last outcome of each pair (s, a), so it is right only where outcomes do not vary.
    """

    planning: int = 5  # imagined steps for each real one
    limits: ClassVar = {"planning": (0, math.inf), **Learner.limits}

    def reset(self, seed=None):
        super().reset(seed)
        num_runs, num_states, _ = self.q.shape
        self.tried = np.zeros(self.q.shape, bool)
        self.reward, self.terminated = np.zeros(self.q.shape), np.zeros(self.q.shape, bool)
        self.next_state = np.zeros(self.q.shape, int)
        self.seen = np.zeros((num_runs, num_states), int)  # the states where an action was tried, in order
        self.num_seen = np.zeros(num_runs, int)

    def learn(self, step):
        super().learn(step)
        self.remember(step)
        for _ in range(self.planning):
            super().learn(self.imagine(step.run))

    def remember(self, step):
        at = step.run, step.state, step.action
        new = ~self.tried[step.run, step.state].any(-1)
        self.seen[step.run[new], self.num_seen[step.run[new]]] = step.state[new]
        self.num_seen[step.run[new]] += 1
        self.tried[at] = True
        self.reward[at], self.next_state[at], self.terminated[at] = step.reward, step.next_state, step.terminated

    def imagine(self, run):
        """A step from a random state seen before, with a random action tried there."""
        state = self.seen[run, (self.rng.random(len(run)) * self.num_seen[run]).astype(int)]
        tried = self.tried[run, state]
        action = np.where(tried, self.rng.random(tried.shape, np.float32), np.inf).argmin(-1)
        at = run, state, action
        return Step(*at, self.reward[at], self.next_state[at], self.terminated[at], self.terminated[at])


@dataclass
class BatchTD(Learner):
    """Batch TD(0), for prediction: after each episode, the limit of TD(0) on all episodes so far, in one step.

    That limit is v of the maximum-likelihood model, the certainty-equivalence estimate (section 6.3).
    """

    def __post_init__(self):
        super().__post_init__()
        if len(self.world.legal[0]) > 1:
            raise InputError("is for prediction, where each state has one action")

    def reset(self, seed=None):
        super().reset(seed)
        num_runs, num_states, _ = self.q.shape
        self.transitions = np.zeros((num_runs, num_states, num_states))  # without terminal ones
        self.visits, self.rewards = np.zeros((num_runs, num_states)), np.zeros((num_runs, num_states))

    def learn(self, step):
        at = step.run, step.state
        self.transitions[(*at, step.next_state)] += ~step.terminated
        self.visits[at] += 1
        self.rewards[at] += step.reward
        run = step.run[step.ended]
        visits = self.visits[run]
        left = np.eye(visits.shape[1]) - self.gamma * self.transitions[run] / np.maximum(visits, 1)[:, :, None]
        right = np.where(visits, self.rewards[run] / np.maximum(visits, 1), self.initial)
        self.q[run] = np.linalg.solve(left, right[:, :, None])


AGENTS = {
    "value-iteration": ValueIteration,
    "policy-iteration": PolicyIteration,
    "monte-carlo": MonteCarlo,
    "td": Sarsa,
    "batch-td": BatchTD,
    "sarsa": Sarsa,
    "expected-sarsa": ExpectedSarsa,
    "q-learning": QLearning,
    "double-q-learning": DoubleQLearning,
    "n-step-sarsa": NStepSarsa,
    "sarsa-lambda": SarsaLambda,
    "dyna-q": DynaQ,
}
WITH_MODEL = "value-iteration", "policy-iteration"
CONTROL = (
    "monte-carlo",
    "sarsa",
    "expected-sarsa",
    "q-learning",
    "double-q-learning",
    "n-step-sarsa",
    "sarsa-lambda",
    "dyna-q",
)


class Episodes(NamedTuple):
    """Finished episodes, [M] each, in the order of their ends."""

    run: np.ndarray
    number: np.ndarray  # which episode of its run, from 0
    end: np.ndarray  # step at its end
    ret: np.ndarray  # return, not discounted
    length: np.ndarray
    error: np.ndarray  # error of the agent's values at its end


def play(agent, world, seed, steps=None, episodes=None, error=None, bar=None):
    """Reset the agent and let it learn, for a number of steps or of episodes per run.

    Returns Episodes, and the greedy policies at 20 times, the last one at the end, [20, N, S] (of steps only).
    error(agent, run) gives Episodes.error, [n].
    """
    world_seed, agent_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    world.reset(world_seed)
    agent.reset(agent_seed)
    run = np.arange(world.num_runs)
    state = world.start(run)
    agent.start(run, state)
    ret, length, number = np.zeros(len(run)), np.zeros(len(run), int), np.zeros(len(run), int)
    log, policies = [], []

    for t in count(1):
        action = agent.act(run, state)
        next_state, reward, terminated, truncated = world.step(run, action)
        ended = terminated | truncated
        agent.learn(Step(run, state, action, reward, next_state, terminated, ended))
        ret[run] += reward
        length[run] += 1
        state = next_state
        if ended.any():
            done = run[ended]
            errors = error(agent, done) if error else np.zeros(len(done))
            log.append((done, number[done], np.full(len(done), t), ret[done], length[done], errors))
            ret[done], length[done] = 0, 0
            number[done] += 1
            state[ended] = world.start(done)
            agent.start(done, state[ended])
        if bar is not None:
            bar.update()
        if steps:
            agent.progress = t / steps
            if t * 20 // steps > len(policies):
                policies.append(agent.q.argmax(-1))
            if t == steps:
                break
        else:
            playing = number[run] < episodes
            run, state = run[playing], state[playing]
            if not len(run):
                break
    log = Episodes(*map(np.concatenate, zip(*log))) if log else Episodes(*[np.zeros(0)] * 6)
    return log, np.array(policies)


class Simulator:
    """N copies of a model, stepped at once. Truncates episodes after `limit` steps.

    `copies` of each of num_runs / copies runs get the same random numbers.
    """

    def __init__(self, model, num_runs, limit=math.inf, copies=1):
        self.model, self.num_runs, self.limit = model, num_runs, limit
        self.different = num_runs // copies
        self.legal, self.num_actions = model.legal, model.num_actions
        self.cdf = model.prob.cumsum(-1)
        self.cdf[self.cdf > 1 - 1e-9] = 1  # rounding must not leave a gap below 1

    def reset(self, seed=None):
        self.rng = np.random.default_rng(seed)
        self.state, self.time = np.zeros(self.num_runs, int), np.zeros(self.num_runs, int)

    def random(self, run):
        return self.rng.random(self.different)[run % self.different]

    def start(self, run):
        """Start an episode in these runs, [n] -> [n]."""
        self.time[run] = 0
        state = np.searchsorted(self.model.start.cumsum(), self.random(run), "right")
        self.state[run] = np.minimum(state, len(self.legal) - 1)
        return self.state[run]

    def step(self, run, action):
        """Next state, reward, terminated, truncated, [n] each."""
        at = self.state[run], action
        outcome = (self.random(run)[:, None] >= self.cdf[at]).sum(-1)
        at = (*at, outcome)
        next_state = self.model.next_state[at]
        self.state[run] = next_state
        self.time[run] += 1
        return next_state, self.model.reward[at], self.model.terminated[at], self.time[run] >= self.limit


class InputError(ValueError):
    """Invalid flag, parameter or action. The message names it and what is accepted."""


def check(name, number, low, high=math.inf):
    """Raises InputError unless low <= number <= high, so also for nan."""
    if not low <= number <= high:
        accepted = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise InputError(f"{name} {number}: must be {accepted}")
