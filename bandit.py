"""Multi-armed bandits: ways to balance exploration and exploitation, on the 10-armed testbed.

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", second edition, chapter 2.

A bandit has k arms. Pulling an arm yields a reward, drawn from a normal distribution around the
arm's true mean. The agent does not know the true means. It must explore the arms to estimate them,
and exploit its estimates to collect reward. There are no states. The agents differ in how they
explore:

- greedy pulls the arm with the highest estimate. Optimistic initial estimates make it try all arms.
- epsilon-greedy pulls a random arm with probability epsilon, and otherwise acts like greedy.
- ucb adds a bonus to each estimate, which is large for arms that were rarely pulled.
- gradient has no estimates. It improves a softmax policy by stochastic gradient ascent on the
  expected reward, as policy gradient methods do for problems with states.
- thompson (Thompson 1933) pulls each arm with the posterior probability that it is the best.

Two more agents serve as references: random pulls a random arm, and cheater is told the best one.
The book's figures show neither these two nor Thompson sampling, which section 2.10 mentions.

A run is one bandit, played for T steps. Each agent plays the same N bandits, all at once, so arrays
have the shape [N] or [N, k]. The same agents play a single Gymnasium environment, with N = 1:

    env = gym.make("ArmedBanditTestbed-v0", num_arms=10, stationary=True)
    agent = EpsilonGreedy(epsilon=0.1)
    obs, info = env.reset(seed=1)
    agent.reset(seed=1, info=info)
    for _ in range(1_000):
        arm = agent.get_action()
        obs, reward, terminated, truncated, info = env.step(arm)
        agent.observe(arm, reward, info)
"""
# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "gymnasium>=1.1", "matplotlib>=3.8", "numpy>=1.26", "tqdm>=4.66", "tyro>=0.9.1",
# ]
# ///

import csv
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from itertools import count, repeat
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import tyro
from gymnasium import spaces
from tqdm import tqdm

DEFAULT_AGENTS = (
    "random",
    "greedy",
    "epsilon-greedy:epsilon=0.01",
    "epsilon-greedy:epsilon=0.1",
    "ucb:c=2",
    "greedy:initial=5,step_size=0.1",
    "gradient:step_size=0.1",
    "thompson",
    "cheater",
)


@dataclass
class Args:
    # reproduce a figure of the book, show exercise 2.5, or compare regret with the least possible
    figure: Literal["2.2", "2.3", "2.4", "2.5", "2.6", "exercise-2.5", "regret"] | None = None
    agents: tuple[str, ...] = DEFAULT_AGENTS  # to compare: name or name:parameter=value,...
    runs: int | None = None  # N, bandits per agent; default 200, or 2000 for a figure
    steps: int | None = None  # T, pulls per bandit; default 1000, or 10000 for exercise-2.5, regret
    num_arms: int = 10  # k, arms per bandit
    mean: float = 0.0  # mean of the arms' true means
    stationary: bool = True  # constant true means, from N(mean, 1); else random walks from mean
    seed: int = 1  # same seed, same results
    run_dir: str = ""  # folder for the results; default runs/bandit__<seed>__<time>


class VectorMultiArmedBandit(gym.vector.VectorEnv):
    """num_envs bandits without an end; a step pulls one arm of each. Rewards: N(true mean, 1).

    If stationary, each bandit's true means are drawn from N(mean, 1) at a reset; otherwise all
    start equal to mean and take random walks (exercise 2.5). With `means`, [k], they start there.
    info["best_arm"] is the arm that now has the highest true mean. info["regret"] is the highest
    true mean minus that of the arm pulled, both at the time of the pull.
    """

    def __init__(self, num_envs, num_arms=10, stationary=True, mean=0.0, means=None):
        self.num_envs, self.num_arms, self.stationary = num_envs, num_arms, stationary
        self.mean, self.first_means = mean, means
        self.no_state = np.zeros(num_envs, int)
        self.single_observation_space = spaces.Discrete(1)
        self.single_action_space = spaces.Discrete(num_arms)
        self.observation_space = spaces.MultiDiscrete([1] * num_envs)
        self.action_space = spaces.MultiDiscrete([num_arms] * num_envs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        first = self.mean if self.first_means is None else self.first_means
        self.means = np.zeros((self.num_envs, self.num_arms)) + first  # [N, k]
        if self.stationary and self.first_means is None:
            self.means = self.np_random.normal(self.means, 1)
        return self.no_state, self.make_info(regret=np.zeros(self.num_envs))

    def step(self, actions):
        actions = np.asarray(actions)
        if actions.dtype.kind not in "iu" or not self.action_space.contains(actions):
            accepted = f"an integer from 0 to {self.num_arms - 1} for each bandit"
            raise InputError(f"action {actions}: must be {accepted}")

        mean = self.means[np.arange(self.num_envs), actions]  # of the arms pulled, [N]
        reward = self.np_random.normal(mean, 1)
        regret = self.means.max(-1) - mean
        if not self.stationary:
            self.means = self.np_random.normal(self.means, 0.01)
        ended = np.zeros(self.num_envs, bool)
        return self.no_state, reward, ended, ended, self.make_info(regret)

    def make_info(self, regret):
        return {"best_arm": self.means.argmax(-1), "regret": regret}


def play(agent, envs, steps, seed, bar=None):
    """Reset the agent and let it play; the same seed gives the same bandits, whatever the agent.

    Returns reward, whether the best arm was pulled, and regret, [T, N] each.
    """
    env_seed, agent_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    _, info = envs.reset(seed=env_seed)
    agent.reset(agent_seed, info)
    history = np.empty((3, steps, envs.num_envs), np.float32)
    for t in range(steps):
        best_arm = info["best_arm"]  # before the step, which may move the means
        arm = agent.get_action()
        _, reward, _, _, info = envs.step(arm)
        agent.observe(arm, reward, info)
        history[:, t] = reward, arm == best_arm, info["regret"]
        if bar is not None:
            bar.update()
    return history


@dataclass
class Agent:
    """Base class: plays num_runs bandits at once. The fields of a subclass are its parameters."""

    num_arms: int = 10
    num_runs: int = 1

    def __post_init__(self):
        self.reset()

    def reset(self, seed=None, info=None):
        """Forget everything learned. info is from the environment's reset, for the cheater."""
        self.rng = np.random.default_rng(seed)
        self.run = np.arange(self.num_runs)  # [N]; table[self.run, arm] has one entry per run
        self.pulls = np.zeros((self.num_runs, self.num_arms))  # N(a), [N, k]

    def get_action(self):
        """The arms to pull next, [N]."""
        raise NotImplementedError

    def observe(self, arm, reward, info):
        """Learn from the arms pulled and their rewards, [N] each. info is for the cheater."""
        self.pulls[self.run, arm] += 1

    def random_arm(self):
        return self.rng.integers(self.num_arms, size=self.num_runs)

    def argmax(self, values):
        """Arm with the highest value, [N, k] -> [N]. Ties are broken at random."""
        ties = values == values.max(-1, keepdims=True)
        u = self.rng.random(values.shape, np.float32)
        return np.where(ties, u, -np.inf).argmax(-1)  # the largest random number breaks the tie


@dataclass
class Random(Agent):
    """Pulls a random arm."""

    def get_action(self):
        return self.random_arm()


@dataclass
class Greedy(Agent):
    """Pulls the arm with the highest estimate (Eq. 2.2).

    The estimate Q(a) is the average of the arm's rewards (Eq. 2.3). With a constant step_size,
    recent rewards have more weight (Eq. 2.5). If the initial estimate is very optimistic, the agent
    tries every arm, because rewards lower the estimate of the arm pulled (section 2.6).
    """

    initial: float = 0.0  # Q_1(a)
    step_size: float | None = None  # alpha; default 1 / N(a), which gives the average

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.q = np.full_like(self.pulls, self.initial)  # Q(a), [N, k]

    def get_action(self):
        return self.argmax(self.q)

    def observe(self, arm, reward, info):
        super().observe(arm, reward, info)
        step_size = self.step_size
        if step_size is None:
            step_size = 1 / self.pulls[self.run, arm]
        self.q[self.run, arm] += step_size * (reward - self.q[self.run, arm])  # Eq. 2.3, 2.5


@dataclass
class EpsilonGreedy(Greedy):
    """Pulls a random arm with probability epsilon, otherwise the one with the highest estimate."""

    epsilon: float = 0.1

    def get_action(self):
        explore = self.rng.random(self.num_runs) < self.epsilon
        return np.where(explore, self.random_arm(), self.argmax(self.q))


@dataclass
class UCB(Greedy):
    """Pulls the arm with the highest upper confidence bound: estimate plus bonus (Eq. 2.10)."""

    c: float = 2.0

    def get_action(self):
        t = self.pulls.sum(-1, keepdims=True) + 1
        bonus = self.c * np.sqrt(np.log(t) / np.maximum(self.pulls, 1))
        bound = np.where(self.pulls == 0, np.inf, self.q + bonus)  # arms never pulled come first
        return self.argmax(bound)


@dataclass
class GradientBandit(Agent):
    """Samples from a softmax policy (Eq. 2.11), improved by stochastic gradient ascent (Eq. 2.12).

    The baseline is the average of the rewards up to but not including time t; at t = 1 it is R_1.
    (A footnote adds that the book's figures included R_t.) It does not depend on the action, so it
    does not bias the gradient. It lowers the variance if the mean reward is far from 0.
    """

    step_size: float = 0.1  # alpha
    baseline: bool = True

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.h = np.zeros_like(self.pulls)  # preferences H(a), [N, k]
        self.average = np.zeros(self.num_runs)  # R-bar, [N]
        self.t = 0

    def policy(self):
        """Probability of each arm, [N, k] (Eq. 2.11)."""
        exp = np.exp(self.h - self.h.max(-1, keepdims=True))  # at most 1; the ratio is the same
        return exp / exp.sum(-1, keepdims=True)

    def get_action(self):
        cdf = self.policy().cumsum(-1)[:, :-1]  # the last entry, 1, could round to less than u
        u = self.rng.random((self.num_runs, 1))
        return (cdf <= u).sum(-1)  # inverse CDF

    def observe(self, arm, reward, info):
        super().observe(arm, reward, info)
        self.t += 1
        if self.t == 1:
            self.average += reward
        baseline = self.average if self.baseline else np.zeros(self.num_runs)
        one_hot = np.eye(self.num_arms)[arm]  # 1 for the arm pulled, otherwise 0
        advantage = (reward - baseline)[:, None]
        self.h += self.step_size * advantage * (one_hot - self.policy())  # Eq. 2.12
        self.average += (reward - self.average) / self.t


@dataclass
class ThompsonSampling(Agent):
    """Samples each arm's mean from its posterior and pulls the arm with the largest sample.

    The prior of each mean is N(prior_mean, prior_std^2). Rewards are assumed to have variance 1 and
    constant means.
    """

    prior_mean: float = 0.0
    prior_std: float = 1.0

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.total = np.zeros_like(self.pulls)  # sum of each arm's rewards, [N, k]

    def posterior(self):
        """Mean and standard deviation of each arm's posterior, [N, k] each."""
        prior_precision = self.prior_std**-2
        precision = prior_precision + self.pulls
        mean = (self.prior_mean * prior_precision + self.total) / precision
        return mean, precision**-0.5

    def get_action(self):
        mean, std = self.posterior()
        return self.rng.normal(mean, std).argmax(-1)

    def observe(self, arm, reward, info):
        super().observe(arm, reward, info)
        self.total[self.run, arm] += reward


@dataclass
class Cheater(Agent):
    """Pulls the best arm, which it reads from the environment's info."""

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.best_arm = np.atleast_1d(info["best_arm"]) if info else self.random_arm()

    def get_action(self):
        return self.best_arm

    def observe(self, arm, reward, info):
        super().observe(arm, reward, info)
        self.best_arm = np.atleast_1d(info["best_arm"])


def lai_robbins(means):
    """C, where regret grows at least like C log t on the bandit with these true means, [k].

    Lai and Robbins (1985): if an agent's regret on every bandit grows more slowly than any power of
    t, then, as t grows, it pulls each other arm at least log(t) / KL times. The KL divergence from the
    best arm is gap^2 / 2 for N(true mean, 1), and a pull costs gap. ucb with c^2 = 2 needs no more
    (Katehakis and Robbins 1995). C has no finite average over the testbed, where the second-best
    arm can be almost as good as the best: hence one bandit, TYPICAL_MEANS.
    """
    gap = np.max(means) - means
    return (2 / gap[gap > 0]).sum()


# From here on: the single environment, the figures, the experiment, and the command line.


class MultiArmedBandit(gym.Env):
    """One bandit: VectorMultiArmedBandit with num_envs = 1, without the first axis."""

    def __init__(self, num_arms=10, stationary=True, mean=0.0, means=None):
        self.bandits = VectorMultiArmedBandit(1, num_arms, stationary, mean, means)
        self.observation_space = self.bandits.single_observation_space
        self.action_space = self.bandits.single_action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        _, info = self.bandits.reset(seed=seed)
        return 0, {key: x.item() for key, x in info.items()}

    def step(self, action):
        _, reward, _, _, info = self.bandits.step(np.atleast_1d(action))
        info = {key: x.item() for key, x in info.items()}
        return 0, reward.item(), False, False, info  # gym.make adds the time limit


gym.register(
    "ArmedBanditTestbed-v0",
    entry_point=MultiArmedBandit,
    max_episode_steps=1_000,
    reward_threshold=1_300,  # about the return of epsilon-greedy with epsilon 0.1
    kwargs={"num_arms": 10, "stationary": True, "mean": 0.0},
)

AGENTS = {
    "random": Random,
    "greedy": Greedy,
    "epsilon-greedy": EpsilonGreedy,
    "ucb": UCB,
    "gradient": GradientBandit,
    "thompson": ThompsonSampling,
    "cheater": Cheater,
}
LIMITS = {  # of the parameters that cannot be any number
    "greedy:step_size": (0, 1),
    "epsilon-greedy:step_size": (0, 1),
    "epsilon-greedy:epsilon": (0, 1),
    "ucb:step_size": (0, 1),
    "ucb:c": (0, math.inf),
    "gradient:step_size": (0, math.inf),
    "thompson:prior_std": (0.001, 1_000),
}

PARAMETER_STUDY = {  # figure 2.6: text to which 2^x is appended, for each x in the range
    "epsilon-greedy:epsilon=": range(-7, -1),
    "gradient:step_size=": range(-5, 2),
    "ucb:c=": range(-4, 3),
    "greedy:step_size=0.1,initial=": range(-2, 3),
}
STUDIED = tuple(f"{agent}{2.0**x}" for agent, powers in PARAMETER_STUDY.items() for x in powers)
BASELINES = tuple(f"gradient:step_size={x},baseline={b}" for b in ("true", "false") for x in (0.1, 0.4))
STEP_SIZES = ("epsilon-greedy:epsilon=0.1", "epsilon-greedy:epsilon=0.1,step_size=0.1")
EXPLORERS = ("greedy", "epsilon-greedy:epsilon=0.1", "ucb:c=2", "ucb:c=1.414", "thompson")
FIGURES = {  # the flags of each
    "2.2": {"agents": ("greedy", "epsilon-greedy:epsilon=0.01", "epsilon-greedy:epsilon=0.1")},
    "2.3": {"agents": ("greedy:initial=5,step_size=0.1", "epsilon-greedy:epsilon=0.1,step_size=0.1")},
    "2.4": {"agents": ("ucb:c=2", "epsilon-greedy:epsilon=0.1")},
    "2.5": {"agents": BASELINES, "mean": 4.0},
    "2.6": {"agents": STUDIED},
    "exercise-2.5": {"agents": STEP_SIZES, "stationary": False, "steps": 10_000},
    "regret": {"agents": EXPLORERS, "steps": 10_000},
}
# The bandit of the figure "regret": the expected values of ten draws from N(0, 1), sorted.
TYPICAL_MEANS = (-1.54, -1.00, -0.66, -0.38, -0.12, 0.12, 0.38, 0.66, 1.00, 1.54)

COLUMNS = {  # of the tables: (printed label, printed decimals)
    "reward": ("reward per step", 3),
    "best_arm": ("% best, last 100 steps", 1),
    "regret": ("regret per run", 1),
}


def train(args):
    """Compare the agents and write the results. Returns table rows and folder. Raises InputError."""
    args = apply_figure(args)
    check_args(args)
    folder = results_folder(args)
    agents = {text: make_agent(text, args.num_arms, args.runs) for text in args.agents}
    means = TYPICAL_MEANS if args.figure == "regret" else None
    envs = VectorMultiArmedBandit(args.runs, args.num_arms, args.stationary, args.mean, means)
    try:  # before the long part
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "args.json").write_text(json.dumps(asdict(args), indent=2))
    except OSError as error:
        raise InputError(f"--run-dir {folder}: {error}") from error

    table, curves = [], {}
    with tqdm(total=len(agents) * args.steps, unit="step", unit_scale=True, disable=None) as bar:
        for text, agent in agents.items():
            bar.set_description(text)
            reward, best, regret = play(agent, envs, args.steps, args.seed, bar)
            percent = 100 * best
            late = percent[-100:].mean(0)
            row = with_errors(reward.mean(0), late, regret.sum(0))
            table.append((text, *row.values()))
            curves[text] = with_errors(reward, percent, regret.cumsum(0))

    save(folder, args, table, curves)
    return table, folder


def with_errors(*columns):
    """{name: mean, name_error: standard error} over runs of the COLUMNS, [N] or [T, N] each."""
    numbers = {}
    for name, column in zip(COLUMNS, columns):
        numbers[name], numbers[f"{name}_error"] = mean_and_error(column)
    return numbers


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
    """Args with the flags of --figure and the defaults of --runs, --steps. Raises InputError."""
    flags = {"runs": 200, "steps": 1_000}
    if args.figure:
        for name in ("agents", "num_arms", "mean", "stationary"):
            if getattr(args, name) != getattr(Args, name):
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"--figure {args.figure}: cannot be combined with {flag}")
        flags |= {"runs": 2_000, **FIGURES[args.figure]}
    given = {name: getattr(args, name) for name in ("runs", "steps")}
    return replace(args, **flags | {name: x for name, x in given.items() if x is not None})


def check_args(args):
    """Raises InputError if a flag is invalid. make_agent checks the agents."""
    for flag in "runs", "steps", "num_arms":
        check(f"--{flag.replace('_', '-')}", getattr(args, flag), 1)
    check("--runs times --num-arms", args.runs * args.num_arms, 1, 10**8)
    check("--runs times --steps", args.runs * args.steps, 1, 10**8)
    check("--seed", args.seed, 0)
    if not math.isfinite(args.mean):
        raise InputError(f"--mean {args.mean}: must be finite")
    if not args.agents:
        raise InputError("--agents: must name at least one agent")


def results_folder(args):
    """Path of the folder for the results. Raises InputError if it is a file or already holds results."""
    folder = Path(args.run_dir or f"runs/{Path(__file__).stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}")
    if (folder / "table.csv").exists():
        raise InputError(f"--run-dir {folder}: already holds results; choose another folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run-dir {folder}: is a file; choose a folder")
    return folder


def make_agent(text, num_arms=10, num_runs=1):
    """Agent from its name and parameters, such as "ucb:c=1,step_size=0.1". Raises InputError."""
    name, _, rest = text.partition(":")
    if name not in AGENTS:
        raise InputError(f"--agents {text}: unknown agent; use {', '.join(AGENTS)}")
    own_fields = fields(AGENTS[name])[len(fields(Agent)) :]
    defaults = {field.name: field.default for field in own_fields}
    try:
        given = dict(pair.split("=") for pair in rest.split(",") if rest)
        parameters = {key: parse(value, defaults[key]) for key, value in given.items()}
    except (ValueError, KeyError, OverflowError) as error:
        accepted = ", ".join(f"{key}={json.dumps(value)}" for key, value in defaults.items())
        message = f"--agents {text}: invalid parameter; {name} takes {accepted or 'no parameters'}"
        raise InputError(message) from error
    for key, value in parameters.items():
        low, high = LIMITS.get(f"{name}:{key}", (-math.inf, math.inf))
        check(f"--agents {text}: {key}", value or 0, low, high)
    return AGENTS[name](num_arms, num_runs, **parameters)


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


def save(folder, args, table, curves):
    """Write curves.csv, figure.png and table.csv."""
    rows = []
    for text, curve in curves.items():
        rows += zip(repeat(text), count(1), *curve.values())
    write(folder / "curves.csv", ["agent", "step", *curve], rows)
    plot(folder / "figure.png", args, table, curves)
    write(folder / "table.csv", ["agent", *curve], table)  # written last: it marks a finished run


def write(path, heading, rows):
    """Write a CSV file."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        writer.writerows(rows)


def plot(path, args, table, curves):
    """Write the figure: learning curves, regret, or for figure 2.6 the parameter study."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = 1 if args.figure in ("2.6", "regret") else 2
    size = {"figsize": (8, 1 + 4 * panels), "layout": "constrained"}
    figure, axes = plt.subplots(panels, 1, sharex=True, **size)
    if args.figure == "2.6":
        plot_parameter_study(axes, args, table)
    elif args.figure == "regret":
        plot_regret(axes, curves)
    else:
        plot_curves(*axes, curves)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_curves(upper, lower, curves):
    """Average reward, and percentage of runs that pulled the best arm, against the step."""
    for text, curve in curves.items():
        steps = range(1, len(curve["reward"]) + 1)
        upper.plot(steps, curve["reward"], label=text, linewidth=1)
        lower.plot(steps, curve["best_arm"], linewidth=1)
    upper.set(ylabel="average reward")
    lower.set(ylabel="best arm, %", xlabel="step", ylim=(0, 100))


def plot_parameter_study(axes, args, table):
    """Average reward against the last parameter, one line per agent."""
    for agent, powers in PARAMETER_STUDY.items():
        rows = [row for row in table if row[0].startswith(agent)]
        reward, error = [row[1] for row in rows], [row[2] for row in rows]
        axes.errorbar([2.0**x for x in powers], reward, error, label=agent.removesuffix("="))
    axes.set_xscale("log", base=2)
    axes.set(xlabel="parameter", ylabel=f"average reward over the first {args.steps} steps")


def plot_regret(axes, curves):
    """Total regret against log time, where logarithmic regret is a straight line."""
    for text, curve in curves.items():
        steps = np.arange(1, len(curve["regret"]) + 1)
        axes.plot(steps, curve["regret"], label=text)
    bound = lai_robbins(TYPICAL_MEANS) * np.log(steps)
    axes.plot(steps, bound, "k--", label="least slope for large t (Lai and Robbins)")
    axes.set(xscale="log", xlabel="step")
    axes.set(ylim=(0, 3 * bound[-1]), ylabel="total regret")


def print_table(table):
    """One line per agent, with mean and standard error of each column."""
    width = max(len(text) for text, *_ in table)
    labels = [label.rjust(22) for label, _ in COLUMNS.values()]
    print(" " * width, *labels)
    for text, *numbers in table:
        cells = []
        means, errors = numbers[::2], numbers[1::2]
        for mean, error, (_, digits) in zip(means, errors, COLUMNS.values()):
            cells.append(f"{mean:.{digits}f} +- {error:.{digits}f}".rjust(22))
        print(f"{text:{width}}", *cells)


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
