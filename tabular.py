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
    reward_std: np.ndarray | None = None  # standard deviation of normal noise on the reward, [S]
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
    model = Model(prob, next_state, reward, terminated, np.asarray(start), num_actions, shape=shape)
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

    def table(self):
        """Q, [N, S, A]."""
        return self.q

    def values(self, run, state):
        """Q(s, .) in these states, [n, A]."""
        return self.q[run, state]

    def greedy(self, run, state):
        """The action with the highest Q, [n]. Ties are broken at random."""
        q = self.values(run, state)
        ties = q == q.max(-1, keepdims=True)
        u = self.rng.random(q.shape, np.float32)
        return np.where(ties, u, np.inf).argmin(-1)


@dataclass
class Greedy(Agent):
    """The greedy policy of a given table."""

    given: np.ndarray  # [N, S, A]

    def reset(self, seed=None):
        super().reset(seed)
        self.q = self.given


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
    power: float = 0.5
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
        self.update((step.run, step.state, step.action), step.reward + self.gamma * next_value)

    def next_value(self, step):
        """Estimated value of the next state, [n]."""
        raise NotImplementedError

    def update(self, at, target):
        """Move Q(s, a) a step towards the target, [n]. at: run, state, action."""
        self.count(at)
        self.q[at] += self.step_size[at] * (target - self.q[at])

    def count(self, at):
        """Count one more update of Q(s, a); if alpha is None, the step size falls."""
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
        self.q, self.updates, self.step_size = (np.stack([x, x]) for x in (self.q, self.updates, self.step_size))

    def table(self):
        return self.q.mean(0)

    def values(self, run, state):
        return self.q[:, run, state].mean(0)

    def learn(self, step):
        one = self.rng.integers(2, size=len(step.run))  # the table to update
        best = self.q[one, step.run, step.next_state].argmax(-1)
        next_value = ~step.terminated * self.q[1 - one, step.run, step.next_state, best]
        self.update((one, step.run, step.state, step.action), step.reward + self.gamma * next_value)


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
        self.update((run, self.states[run, tau], self.actions[run, tau]), target)

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
            self.update(tuple(index[visit] for index in pair), ret[visit])

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
        agent.progress = t / steps if steps else 1.0
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
            if t * 20 // steps > len(policies):
                policies.append(agent.table().argmax(-1))
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
        model, state = self.model, self.state[run]
        u = self.random(run)
        outcome = (u[:, None] >= self.cdf[state, action]).sum(-1)  # inverse CDF
        at = state, action, outcome
        next_state, reward = model.next_state[at], model.reward[at]
        if model.reward_std is not None:
            reward = reward + model.reward_std[state] * self.rng.standard_normal(len(run))
        self.state[run] = next_state
        self.time[run] += 1
        return next_state, reward, model.terminated[at], self.time[run] >= self.limit


class Environments:
    """N environments of Gymnasium with numbered observations and actions, for those without a model."""

    model = None

    def __init__(self, envs, number):
        self.envs, self.num_runs, self.number = envs, len(envs), number
        self.actions = Numbers(envs[0].action_space).elements()
        self.legal = np.ones((math.prod(number.sizes), len(self.actions)), bool)
        self.num_actions = self.legal.sum(-1)

    def reset(self, seed=None):
        seeds = np.random.SeedSequence(seed).generate_state(self.num_runs).tolist()
        for env, env_seed in zip(self.envs, seeds):
            env.reset(seed=env_seed)

    def start(self, run):
        return self.number([self.envs[i].reset()[0] for i in run])

    def step(self, run, action):
        steps = [self.envs[i].step(self.actions[a]) for i, a in zip(run, action)]
        obs, reward, terminated, truncated, _ = zip(*steps)
        return self.number(obs), np.array(reward, float), np.array(terminated), np.array(truncated)


class Numbers:
    """Numbers the elements of a finite space from 0, or of a Box cut into bins. Raises InputError for other spaces."""

    def __init__(self, space, bins=(), low=(), high=()):
        self.space = space
        if isinstance(space, spaces.Box):
            self.sizes, self.low = np.array(bins), np.array(low)
            self.width = (np.array(high) - low) / bins
        else:
            self.sizes, self.low = finite_parts(space)
            self.width = 1

    def __call__(self, elements):
        """Their numbers, [n]."""
        parts = np.array([np.hstack(element) for element in elements])
        parts = np.floor((parts - self.low) / self.width)
        parts = parts.clip(0, self.sizes - 1).astype(int)  # beyond the ends: the first or the last bin
        return np.ravel_multi_index(parts.T, self.sizes)

    def elements(self):
        """All elements of the space, in the order of their numbers."""
        parts = np.stack(np.unravel_index(np.arange(math.prod(self.sizes)), self.sizes), -1) + self.low
        if isinstance(self.space, spaces.Discrete):
            return parts[:, 0].tolist()
        return list(parts.reshape(-1, *self.space.shape).astype(self.space.dtype))


def finite_parts(space):
    """Sizes and lowest numbers of the parts of a space of integers. Raises InputError."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n]), np.array([space.start])
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel(), space.start.ravel()
    if isinstance(space, spaces.Tuple):
        return tuple(map(np.concatenate, zip(*map(finite_parts, space))))
    raise InputError(f"{space}: supported are Discrete, MultiDiscrete and Tuple, and Box observations with --bins")


def random_walk(num_states, left_reward):
    """Random walk (Example 6.2, 7.1): from the center, to the left or to the right, until one end is passed.

    The reward is 1 at the right end and left_reward at the left end.
    """
    P = {}
    for s in range(num_states):
        left = (0.5, max(s - 1, 0), left_reward * (s == 0), s == 0)
        right = (0.5, min(s + 1, num_states - 1), float(s == num_states - 1), s == num_states - 1)
        P[s] = {0: [left, right]}
    return make_model(P, start=np.eye(num_states)[num_states // 2])


def maximization_bias():
    """Example 6.7. In A, action 0 (left) leads to B and action 1 ends the episode, both with reward 0.

    In B, each of 10 actions ends it, with a reward from N(-0.1, 1).
    """
    P = {0: {0: [(1, 1, 0, False)], 1: [(1, 0, 0, True)]}, 1: {a: [(1, 1, -0.1, True)] for a in range(10)}}
    return replace(make_model(P, start=[1, 0]), reward_std=np.array([0, 1]))


MAZE = """
.......#G
..#....#.
S.#....#.
..#......
.....#...
.........
"""


def maze(text=MAZE):
    """Dyna maze (Example 8.1): up, right, down, left; walls # block a move; reward 1 at the goal G, the end."""
    rows = text.split()
    shape = len(rows), len(rows[0])
    cells = "".join(rows)
    P = {s: {} for s in range(len(cells))}
    for s in P:
        row, column = divmod(s, shape[1])
        for a, (down, right) in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)]):
            to = (row + down, column + right)
            inside = 0 <= to[0] < shape[0] and 0 <= to[1] < shape[1]
            next_s = to[0] * shape[1] + to[1] if inside else s
            if cells[next_s] == "#":
                next_s = s
            goal = cells[next_s] == "G"
            P[s][a] = [(1, next_s, float(goal), goal)]
    return make_model(P, np.array([cell == "S" for cell in cells], float), shape)


def make_world(args):
    """N runs of args.env_id: a Simulator if it has a model, otherwise Environments. Raises InputError."""
    env = make_env(args, args.max_episode_steps)
    limit = args.max_episode_steps or env.spec.max_episode_steps or 1_000
    if args.model and hasattr(env.unwrapped, "P") and hasattr(env.unwrapped, "initial_state_distrib"):
        return Simulator(gymnasium_model(env), args.runs, limit)
    number = Numbers(env.observation_space, *box_bins(env.observation_space, args))
    world = Environments([make_env(args, limit) for _ in range(args.runs)], number)
    if args.runs * world.legal.size > 50_000_000:
        raise InputError(f"--bins, --runs: {args.runs} tables of {world.legal.size} numbers are too large")
    return world


def make_env(args, max_episode_steps=None):
    try:
        return gym.make(args.env_id, max_episode_steps=max_episode_steps, **json.loads(args.env_kwargs))
    except json.JSONDecodeError as error:
        raise InputError(f"--env-kwargs {args.env_kwargs}: is not JSON") from error
    except (gym.error.Error, ImportError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"--env-id {args.env_id} --env-kwargs {args.env_kwargs}: {error}") from error


def box_bins(space, args):
    """--bins, --low and --high, one number per dimension of a Box [D]. Raises InputError."""
    flags = args.bins, args.low, args.high
    if not isinstance(space, spaces.Box):
        if any(flags):
            raise InputError(f"--bins, --low, --high: are for Box observations, not for {space}")
        return flags
    if len(space.shape) != 1 or any(len(flag) != space.shape[0] for flag in flags):
        raise InputError(f"--bins, --low, --high: each needs one number per dimension of {space}")
    for bins, low, high in zip(*flags):
        check("--bins", bins, 1)
        if not -math.inf < low < high < math.inf:
            raise InputError(f"--low {low} --high {high}: must be finite, and low below high")
    return flags


def gymnasium_model(env):
    """Model from the environment's P. Raises InputError if the environment does not behave as P says."""
    raw = env.unwrapped
    rows, columns = getattr(raw, "shape", None) or (getattr(raw, "nrow", 0), getattr(raw, "ncol", 0))
    shape = (rows, columns) if rows * columns == len(raw.P) else None
    model = make_model(raw.P, raw.initial_state_distrib, shape)
    rng = np.random.default_rng(0)
    state, _ = env.reset(seed=0)
    for _ in range(10_000):
        action = int(rng.integers(len(raw.P[state])))
        next_state, reward, terminated, truncated, _ = env.step(action)
        at = state, action
        same = (model.next_state[at] == next_state) & (model.terminated[at] == terminated) & (model.prob[at] > 0)
        if not (same & np.isclose(model.reward[at], reward)).any():
            raise InputError(f"{env.spec.id}: step() does not follow P; with --no-model P is not used")
        state = env.reset()[0] if terminated or truncated else next_state
    return model


class Figure(NamedTuple):
    """An experiment of the book. All learners have a constant epsilon of 0.1."""

    title: str
    model: Callable
    agents: tuple[str, ...]
    runs: int
    episodes: int
    measure: str  # of an episode: its return, its steps, left (% of episodes that took it), or the error of the values
    windows: dict  # name: which episodes the table averages
    gamma: float = 1.0
    alphas: tuple[float, ...] = ()  # if given, each agent is run with each of them, and the x-axis is alpha
    limits: tuple[float, float] | None = None  # of the y-axis


def cliff():
    return gymnasium_model(gym.make("CliffWalking-v1"))


TENTHS = tuple(i / 10 for i in range(1, 11))
FINE = (0.025, 0.05, 0.075, 0.15, *TENTHS)
FIGURES = {
    "6.2": Figure(
        "Figure 6.2 (batch) and Example 6.2: random walk of 5 states",
        lambda: random_walk(5, 0.0),
        (
            "batch-td:initial=0.5",
            "monte-carlo:power=1,initial=0.5",
            *(f"td:alpha={alpha},initial=0.5" for alpha in (0.05, 0.1, 0.15)),
            *(f"monte-carlo:alpha={alpha},initial=0.5" for alpha in (0.01, 0.02, 0.03, 0.04)),
        ),
        runs=100,
        episodes=100,
        measure="error",
        windows={"episode 100": slice(99, 100)},
        limits=(0, 0.25),
    ),
    "6.3": Figure(
        "Figure 6.3: cliff walking, interim (episodes 1 to 100) and asymptotic (episodes 401 to 500)",
        cliff,
        ("expected-sarsa", "sarsa", "q-learning"),
        runs=50,
        episodes=500,
        measure="return",
        windows={"interim": slice(0, 100), "asymptotic": slice(400, 500)},
        alphas=TENTHS,
        limits=(-160, 0),
    ),
    "6.5": Figure(
        "Figure 6.5: maximization bias",
        maximization_bias,
        ("q-learning:alpha=0.1", "double-q-learning:alpha=0.1"),
        runs=10_000,
        episodes=300,
        measure="left",
        windows={"episodes 1-100": slice(0, 100), "251-300": slice(250, 300)},
        limits=(0, 100),
    ),
    "6.6": Figure(
        "Example 6.6: cliff walking",
        cliff,
        ("sarsa:alpha=0.5", "q-learning:alpha=0.5", "expected-sarsa:alpha=0.5"),
        runs=1_000,
        episodes=500,
        measure="return",
        windows={"first 100": slice(0, 100), "last 100": slice(400, 500)},
        limits=(-100, 0),
    ),
    "7.2": Figure(
        "Figure 7.2: n-step TD on a random walk of 19 states",
        lambda: random_walk(19, -1.0),
        tuple(f"n-step-sarsa:n={2**i}" for i in range(10)),
        runs=100,
        episodes=10,
        measure="error",
        windows={"episodes 1-10": slice(0, 10)},
        alphas=(0.0, *sorted(FINE)),
        limits=(0.25, 0.55),
    ),
    "8.2": Figure(
        "Figure 8.2: Dyna-Q in a maze",
        maze,
        tuple(f"dyna-q:planning={n},alpha=0.1" for n in (0, 5, 50)),
        runs=30,
        episodes=50,
        measure="steps",
        windows={f"episode {k}": slice(k - 1, k) for k in (2, 5, 25)},
        gamma=0.95,
        limits=(14, 800),
    ),
    "12.6": Figure(
        "Figure 12.6: TD(lambda) on a random walk of 19 states",
        lambda: random_walk(19, -1.0),
        tuple(f"sarsa-lambda:lam={lam},replacing=false" for lam in (0, 0.4, 0.8, 0.9, 0.95, 0.975, 0.99, 1)),
        runs=100,
        episodes=10,
        measure="error",
        windows={"episodes 1-10": slice(0, 10)},
        alphas=(0.0, *sorted(FINE)),
        limits=(0.25, 0.55),
    ),
}


class Result(NamedTuple):
    """What one agent did: the x-axis [T], and for each curve its mean and standard error over runs, [T] each."""

    x: np.ndarray
    curves: dict
    row: dict  # of the table; for each column its mean and standard error
    q: np.ndarray  # [N, S, A]


def train(args):
    """Compare the agents and write the results. Returns the table's rows and the folder. Raises InputError."""
    args = apply_figure(args)
    check_args(args)
    folder = results_folder(args)
    with tqdm(unit="step", unit_scale=True, disable=None) as bar:
        world, results = run_figure(args, bar) if args.figure else run_agents(args, bar)
    save(folder, args, world, results)
    if args.track:
        log_to_wandb(folder, args, results)
    return results, folder


def run_agents(args, bar):
    """Let each agent learn in args.env_id for args.steps steps."""
    world = make_world(args)
    names = args.agents or (WITH_MODEL if world.model else ()) + CONTROL
    agents = {text: make_agent(text, world=world, gamma=args.gamma) for text in names}
    results = {}
    for text, agent in agents.items():
        bar.set_description(text)
        episodes, policies = play(agent, world, args.seed, steps=args.steps, bar=bar)
        results[text] = summarize(args, world, agent, episodes, policies)
    return world, results


def run_figure(args, bar):
    """Let each agent of the figure learn for the figure's number of episodes."""
    figure = FIGURES[args.figure]
    alphas = figure.alphas or (None,)
    world = Simulator(figure.model(), args.runs * len(alphas), copies=len(alphas))
    error = error_of_values(world.model, figure.gamma) if figure.measure == "error" else None
    results = {}
    for text in figure.agents:
        agent = make_agent(text, world=world, gamma=figure.gamma)
        if figure.alphas:
            agent.alpha = np.repeat(alphas, args.runs)  # [N], one for each run
        bar.set_description(text)
        with np.errstate(over="ignore", invalid="ignore"):  # TD(lambda) may diverge
            episodes, _ = play(agent, world, args.seed, episodes=figure.episodes, error=error, bar=bar)
            results[text] = summarize_figure(figure, alphas, agent, episodes)
    return world, results


def error_of_values(model, gamma):
    """Root mean square error over the states, of the values of a Markov reward process."""
    true = evaluate(model, np.ones((len(model.start), 1)), gamma)
    return lambda agent, run: np.sqrt(((agent.q[run, :, 0] - true) ** 2).mean(-1))


def summarize_figure(figure, alphas, agent, episodes):
    measures = {
        "return": episodes.ret,
        "steps": episodes.length,
        "left": 100 * (episodes.length == 2),  # Example 6.7: only from B is there a second step
        "error": episodes.error,
    }
    x = np.zeros((figure.episodes, agent.world.num_runs))
    wanted = episodes.number < figure.episodes
    x[episodes.number[wanted], episodes.run[wanted]] = measures[figure.measure][wanted]
    x = x.reshape(figure.episodes, len(alphas), -1)  # [E, alphas, runs]
    windows = {name: mean_and_error(x[window].mean(0)) for name, window in figure.windows.items()}
    if not figure.alphas:
        row = {name: (mean[0], error[0]) for name, (mean, error) in windows.items()}
        return Result(np.arange(1, figure.episodes + 1), {figure.measure: mean_and_error(x[:, 0])}, row, agent.table())
    row = {}
    for name, (mean, error) in windows.items():
        best = np.nanargmin(mean) if figure.measure == "error" else np.nanargmax(mean)
        row |= {name: (mean[best], error[best]), f"alpha ({name})": (alphas[best], 0.0)}
    return Result(np.array(alphas), windows, row, agent.table())


def summarize(args, world, agent, episodes, policies):
    """Returns while learning, and the expected return of the greedy policy without exploration."""
    ends = np.linspace(0, args.steps, len(policies) + 1)
    ret = np.full((len(policies), args.runs), np.nan)
    last = np.full(args.runs, np.nan)
    for i in range(args.runs):
        mine = episodes.run == i
        own, end = episodes.ret[mine], episodes.end[mine]
        for k in range(len(policies)):
            inside = own[(end > ends[k]) & (end <= ends[k + 1])]
            if len(inside):
                ret[k, i] = inside.mean()
        if len(own):
            last[i] = own[-100:].mean()
    row = {"return": mean_and_error(last)}
    curves = {"return": mean_and_error(ret)}
    if world.model:
        values = np.array([expected_return(world.model, policy, world.limit) for policy in policies])  # [20, N]
        best = best_return(world.model, world.limit)
        curves["greedy"] = mean_and_error(values)
        row |= {"greedy": mean_and_error(values[-1]), "optimum": (best, 0.0), "gap": mean_and_error(best - values[-1])}
    else:
        row["greedy"] = mean_and_error(play_greedily(agent, world, args.seed))
    return Result(ends[1:], curves, row, agent.table())


def play_greedily(agent, world, seed, episodes=10):
    """Average return of the greedy policy over some episodes, [N]."""
    log, _ = play(Greedy(world, agent.gamma, agent.table()), world, seed, episodes=episodes)
    return np.bincount(log.run, log.ret * (log.number < episodes)) / episodes


def mean_and_error(x):
    """Mean over runs and its standard error (nan for a single run): [..., N] -> [...] each."""
    mean, runs = x.mean(-1), x.shape[-1]
    if runs == 1:
        return mean, np.full_like(mean, np.nan)
    return mean, x.std(-1, ddof=1) / runs**0.5


class InputError(ValueError):
    """Invalid flag, parameter or action. The message names it and what is accepted."""


def check(name, number, low, high=math.inf):
    """Raises InputError unless low <= number <= high, so also for nan."""
    if not low <= number <= high:
        accepted = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise InputError(f"{name} {number}: must be {accepted}")


def apply_figure(args):
    """Args with the settings of --figure, and with the default of --runs. Raises InputError."""
    if args.figure is None:
        return replace(args, runs=20 if args.runs is None else args.runs)
    own = {"figure", "runs", "seed", "run_dir", "track", "wandb_project_name", "wandb_entity"}
    for field in fields(Args):
        if field.name not in own and getattr(args, field.name) != field.default:
            raise InputError(f"--figure {args.figure}: cannot be combined with --{field.name.replace('_', '-')}")
    figure = FIGURES[args.figure]
    runs = figure.runs if args.runs is None else args.runs
    return replace(args, runs=runs, agents=figure.agents, gamma=figure.gamma)


def check_args(args):
    """Raises InputError if a flag is invalid. make_world checks the environment, make_agent the agents."""
    check("--runs", args.runs, 1)
    check("--steps", args.steps, 20)
    check("--gamma", args.gamma, 0, 1)
    check("--max-episode-steps", args.max_episode_steps or 1, 1)
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
        raise InputError(f"--agents {text}: the agents are {', '.join(AGENTS)}")
    own_fields = fields(AGENTS[name])[len(fields(Agent)) :]
    defaults = {field.name: field.default for field in own_fields}
    try:
        given = dict(pair.split("=") for pair in rest.split(",") if rest)
        parameters = {key: parse(value, defaults[key]) for key, value in given.items()}
        return AGENTS[name](**common, **parameters)
    except InputError as error:
        raise InputError(f"--agents {text}: {error}") from error
    except (ValueError, KeyError, OverflowError) as error:
        known = ", ".join(f"{key}={json.dumps(value)}" for key, value in defaults.items())
        raise InputError(f"--agents {text}: parameters and defaults of {name}: {known or 'none'}") from error


def parse(text, default):
    """Value of a parameter, given as JSON text. Raises ValueError if it is not finite or not of the default's type.

    A parameter whose default is null can be null or a number.
    """
    value = json.loads(text)
    if value is None and default is None:
        return None
    types = [type(default)] if isinstance(default, int) else [int, float]  # bool is a subclass of int
    if type(value) not in types or not math.isfinite(value):
        raise ValueError
    return value


def save(folder, args, world, results):
    """Write args.json, curves.csv, values.csv, figure.png and table.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(asdict(args), indent=2))
    rows = []
    for text, result in results.items():
        columns = [column for curve in result.curves.values() for column in curve]
        rows += [(text, *numbers) for numbers in zip(result.x, *columns)]
    write(folder / "curves.csv", ["agent", x_label(args), *with_errors(result.curves)], rows)
    write(folder / "values.csv", ["agent", "state", "action", "value"], value_rows(results))
    plot(folder / "figure.png", args, world, results)
    rows = [(text, *(number for pair in result.row.values() for number in pair)) for text, result in results.items()]
    write(folder / "table.csv", ["agent", *with_errors(result.row)], rows)  # written last: it marks a finished run


def x_label(args):
    return "step" if not args.figure else "alpha" if FIGURES[args.figure].alphas else "episode"


def with_errors(names):
    return [column for name in names for column in (name, f"{name}_error")]


def value_rows(results):
    for text, result in results.items():
        for state, q in enumerate(result.q[0]):
            yield text, state, q.argmax(), q.max()


def write(path, heading, rows):
    """Write a CSV file."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        writer.writerows(rows)


def plot(path, args, world, results):
    """Write the figure: curves with standard errors; for a grid also each agent's values and greedy actions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first = next(iter(results.values()))
    grid = world.model is not None and world.model.shape
    rows = -(-len(results) // 5) if grid else 0
    figure = plt.figure(figsize=(4 + 4 * len(first.curves), 4.5 + 2.2 * rows), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(4.5, 2.2 * rows)) if grid else (figure, None)
    plot_curves(upper, args, results)
    if grid:
        axes = lower.subplots(rows, min(5, len(results)), squeeze=False).flat
        for ax in axes:
            ax.axis("off")
        for ax, (text, result) in zip(axes, results.items()):
            plot_grid(ax, world.model, result.q.mean(0))
            ax.set_title(text, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_curves(figure, args, results):
    setting = FIGURES.get(args.figure)
    names = list(next(iter(results.values())).curves)
    for name, ax in zip(names, figure.subplots(1, len(names), squeeze=False).flat):
        for text, result in results.items():
            mean, error = result.curves[name]
            ax.plot(result.x, mean, label=text, linewidth=1)
            ax.fill_between(result.x, mean - error, mean + error, alpha=0.3)
        ax.set(xlabel=x_label(args), ylabel=name, ylim=setting and setting.limits)
    ax.legend(fontsize=7, frameon=False)
    figure.suptitle(setting.title if setting else args.env_id)


def plot_grid(ax, model, q):
    """Values as colors, and the greedy action of each cell as an arrow in the direction in which it moves."""
    visited = model.visited.reshape(model.shape)
    ax.imshow(np.where(visited, q.max(-1).reshape(model.shape), np.nan), cmap="viridis")
    rows, columns = np.nonzero(visited)
    down, right = directions(model)[q.argmax(-1)[model.visited]].T
    ax.quiver(columns, rows, right, down, color="white", angles="xy", pivot="mid")


def directions(model):
    """Where each action moves on the grid on average, (rows, columns) [A, 2]; jumps to distant cells do not count."""
    cell = np.stack(np.unravel_index(np.arange(len(model.start)), model.shape), -1)
    move = cell[model.next_state] - cell[:, None, None]  # [S, A, K, 2]
    step = np.abs(move).sum(-1, keepdims=True) == 1
    mean = (model.prob[..., None] * move * step).sum((0, 2))
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True).clip(1e-9)


def log_to_wandb(folder, args, results):
    """Log the curves of each agent."""
    import wandb

    project = {"project": args.wandb_project_name, "entity": args.wandb_entity}
    with wandb.init(**project, dir=folder, name=folder.name, config=asdict(args)) as run:
        for t, x in enumerate(next(iter(results.values())).x):
            row = {x_label(args): x}
            for text, result in results.items():
                row |= {f"{name}/{text}": mean[t] for name, (mean, _) in result.curves.items()}
            run.log(row)


def print_table(results):
    """One line per agent, with mean and standard error of each column."""
    width = max(map(len, results))
    first = next(iter(results.values()))
    print(" " * width, *(name.rjust(18) for name in first.row))
    for text, result in results.items():
        cells = (f"{mean:.3f}" + f" +- {error:.3f}" * (error != 0) for mean, error in result.row.values())
        print(f"{text:{width}}", *(cell.rjust(18) for cell in cells))


def main():
    """The command line. Exit status 2 for invalid input, 130 for Ctrl-C."""
    try:
        results, folder = train(tyro.cli(Args, description=__doc__))
    except KeyboardInterrupt:
        sys.exit(130)
    except InputError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)
    print_table(results)
    print(f"results: {folder}")


if __name__ == "__main__":
    main()
