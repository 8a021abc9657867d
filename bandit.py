# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "gymnasium>=1.1", "matplotlib>=3.8", "numpy>=1.26", "tqdm>=4.66", "tyro>=0.9", "wandb>=0.18",
# ]
# ///
"""The k-armed testbed: exploration, with nothing else in the way.

Sutton and Barto (2018), "Reinforcement Learning: An Introduction", second edition, chapter 2.

A bandit has k arms. Pulling one pays a reward drawn around the arm's mean, which is not known; there is no state, and
no action has any consequence but its reward. All that is left of reinforcement learning is its dilemma: to pull the arm
that seems best, or one that might be better? Each agent below is an answer:

- greedy pulls the arm that seems best; it tries all of them only if it expects too much of each at first;
- epsilon-greedy does the same, but now and then, for ever, pulls any arm;
- UCB adds to what an arm seems to be worth how uncertain that is, so that it tries what it knows little about;
- Thompson sampling pulls an arm as often as it is likely, by all it has seen, to be the best;
- the gradient bandit has no estimates, but a policy that it improves by stochastic gradient ascent: vpg.py without
  states.

Not in the book's figures: Thompson sampling (1933; section 2.10 mentions it), the cheater, who is told the best arm,
and a random agent. All play the same bandits, and all bandits at once: arrays are [N] or [N, k] for N bandits of k
arms, and () or [k] for a single one.
"""

import csv
import importlib.util
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import gymnasium as gym
import numpy as np
import tyro
from gymnasium import spaces
from tqdm import tqdm

DEFAULT = ("random", "greedy", "epsilon-greedy:epsilon=0.01", "epsilon-greedy:epsilon=0.1", "ucb:c=2")
DEFAULT += ("greedy:initial=5,step_size=0.1", "gradient:step_size=0.1", "thompson", "cheater")


@dataclass
class Args:
    figure: Literal["2.2", "2.3", "2.4", "2.5", "2.6"] | None = None  # of the book: its agents and arms, 2000 runs
    agents: tuple[str, ...] = DEFAULT  # who plays: a name, then perhaps a colon and parameters
    runs: int | None = None  # N, bandits that each agent plays; default 200, for a figure 2000
    steps: int = 1_000  # pulls of each bandit
    num_arms: int = 10  # k
    mean: float = 0.0  # what the arms' means are on average
    stationary: bool = True  # the arms keep their means; otherwise all begin equal and drift apart
    seed: int = 1  # same seed, same numbers
    run_dir: str = ""  # folder for the results; default runs/bandit__<seed>__<time>
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "rl"  # project to log to
    wandb_entity: str | None = None  # team to log to


class BadInput(ValueError):
    """What was asked for cannot be done. The message names the flag and says what would do."""


def check(name, number, low, high=math.inf):
    """Raises BadInput unless number lies between low and high; nan never does."""
    if not low <= number <= high:
        raise BadInput(f"{name} {number}: must lie between {low} and {high}")


class Arms:
    """True means of the arms of bandits, [..., k]: from N(mean, 1), or all equal to mean and then a random walk."""

    def __init__(self, num_arms, stationary, mean):
        check("num_arms", num_arms, 1)
        if not math.isfinite(mean):
            raise BadInput(f"mean {mean}: must be finite")
        self.num_arms, self.stationary, self.mean = num_arms, stationary, mean

    def reset(self, rng, shape=()):
        self.rng = rng
        self.means = np.full((*shape, self.num_arms), float(self.mean))
        if self.stationary:
            self.means += rng.standard_normal(self.means.shape)
        self.best, self.highest = self.means.argmax(-1), self.means.max(-1)

    def pull(self, arm):
        """Reward of each pull, from N(its arm's mean, 1), and its regret: by how much the best arm's mean is higher."""
        arm = np.asarray(arm)
        if arm.shape != self.best.shape or not np.issubdtype(arm.dtype, np.integer):
            raise BadInput(f"action {arm}: must be an arm's number for each bandit, shape {self.best.shape}")
        if np.any((arm < 0) | (arm >= self.num_arms)):
            raise BadInput(f"action {arm}: arms are 0 to {self.num_arms - 1}")
        mean = pick(self.means, arm)
        reward, regret = mean + self.rng.standard_normal(arm.shape), self.highest - mean
        if not self.stationary:
            self.means += self.rng.normal(0, 0.01, self.means.shape)  # exercise 2.5
            self.best, self.highest = self.means.argmax(-1), self.means.max(-1)
        return reward, regret


class MultiArmedBandit(gym.Env):
    """One bandit. info: best_arm, the one with the highest mean now; regret, of the pull just made."""

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 4}

    def __init__(self, num_arms=10, stationary=True, mean=0.0, render_mode=None):
        self.arms, self.render_mode, self.figure = Arms(num_arms, stationary, mean), render_mode, None
        self.observation_space, self.action_space = spaces.Discrete(1), spaces.Discrete(num_arms)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.arms.reset(self.np_random)
        self.last = None
        return 0, {"best_arm": int(self.arms.best), "regret": 0.0}

    def step(self, action):
        reward, regret = self.arms.pull(action)
        self.last = int(action), float(reward)
        if self.render_mode == "human":
            self.render()
        return 0, float(reward), False, False, {"best_arm": int(self.arms.best), "regret": float(regret)}

    def render(self):
        """The arms' rewards as violins, their means as lines, the best one darker, and the last reward as a point."""
        if self.render_mode is None:
            return gym.logger.warn("render() needs gym.make(..., render_mode='human' or 'rgb_array')")
        import matplotlib.pyplot as plt

        if self.figure is None:
            self.figure, self.axes = plt.subplots(figsize=(8, 4), layout="constrained")
        self.axes.clear()
        spread = np.array([NormalDist().inv_cdf(p) for p in np.linspace(0.001, 0.999, 200)])  # of rewards about a mean
        violins = self.axes.violinplot(
            (self.arms.means[:, None] + spread).T, range(self.arms.num_arms), showmeans=True, showextrema=False
        )
        for arm, body in enumerate(violins["bodies"]):
            body.set_alpha(0.7 if arm == self.arms.best else 0.3)
        if self.last:
            self.axes.plot(*self.last, "o", color="black")
        self.axes.set(xlabel="arm", ylabel="reward", xticks=range(self.arms.num_arms))
        if self.render_mode == "human":
            return plt.pause(1 / self.metadata["render_fps"])
        self.figure.canvas.draw()
        return np.asarray(self.figure.canvas.buffer_rgba())[..., :3].copy()

    def close(self):
        if self.figure is not None:
            import matplotlib.pyplot as plt

            plt.close(self.figure)
            self.figure = None


class VectorMultiArmedBandit(gym.vector.VectorEnv):
    """num_envs bandits, pulled in one call; each is distributed like a MultiArmedBandit. All episodes end together."""

    metadata = {"render_modes": [], "autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs=1, num_arms=10, stationary=True, mean=0.0, max_episode_steps=1_000, render_mode=None):
        check("num_envs", num_envs, 1)
        check("max_episode_steps", max_episode_steps, 1)
        self.num_envs, self.max_episode_steps, self.render_mode = num_envs, max_episode_steps, render_mode
        self.arms = Arms(num_arms, stationary, mean)
        self.single_observation_space, self.single_action_space = spaces.Discrete(1), spaces.Discrete(num_arms)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def result(self, reward, ended, regret):
        """What step returns; info["_..."] says, as Gymnasium's vector environments do, whose info["..."] holds."""
        everyone, nobody = np.ones(self.num_envs, bool), np.zeros(self.num_envs, bool)
        info = {"best_arm": self.arms.best.copy(), "_best_arm": everyone, "regret": regret, "_regret": everyone}
        return np.zeros(self.num_envs, int), reward, nobody, nobody | ended, info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.arms.reset(self.np_random, (self.num_envs,))
        self.t = 0
        obs, _, _, _, info = self.result(0, False, np.zeros(self.num_envs))
        return obs, info

    def step(self, actions):
        if self.t == self.max_episode_steps:  # all episodes ended with the step before
            self.reset()
            return self.result(np.zeros(self.num_envs), False, np.zeros(self.num_envs))
        reward, regret = self.arms.pull(actions)
        self.t += 1
        return self.result(reward, self.t == self.max_episode_steps, regret)


gym.register(
    "ArmedBanditTestbed-v0",
    entry_point=MultiArmedBandit,
    vector_entry_point=VectorMultiArmedBandit,
    max_episode_steps=1_000,
    reward_threshold=1_300,  # about what epsilon-greedy gets with epsilon 0.1
    nondeterministic=False,  # random, but all of it by the seed
    kwargs={"num_arms": 10, "stationary": True, "mean": 0.0},
)


@dataclass
class Agent:
    """Plays one bandit, or num_runs of them at once; the other fields of an agent are its parameters."""

    num_arms: int = 10
    num_runs: int | None = None

    def __post_init__(self):
        """Raises BadInput if a parameter makes no sense."""
        check("num_arms", self.num_arms, 1)
        check("num_runs", 1 if self.num_runs is None else self.num_runs, 1)
        self.reset()

    def reset(self, seed=None, info=None):
        """Forget everything; info is what the environment's reset said."""
        self.rng = np.random.default_rng(seed)
        self.shape = () if self.num_runs is None else (self.num_runs,)
        self.pulls = np.zeros((*self.shape, self.num_arms))  # N(a), how often each arm was pulled

    def get_action(self):
        """An arm for each bandit, [N]."""
        raise NotImplementedError

    def observe(self, action, reward, info):
        """Learn from what the pulls paid; [N] each."""
        add(self.pulls, action, 1)

    def argmax(self, table):
        """Number of the largest entry, [N, k] -> [N]; ties are broken at random."""
        ties = table == table.max(-1, keepdims=True)
        return (ties * (1 - self.rng.random(table.shape, np.float32))).argmax(-1)  # 1 - ..., for it may draw 0


@dataclass
class Random(Agent):
    """Any arm."""

    def get_action(self):
        return self.rng.integers(self.num_arms, size=self.shape)


@dataclass
class Greedy(Agent):
    """The arm with the highest estimate (Eq. 2.2).

    An estimate is the average of the arm's rewards (Eq. 2.3), or with a constant step_size one in which older rewards
    count less (Eq. 2.5). Before the first reward it is initial; if that is too high, every arm disappoints, and so all
    are tried (section 2.6).
    """

    initial: float = 0.0
    step_size: float | None = None

    def __post_init__(self):
        check("step_size", self.step_size or 0, 0, 1)
        super().__post_init__()

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.q = np.full_like(self.pulls, self.initial)  # Q(a)

    def get_action(self):
        return self.argmax(self.q)

    def observe(self, action, reward, info):
        super().observe(action, reward, info)
        step_size = 1 / pick(self.pulls, action) if self.step_size is None else self.step_size
        add(self.q, action, step_size * (reward - pick(self.q, action)))


@dataclass
class EpsilonGreedy(Greedy):
    """The arm with the highest estimate, or with probability epsilon any arm."""

    epsilon: float = 0.1

    def __post_init__(self):
        check("epsilon", self.epsilon, 0, 1)
        super().__post_init__()

    def get_action(self):
        explore = self.rng.random(self.shape) < self.epsilon
        return np.where(explore, self.rng.integers(self.num_arms, size=self.shape), super().get_action())


@dataclass
class UCB(Greedy):
    """The arm with the highest upper confidence bound: its estimate, and c times how uncertain that is (Eq. 2.10)."""

    c: float = 2.0

    def __post_init__(self):
        check("c", self.c, 0)
        super().__post_init__()

    def get_action(self):
        t = self.pulls.sum(-1, keepdims=True) + 1
        bound = self.q + self.c * np.sqrt(np.log(t) / np.maximum(self.pulls, 1))
        return self.argmax(np.where(self.pulls == 0, np.inf, bound))  # arms not yet tried first


@dataclass
class GradientBandit(Agent):
    """A softmax policy (Eq. 2.11) that follows the gradient of the expected reward (Eq. 2.12).

    The baseline is the average of the rewards before this one. A baseline that does not depend on the action leaves the
    expected step as it is, as in vpg.py; this one takes from each step the noise of rewards that are all far from 0.
    """

    step_size: float = 0.1
    baseline: bool = True

    def __post_init__(self):
        check("step_size", self.step_size, 0)
        super().__post_init__()

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.h = np.zeros_like(self.pulls)  # preferences H(a)
        self.average, self.t = None, 0

    def policy(self):
        """Probability of each arm, [N, k]."""
        exp = np.exp(self.h - self.h.max(-1, keepdims=True))
        return exp / exp.sum(-1, keepdims=True)

    def get_action(self):
        self.pi = self.policy()
        below = self.pi.cumsum(-1)[..., :-1] < self.rng.random(self.shape)[..., None]
        return below.sum(-1)

    def observe(self, action, reward, info):
        super().observe(action, reward, info)
        if self.average is None:
            self.average = reward  # the first reward is its own baseline, and teaches nothing
        step = self.step_size * (reward - (self.average if self.baseline else 0))
        self.h -= np.expand_dims(step, -1) * self.pi
        add(self.h, action, step)
        self.t += 1
        self.average = self.average + (reward - self.average) / self.t


@dataclass
class ThompsonSampling(Agent):
    """Draws a mean for each arm from what it believes, and pulls the arm whose draw is highest.

    It believes at first that means come from N(prior_mean, prior_std^2), and always that rewards come from N(mean, 1)
    and that no arm drifts; a reward changes its belief by Bayes' rule.
    """

    prior_mean: float = 0.0
    prior_std: float = 1.0

    def __post_init__(self):
        check("prior_std", self.prior_std, 0.001, 1_000)
        super().__post_init__()

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.total = np.zeros_like(self.pulls)  # sum of each arm's rewards

    def posterior(self):
        """Mean and standard deviation of the belief about each arm's mean, [N, k] each."""
        precision = self.prior_std**-2 + self.pulls
        return (self.prior_mean * self.prior_std**-2 + self.total) / precision, precision**-0.5

    def get_action(self):
        mean, std = self.posterior()
        return (mean + std * self.rng.standard_normal(mean.shape)).argmax(-1)

    def observe(self, action, reward, info):
        super().observe(action, reward, info)
        add(self.total, action, reward)


@dataclass
class Cheater(Agent):
    """The best arm, which it is told."""

    def reset(self, seed=None, info=None):
        super().reset(seed, info)
        self.best = np.broadcast_to(info["best_arm"] if info else 0, self.shape)

    def get_action(self):
        return self.best

    def observe(self, action, reward, info):
        super().observe(action, reward, info)
        self.best = np.asarray(info["best_arm"])


def pick(table, arm):
    """table[..., arm] for each bandit: [N, k], [N] -> [N]."""
    return np.take_along_axis(table, np.asarray(arm)[..., None], -1)[..., 0]


def add(table, arm, amount):
    """table[..., arm] += amount for each bandit."""
    np.put_along_axis(table, np.asarray(arm)[..., None], np.expand_dims(pick(table, arm) + amount, -1), -1)


AGENTS = {"random": Random, "greedy": Greedy, "epsilon-greedy": EpsilonGreedy, "ucb": UCB, "gradient": GradientBandit}
AGENTS |= {"thompson": ThompsonSampling, "cheater": Cheater}

POWERS = {"epsilon-greedy:epsilon={}": (-7, -2), "gradient:step_size={}": (-5, 1)}  # of two, as in figure 2.6
POWERS |= {"ucb:c={}": (-4, 2), "greedy:step_size=0.1,initial={}": (-2, 2)}
FIGURES = {
    "2.2": ("greedy", "epsilon-greedy:epsilon=0.01", "epsilon-greedy:epsilon=0.1"),
    "2.3": ("greedy:initial=5,step_size=0.1", "epsilon-greedy:epsilon=0.1,step_size=0.1"),
    "2.4": ("ucb:c=2", "epsilon-greedy:epsilon=0.1"),
    "2.5": tuple(f"gradient:step_size={a},baseline={b}" for b in ("true", "false") for a in (0.1, 0.4)),
    "2.6": tuple(name.format(2.0**i) for name, (low, high) in POWERS.items() for i in range(low, high + 1)),
}


def make_agent(text, num_arms=10, num_runs=None):
    """An agent from its name and parameters, such as "ucb:c=2,step_size=0.1". Raises BadInput."""
    name, _, rest = text.partition(":")
    if name not in AGENTS:
        raise BadInput(f"--agents {text}: there are {', '.join(AGENTS)}")
    known = {field.name: field.default for field in fields(AGENTS[name])[2:]}  # the first two are num_arms, num_runs
    try:
        parameters = {key: json.loads(value) for key, value in (part.split("=") for part in rest.split(",") if rest)}
        for key, value in parameters.items():
            if key not in known or isinstance(value, bool) != isinstance(known[key], bool) or not math.isfinite(value):
                raise ValueError
        return AGENTS[name](num_arms, num_runs, **parameters)
    except BadInput as error:
        raise BadInput(f"--agents {text}: {error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        can = ", ".join(f"{key}={json.dumps(default)}" for key, default in known.items()) or "no parameters"
        raise BadInput(f"--agents {text}: {name} takes {can}") from error


def play(agent, envs, steps, seed, bar=None):
    """Rewards, whether the best arm was pulled, and regrets, [steps, N] each, of an agent that starts afresh.

    steps must not exceed an episode.
    """
    env_seed, agent_seed = np.random.SeedSequence(seed).generate_state(2).tolist()  # the same bandits for each agent
    _, info = envs.reset(seed=env_seed)
    agent.reset(agent_seed, info)
    rows = []
    for _ in range(steps):
        best, action = info["best_arm"], agent.get_action()
        _, reward, _, _, info = envs.step(action)
        agent.observe(action, reward, info)
        rows.append((reward, action == best, info["regret"]))
        if bar is not None:
            bar.update()
    return [np.stack(column) for column in zip(*rows)]


def mean_and_error(x):
    """Mean over runs, and its standard error, nan if there is one run: [..., N] -> [...] each."""
    runs = x.shape[-1]
    return x.mean(-1), x.std(-1, ddof=1) / runs**0.5 if runs > 1 else np.full(x.shape[:-1], np.nan)


def train(args):
    """Let all agents play and write what came of it. Returns the table's rows and the folder. Raises BadInput."""
    if args.figure:
        for name in ("agents", "num_arms", "mean", "stationary"):
            if getattr(args, name) != getattr(Args, name):
                raise BadInput(f"--figure {args.figure}: has its own --{name.replace('_', '-')}")
        mean = 4.0 if args.figure == "2.5" else 0.0
        args = replace(args, agents=FIGURES[args.figure], mean=mean)
    args = replace(args, runs=(2_000 if args.figure else 200) if args.runs is None else args.runs)
    for name in ("runs", "steps", "num_arms"):
        check(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    check("--seed", args.seed, 0)
    check("--mean", abs(args.mean), 0, sys.float_info.max)
    if args.track and not importlib.util.find_spec("wandb"):
        raise BadInput("--track: pip install wandb")
    folder = Path(args.run_dir or f"runs/bandit__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.exists() and (not folder.is_dir() or (folder / "table.csv").exists()):
        raise BadInput(f"--run-dir {folder}: holds results or is a file; take another")
    if not args.agents:
        raise BadInput("--agents: name one or more")
    agents = {text: make_agent(text, args.num_arms, args.runs) for text in args.agents}
    kwargs = {"num_arms": args.num_arms, "stationary": args.stationary, "mean": args.mean}
    envs = gym.make_vec("ArmedBanditTestbed-v0", num_envs=args.runs, max_episode_steps=args.steps, **kwargs)

    table, curves = [], {}
    with tqdm(total=len(agents) * args.steps, unit="step", unit_scale=True, disable=None) as bar:
        for text, agent in agents.items():
            bar.set_description(text)
            reward, best, regret = play(agent, envs, args.steps, args.seed, bar)
            curves[text] = *mean_and_error(reward), *mean_and_error(best)
            columns = reward.mean(0), 100 * best[-100:].mean(0), regret.sum(0)  # of each run
            table.append((text, *(number for column in columns for number in mean_and_error(column))))

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(asdict(args), indent=2))
    heading = ["agent", "step", "reward", "reward_error", "best_arm", "best_arm_error"]
    rows = [(text, t + 1, *row) for text, curve in curves.items() for t, row in enumerate(zip(*curve))]
    write(folder / "curves.csv", heading, rows)
    heading = ["agent", "reward", "reward_error", "best_arm", "best_arm_error", "regret", "regret_error"]
    draw(folder / "figure.png", args, table, curves)
    write(folder / "table.csv", heading, table)
    if args.track:
        import wandb

        where = {"project": args.wandb_project_name, "entity": args.wandb_entity, "dir": folder}
        with wandb.init(**where, name=folder.name, config=asdict(args)) as run:
            for t in range(args.steps):
                run.log(
                    {
                        f"{kind}/{text}": curves[text][i][t]
                        for text in curves
                        for kind, i in (("reward", 0), ("best_arm", 2))
                    }
                )
    return table, folder


def write(path, heading, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        writer.writerows(rows)


def draw(path, args, table, curves):
    """Average reward and how often the best arm was pulled, against the step; for figure 2.6, against the parameter."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if args.figure == "2.6":
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for name in POWERS:
            before = name.removesuffix("{}")
            rows = [row for row in table if row[0].startswith(before)]
            x = [float(row[0].removeprefix(before)) for row in rows]
            axes.errorbar(x, [row[1] for row in rows], [row[2] for row in rows], label=name.format("x"))
        axes.set_xscale("log", base=2)
        axes.set(xlabel="x", ylabel=f"average reward over the first {args.steps} steps")
        axes.legend()
    else:
        figure, both = plt.subplots(2, 1, figsize=(8, 8), sharex=True, layout="constrained")
        for text, (reward, _, best, _) in curves.items():
            both[0].plot(range(1, args.steps + 1), reward, label=text, linewidth=1)
            both[1].plot(range(1, args.steps + 1), 100 * best, linewidth=1)
        both[0].set(ylabel="average reward")
        both[1].set(ylabel="best arm, %", xlabel="step", ylim=(0, 100))
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    """The command line. Exit status 2 for bad input, 130 for Ctrl-C."""
    try:
        args = tyro.cli(Args, description=__doc__)
        table, folder = train(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except BadInput as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2)
    width = max(len(text) for text, *_ in table)
    print(f"{'':{width}}  {'reward a step':>16}  {'% best arm, last 100':>20}  {'regret of a run':>16}")
    for text, *numbers in table:
        reward, best, regret = (
            f"{mean:.{d}f} +- {error:.{d}f}" for mean, error, d in zip(numbers[::2], numbers[1::2], (3, 1, 1))
        )
        print(f"{text:{width}}  {reward:>16}  {best:>20}  {regret:>16}")
    print(f"results: {folder}")


if __name__ == "__main__":
    main()
