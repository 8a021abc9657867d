"""Multi-armed bandits: ways to balance exploration and exploitation, compared on the 10-armed testbed.

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", second edition, chapter 2.

A bandit has k arms. Pulling an arm yields a reward, drawn from a normal distribution around the arm's true mean. The
agent does not know the true means. It must explore the arms to estimate them, and exploit its estimates to collect
reward. There are no states. The agents differ in how they explore:

- greedy pulls the arm with the highest estimate. Optimistic initial estimates make it try all arms first.
- epsilon-greedy pulls an arm at random with probability epsilon, and otherwise acts like greedy.
- ucb adds a bonus for uncertainty to each estimate. The bonus is large for arms that were rarely pulled.
- gradient does not estimate the true means. It improves a softmax policy by stochastic gradient ascent on the expected
  reward, as policy gradient methods do for problems with states.
- thompson (Thompson sampling) pulls each arm with the posterior probability that it is the best.

Two more agents serve as references: random pulls an arm at random, and cheater is told which arm is the best. The
book's figures show neither these two nor Thompson sampling (Thompson 1933), which section 2.10 mentions.

A run is one bandit, played for T steps. Each agent plays the same N bandits, all of them at once: arrays have the shape
[N] or [N, k]. An agent can also play a single bandit; then the shapes are () and [k].
"""
# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "gymnasium>=1.1", "matplotlib>=3.8", "numpy>=1.26", "tqdm>=4.66", "tyro>=0.9.1", "wandb>=0.20",
# ]
# ///

import csv
import importlib.util
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import NormalDist
from typing import Literal, NamedTuple

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
    figure: Literal["2.2", "2.3", "2.4", "2.5", "2.6"] | None = None  # reproduce a figure of the book
    agents: tuple[str, ...] = DEFAULT_AGENTS  # agents to compare: name or name:parameter=value,parameter=value
    runs: int | None = None  # N, bandits per agent; default 200, or 2000 for a figure
    steps: int = 1_000  # pulls per bandit
    num_arms: int = 10  # k, arms per bandit
    mean: float = 0.0  # mean of the arms' true means
    stationary: bool = True  # constant true means, from N(mean, 1); otherwise random walks that start at mean
    seed: int = 1  # same seed, same results
    run_dir: str = ""  # folder for the results; default runs/bandit__<seed>__<time>
    track: bool = False  # also log to Weights & Biases, to $WANDB_ENTITY/$WANDB_PROJECT


@dataclass
class Agent:
    """Base class: an agent for num_runs bandits, or for a single one if num_runs is None.

    The fields that a subclass adds are the agent's parameters. Raises InputError if a field is outside its limits.
    """

    num_arms: int = 10
    num_runs: int | None = None
    limits = {"num_arms": (1, math.inf), "num_runs": (1, math.inf)}  # no annotation, so limits is not a field

    def __post_init__(self):
        for name, (low, high) in self.limits.items():
            value = getattr(self, name)
            if value is not None:
                check(name, value, low, high)
        self.reset()

    def reset(self, seed=None, info=None):
        """Forget everything learned. info is from the environment's reset; only the cheater uses it."""
        self.rng = np.random.default_rng(seed)
        self.shape = () if self.num_runs is None else (self.num_runs,)
        self.pulls = np.zeros((*self.shape, self.num_arms))  # N(a), [N, k]

    def get_action(self):
        """The arm to pull next, [N]."""
        raise NotImplementedError

    def observe(self, action, reward, info):
        """Learn from the arms pulled, [N], and their rewards, [N]. info is from the environment's step."""
        add(self.pulls, action, 1)

    def argmax(self, values):
        """Arm with the highest value, [N, k] -> [N]. Ties are broken at random."""
        ties = values == values.max(-1, keepdims=True)
        u = self.rng.random(values.shape, np.float32)
        return np.where(ties, u, np.inf).argmin(-1)  # the smallest random number breaks the tie


@dataclass
class Random(Agent):
    """Pulls an arm at random."""

    def get_action(self):
        return self.rng.integers(self.num_arms, size=self.shape)


@dataclass
class Greedy(Agent):
    """Pulls the arm with the highest estimate (Eq. 2.2).

    The estimate Q(a) is the average of the arm's rewards (Eq. 2.3). With a constant step_size, recent rewards have more
    weight (Eq. 2.5). If the initial estimate is very optimistic, the agent tries every arm, because rewards lower the
    estimate of an arm once it is pulled (section 2.6).
    """

    initial: float = 0.0
    step_size: float | None = None
    limits = Agent.limits | {"step_size": (0, 1)}

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.q = np.full_like(self.pulls, self.initial)  # Q(a), [N, k]

    def get_action(self):
        return self.argmax(self.q)

    def observe(self, action, reward, info):
        super().observe(action, reward, info)
        step_size = 1 / pick(self.pulls, action) if self.step_size is None else self.step_size
        add(self.q, action, step_size * (reward - pick(self.q, action)))


@dataclass
class EpsilonGreedy(Greedy):
    """With probability epsilon pulls an arm at random, otherwise the one with the highest estimate."""

    epsilon: float = 0.1
    limits = Greedy.limits | {"epsilon": (0, 1)}

    def get_action(self):
        explore = self.rng.random(self.shape) < self.epsilon
        random_arm = self.rng.integers(self.num_arms, size=self.shape)
        return np.where(explore, random_arm, super().get_action())


@dataclass
class UCB(Greedy):
    """Pulls the arm with the highest upper confidence bound (Eq. 2.10): its estimate plus a bonus for uncertainty."""

    c: float = 2.0
    limits = Greedy.limits | {"c": (0, math.inf)}

    def get_action(self):
        t = self.pulls.sum(-1, keepdims=True) + 1
        bonus = self.c * np.sqrt(np.log(t) / np.maximum(self.pulls, 1))
        bound = np.where(self.pulls == 0, np.inf, self.q + bonus)  # arms never pulled come first
        return self.argmax(bound)


@dataclass
class GradientBandit(Agent):
    """Samples an arm from a softmax policy (Eq. 2.11), improved by stochastic gradient ascent (Eq. 2.12).

    The baseline is the average of the earlier rewards; the book's also includes the present one. It does not depend on
    the action, so it does not bias the gradient estimate. It lowers its variance if the mean reward is far from 0.
    """

    step_size: float = 0.1
    baseline: bool = True
    limits = Agent.limits | {"step_size": (0, math.inf)}

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.h = np.zeros_like(self.pulls)  # preferences H(a), [N, k]
        self.average, self.t = None, 0

    def policy(self):
        """Probability of each arm, [N, k]."""
        exp = np.exp(self.h - self.h.max(-1, keepdims=True))
        return exp / exp.sum(-1, keepdims=True)

    def get_action(self):
        self.pi = self.policy()
        cdf = self.pi.cumsum(-1)[..., :-1]  # [N, k-1]; the last entry, 1, could round to less than u
        u = self.rng.random(self.shape)
        return (cdf < u[..., None]).sum(-1)  # inverse CDF

    def observe(self, action, reward, info):
        super().observe(action, reward, info)
        if self.average is None:
            self.average = reward  # there is no earlier reward: the first one is its own baseline
        baseline = self.average if self.baseline else 0
        step = self.step_size * (reward - baseline)
        self.h -= np.expand_dims(step, -1) * self.pi  # Eq. 2.12: h += step * (one-hot action - pi)
        add(self.h, action, step)
        self.t += 1
        self.average = self.average + (reward - self.average) / self.t


@dataclass
class ThompsonSampling(Agent):
    """Samples each arm's mean from its posterior and pulls the arm with the largest sample.

    The prior of each mean is N(prior_mean, prior_std^2). Rewards are assumed to have variance 1 and constant means.
    """

    prior_mean: float = 0.0
    prior_std: float = 1.0
    limits = Agent.limits | {"prior_std": (0.001, 1_000)}

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
        return (mean + std * self.rng.standard_normal(mean.shape)).argmax(-1)

    def observe(self, action, reward, info):
        super().observe(action, reward, info)
        add(self.total, action, reward)


@dataclass
class Cheater(Agent):
    """Pulls the best arm, which it reads from the environment's info."""

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.best_arm = np.broadcast_to(info["best_arm"] if info else 0, self.shape)

    def get_action(self):
        return self.best_arm

    def observe(self, action, reward, info):
        super().observe(action, reward, info)
        self.best_arm = np.asarray(info["best_arm"])


def pick(table, arm):
    """table[n, arm[n]] for each bandit n: [N, k], [N] -> [N]."""
    index = np.asarray(arm)[..., None]
    return np.take_along_axis(table, index, -1)[..., 0]


def add(table, arm, amount):
    """table[n, arm[n]] += amount[n] for each bandit n."""
    index = np.asarray(arm)[..., None]
    total = np.take_along_axis(table, index, -1) + np.expand_dims(amount, -1)
    np.put_along_axis(table, index, total, -1)


AGENTS = {
    "random": Random,
    "greedy": Greedy,
    "epsilon-greedy": EpsilonGreedy,
    "ucb": UCB,
    "gradient": GradientBandit,
    "thompson": ThompsonSampling,
    "cheater": Cheater,
}

PARAMETER_STUDY = {  # figure 2.6: text to which 2^x is appended, for each x in the range
    "epsilon-greedy:epsilon=": range(-7, -1),
    "gradient:step_size=": range(-5, 2),
    "ucb:c=": range(-4, 3),
    "greedy:step_size=0.1,initial=": range(-2, 3),
}
FIGURES = {
    "2.2": ("greedy", "epsilon-greedy:epsilon=0.01", "epsilon-greedy:epsilon=0.1"),
    "2.3": ("greedy:initial=5,step_size=0.1", "epsilon-greedy:epsilon=0.1,step_size=0.1"),
    "2.4": ("ucb:c=2", "epsilon-greedy:epsilon=0.1"),
    "2.5": (
        "gradient:step_size=0.1,baseline=true",
        "gradient:step_size=0.4,baseline=true",
        "gradient:step_size=0.1,baseline=false",
        "gradient:step_size=0.4,baseline=false",
    ),
    "2.6": tuple(f"{agent}{2.0**x}" for agent, powers in PARAMETER_STUDY.items() for x in powers),
}


# From here on: the environment, the experiment, and the command line.


class VectorMultiArmedBandit(gym.vector.VectorEnv):
    """num_envs bandits; a step pulls one arm of each. All episodes are truncated after max_episode_steps steps.

    If stationary, true means are drawn from N(mean, 1). Otherwise all of them start equal to mean, and each takes a
    random walk with steps from N(0, 0.01^2). Rewards are drawn from N(true mean, 1).

    info["best_arm"] is the arm that now has the highest true mean. info["regret"] is the highest true mean minus the
    true mean of the arm pulled, both at the time of the pull.
    """

    metadata = {"render_modes": [], "autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs=1,
        num_arms=10,
        stationary=True,
        mean=0.0,
        max_episode_steps=1_000,
        render_mode=None,
    ):
        check("num_envs", num_envs, 1)
        check("num_arms", num_arms, 1)
        check("max_episode_steps", max_episode_steps, 1)
        if not math.isfinite(mean):
            raise InputError(f"mean {mean}: must be finite")
        self.num_envs, self.num_arms, self.stationary, self.mean = num_envs, num_arms, stationary, mean
        self.max_episode_steps, self.render_mode = max_episode_steps, render_mode
        self.single_observation_space = spaces.Discrete(1)
        self.single_action_space = spaces.Discrete(num_arms)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.means = np.full((self.num_envs, self.num_arms), float(self.mean))  # [N, k]
        if self.stationary:
            self.means += self.np_random.standard_normal(self.means.shape)
        self.find_best_arms()
        return np.zeros(self.num_envs, int), self.make_info(np.zeros(self.num_envs))

    def step(self, actions):
        terminated = np.zeros(self.num_envs, bool)
        if self.t == self.max_episode_steps:  # autoreset: this step ignores the actions and starts new episodes
            obs, info = self.reset()
            return obs, np.zeros(self.num_envs), terminated, terminated.copy(), info
        actions = self.checked(actions)
        pulled_mean = pick(self.means, actions)
        reward = pulled_mean + self.np_random.standard_normal(self.num_envs)
        regret = self.highest_mean - pulled_mean
        if not self.stationary:
            self.means += self.np_random.normal(0, 0.01, self.means.shape)  # exercise 2.5
            self.find_best_arms()
        self.t += 1
        truncated = np.full(self.num_envs, self.t == self.max_episode_steps)
        return np.zeros(self.num_envs, int), reward, terminated, truncated, self.make_info(regret)

    def checked(self, actions):
        """The actions as an array. Raises InputError if one of them is not an arm."""
        actions = np.asarray(actions)
        legal = actions.shape == (self.num_envs,) and np.issubdtype(actions.dtype, np.integer)
        if not legal or np.any((actions < 0) | (actions >= self.num_arms)):
            raise InputError(f"action {actions}: must be an integer from 0 to {self.num_arms - 1} for each bandit")
        return actions

    def find_best_arms(self):
        self.best_arm = self.means.argmax(-1)
        self.highest_mean = self.means.max(-1)

    def make_info(self, regret):
        """As in Gymnasium's vector environments, info["_key"] is the mask of bandits for which info["key"] is valid."""
        info = {"best_arm": self.best_arm.copy(), "regret": regret}
        return info | {f"_{key}": np.ones(self.num_envs, bool) for key in info}


class MultiArmedBandit(gym.Env):
    """A single bandit: VectorMultiArmedBandit with num_envs = 1, without the first axis, and with rendering."""

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 4}

    def __init__(self, num_arms=10, stationary=True, mean=0.0, render_mode=None):
        no_limit = math.inf  # gym.make adds the time limit
        self.bandits = VectorMultiArmedBandit(1, num_arms, stationary, mean, no_limit)
        self.observation_space = self.bandits.single_observation_space
        self.action_space = self.bandits.single_action_space
        self.render_mode, self.figure = render_mode, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bandits.reset(seed=seed)
        self.last_pull = None
        return 0, {"best_arm": int(self.bandits.best_arm[0]), "regret": 0.0}

    def step(self, action):
        _, reward, _, _, info = self.bandits.step(np.array([action]))
        reward, regret = float(reward[0]), float(info["regret"][0])
        self.last_pull = int(action), reward
        if self.render_mode == "human":
            self.render()
        return 0, reward, False, False, {"best_arm": int(self.bandits.best_arm[0]), "regret": regret}

    def render(self):
        """Each arm's reward distribution as a violin, the best arm's darker, and the last reward as a point."""
        if self.render_mode is None:
            return gym.logger.warn("render() needs gym.make(..., render_mode='human' or 'rgb_array')")
        import matplotlib.pyplot as plt

        if self.figure is None:
            self.figure, self.axes = plt.subplots(figsize=(8, 4), layout="constrained")
        self.draw_arms()
        if self.render_mode == "human":
            return plt.pause(1 / self.metadata["render_fps"])
        self.figure.canvas.draw()
        return np.asarray(self.figure.canvas.buffer_rgba())[..., :3].copy()

    def draw_arms(self):
        arms = range(self.bandits.num_arms)
        quantiles = [NormalDist().inv_cdf(p) for p in np.linspace(0.001, 0.999, 200)]
        rewards = np.add.outer(quantiles, self.bandits.means[0])  # [200, k]
        self.axes.clear()
        violins = self.axes.violinplot(rewards, arms, showmeans=True, showextrema=False)
        for arm, violin in enumerate(violins["bodies"]):
            violin.set_alpha(0.7 if arm == self.bandits.best_arm[0] else 0.3)
        if self.last_pull:
            self.axes.plot(*self.last_pull, "o", color="black")
        self.axes.set(xlabel="arm", ylabel="reward", xticks=arms)

    def close(self):
        if self.figure is not None:
            import matplotlib.pyplot as plt

            plt.close(self.figure)
            self.figure = None


gym.register(
    "ArmedBanditTestbed-v0",
    entry_point=MultiArmedBandit,
    vector_entry_point=VectorMultiArmedBandit,
    max_episode_steps=1_000,
    reward_threshold=1_300,  # about the return of epsilon-greedy with epsilon 0.1
    nondeterministic=False,  # the seed determines all random numbers
    kwargs={"num_arms": 10, "stationary": True, "mean": 0.0},
)


class Curves(NamedTuple):
    """Averages over runs at each step, [T] each, with their standard errors."""

    reward: np.ndarray
    reward_error: np.ndarray
    best_arm: np.ndarray  # fraction of runs that pulled the best arm
    best_arm_error: np.ndarray


COLUMNS = {  # name in table.csv: (printed label, printed decimals)
    "reward": ("reward per step", 3),
    "best_arm": ("% best, last 100 steps", 1),
    "regret": ("regret per run", 1),
}


def train(args):
    """Compare the agents and write the results. Returns the table's rows and the folder. Raises InputError."""
    args = apply_figure(args)
    check_args(args)
    folder = results_folder(args)
    common = {"num_arms": args.num_arms, "num_runs": args.runs}
    agents = {text: make_agent(text, **common) for text in args.agents}
    envs = gym.make_vec(
        "ArmedBanditTestbed-v0",
        num_envs=args.runs,
        max_episode_steps=args.steps,
        num_arms=args.num_arms,
        stationary=args.stationary,
        mean=args.mean,
    )
    try:  # before the long part
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "args.json").write_text(json.dumps(asdict(args), indent=2))
    except OSError as error:
        raise InputError(f"--run-dir {folder}: {error}") from error

    table, curves = [], {}
    total = len(agents) * args.steps
    with tqdm(total=total, unit="step", unit_scale=True, disable=None) as bar:
        for text, agent in agents.items():
            bar.set_description(text)
            reward, best, regret = play(agent, envs, args.steps, args.seed, bar)
            table.append((text, *summarize(reward, best, regret)))
            curves[text] = Curves(*mean_and_error(reward), *mean_and_error(best))

    save(folder, args, table, curves)
    if args.track:
        log_to_wandb(folder, args, curves)
    return table, folder


def play(agent, envs, steps, seed, bar=None):
    """Reset the agent and let it play. Returns reward, whether the best arm was pulled, and regret, [T, N] each.

    The same seed gives the same bandits, whatever the agent. steps must not exceed the length of an episode.
    """
    env_seed, agent_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    _, info = envs.reset(seed=env_seed)
    agent.reset(agent_seed, info)
    rows = []
    for _ in range(steps):
        best_arm = info["best_arm"]  # before the step, which may move the means
        action = agent.get_action()
        _, reward, _, _, info = envs.step(action)
        agent.observe(action, reward, info)
        rows.append((reward, action == best_arm, info["regret"]))
        if bar is not None:
            bar.update()
    return [np.stack(column) for column in zip(*rows)]


def summarize(reward, best, regret):
    """An agent's row in the table: mean and standard error of each column over runs."""
    percent_best = 100 * best[-100:].mean(0)
    columns = reward.mean(0), percent_best, regret.sum(0)  # [N] each
    return [number for column in columns for number in mean_and_error(column)]


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
    """Args with the agents and the mean of --figure, and with the default of --runs. Raises InputError."""
    runs = args.runs
    if runs is None:
        runs = 2_000 if args.figure else 200
    if args.figure is None:
        return replace(args, runs=runs)
    for name in ("agents", "num_arms", "mean", "stationary"):
        if getattr(args, name) != getattr(Args, name):
            raise InputError(f"--figure {args.figure}: cannot be combined with --{name.replace('_', '-')}")
    mean = 4.0 if args.figure == "2.5" else 0.0
    return replace(args, runs=runs, agents=FIGURES[args.figure], mean=mean)


def check_args(args):
    """Raises InputError if a flag is invalid. make_agent checks the agents."""
    check("--runs", args.runs, 1)
    check("--steps", args.steps, 1)
    check("--num-arms", args.num_arms, 1)
    check("--runs times --num-arms", args.runs * args.num_arms, 1, 10**8)
    check("--seed", args.seed, 0)
    if not math.isfinite(args.mean):
        raise InputError(f"--mean {args.mean}: must be finite")
    if not args.agents:
        raise InputError("--agents: must name at least one agent")
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


def save(folder, args, table, curves):
    """Write curves.csv, figure.png and table.csv."""
    rows = []
    for text, curve in curves.items():
        rows += [(text, t + 1, *numbers) for t, numbers in enumerate(zip(*curve))]
    write(folder / "curves.csv", ["agent", "step", *Curves._fields], rows)
    plot(folder / "figure.png", args, table, curves)
    heading = [name for column in COLUMNS for name in (column, f"{column}_error")]
    write(folder / "table.csv", ["agent", *heading], table)  # written last: it marks a finished run


def write(path, heading, rows):
    """Write a CSV file."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        writer.writerows(rows)


def plot(path, args, table, curves):
    """Write the figure: learning curves, or for figure 2.6 the average reward against the parameter."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if args.figure == "2.6":
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        plot_parameter_study(axes, args, table)
    else:
        size = {"figsize": (8, 8), "layout": "constrained"}
        figure, (upper, lower) = plt.subplots(2, 1, sharex=True, **size)
        plot_curves(upper, lower, args, curves)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_parameter_study(axes, args, table):
    """Average reward against the last parameter, one line per agent."""
    for agent, powers in PARAMETER_STUDY.items():
        rows = [row for row in table if row[0].startswith(agent)]
        reward, error = [row[1] for row in rows], [row[2] for row in rows]
        axes.errorbar([2.0**x for x in powers], reward, error, label=agent.removesuffix("="))
    axes.set_xscale("log", base=2)
    axes.set(xlabel="parameter", ylabel=f"average reward over the first {args.steps} steps")
    axes.legend()


def plot_curves(upper, lower, args, curves):
    """Average reward, and percentage of runs that pulled the best arm, against the step."""
    steps = range(1, args.steps + 1)
    for text, curve in curves.items():
        upper.plot(steps, curve.reward, label=text, linewidth=1)
        lower.plot(steps, 100 * curve.best_arm, linewidth=1)
    upper.set(ylabel="average reward")
    lower.set(ylabel="best arm, %", xlabel="step", ylim=(0, 100))


def log_to_wandb(folder, args, curves):
    """Log reward and best_arm of each agent at each step. If that fails, say so; the results are already saved."""
    stdin, sys.stdin = sys.stdin, None  # without an API key, do not wait for one to be typed
    try:
        import wandb

        with wandb.init(dir=folder, name=folder.name, config=asdict(args)) as run:
            for t in range(args.steps):
                row = {f"reward/{text}": curve.reward[t] for text, curve in curves.items()}
                row |= {f"best_arm/{text}": curve.best_arm[t] for text, curve in curves.items()}
                run.log(row)
    except Exception as error:
        print(f"--track: not logged to Weights & Biases: {error}", file=sys.stderr)
    finally:
        sys.stdin = stdin


def print_table(table):
    """One line per agent, with mean and standard error of each column."""
    width = max(len(text) for text, *_ in table)
    print(" " * width, *(label.rjust(22) for label, _ in COLUMNS.values()))
    for text, *numbers in table:
        cells = []
        for i, (_, decimals) in enumerate(COLUMNS.values()):
            mean, error = numbers[2 * i : 2 * i + 2]
            cell = f"{mean:.{decimals}f} +- {error:.{decimals}f}"
            cells.append(cell.rjust(22))
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
