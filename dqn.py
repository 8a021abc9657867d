"""Deep Q-network (DQN), with double Q-learning, n-step returns and soft target updates.

Mnih et al. (2015), "Human-level control through deep reinforcement learning", Nature 518, Algorithm
1. A first version without the target network: Mnih et al. (2013), arXiv:1312.5602.

Q(s, a) is the expected return of action a in state s if all later actions are optimal. It satisfies
the Bellman optimality equation, Q(s, a) = E[r + gamma max_a' Q(s', a')]. Learning moves the left
side toward samples of the right side. The policy is epsilon-greedy: with probability epsilon, which
decays during training, it takes a random action; otherwise the one with the largest Q. Two ideas
let a neural network learn such a Q:

- Replay. The equation holds for any action in any state, whatever policy chose it (Q-learning is
  off-policy), so old transitions stay useful. Each gradient step takes a random batch from a buffer
  of them: samples less correlated than consecutive steps, each used many times.
- A target network. Q on the right side is a copy of the network that changes slowly. Without it,
  each step toward the target moves the target as well, and the values can diverge.

With neither, and a table in place of the network, it is Q-learning as in tabular.py.

Not in the paper:
- double Q-learning (van Hasselt, Guez and Silver 2016), because a maximum of noisy values is too high
- n-step returns (Watkins 1989; Hessel et al. 2018): faster, though later actions are off-policy
- a target network that moves a little after each step (Lillicrap et al. 2016), so that no step of
  the targets is large; the paper's: --tau 1 --target-interval 10000
- several environments, so that the network is called less often
- Adam with a decaying learning rate, so that the last steps settle; RMSProp in the paper
- observations and rewards scaled by running statistics and clipped at 10, so that one set of flags
  suits many environments; the paper clips rewards to [-1, 1]
- gradient norms clipped, so that a rare, huge gradient does little harm
- orthogonal initialization, so that layers keep the scale of their inputs
- bootstrapping from the last state at a time limit, because the episode would have gone on
Left out, of Rainbow (Hessel et al.): prioritized replay; dueling, distributional and noisy networks.

Shapes: T steps of N environments; G gradient steps, each on B transitions; A actions.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["gymnasium[classic-control]>=1.1", "moviepy>=2.0", "numpy>=1.26", "torch>=2.8",
#                 "tqdm>=4.66", "tyro>=0.9.1", "wandb>=0.20"]
# ///

import argparse
import csv
import json
import math
import os
import re
import sys
import time
from collections import deque, namedtuple
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces, wrappers
from torch import nn
from tqdm import tqdm

Rollout = namedtuple("Rollout", "obs act rew next_obs terminated done")  # [T, N, ...]
Batch = namedtuple("Batch", "obs act ret next_obs terminated discount")  # [B, ...]; ret, discount: of n steps


@dataclass
class Args:
    num_steps: int = 8  # T, steps of each environment per rollout
    gradient_steps: int = 16  # G, gradient steps after each rollout; raise it with N and with workers
    batch_size: int = 128  # B, transitions per gradient step, per worker
    buffer_size: int = 100_000  # transitions kept by each worker; the oldest are overwritten
    learning_starts: int = 1_000  # transitions stored by each worker before the first gradient step
    n_step: int = 10  # n, rewards in a return before it bootstraps
    double_q: bool = True  # the network chooses the next action, the target network evaluates it
    tau: float = 0.01  # fraction by which the target network moves; 1 copies the network
    target_interval: int = 1  # gradient steps between updates of the target network
    epsilon_start: float = 1.0  # initial probability of a random action
    epsilon_end: float = 0.04  # final probability of a random action
    exploration_fraction: float = 0.1  # fraction of training over which epsilon decays linearly
    max_grad_norm: float = 10.0  # clip gradients to this norm; inf: do not clip
    anneal_lr: bool = True  # decay the learning rate linearly to 0

    env_id: str = "CartPole-v1"  # Gymnasium id; "my_module:MyEnv-v0" imports my_module first
    env_kwargs: str = "{}"  # arguments of the environment as JSON, such as '{"continuous": true}'
    seed: int = 1  # on one machine, the same seed and flags give the same run, bit for bit
    total_timesteps: int = 50_000  # steps of all environments and workers, whole rollouts only
    num_envs: int = 8  # N, environments per worker
    gamma: float = 0.99  # discount factor
    learning_rate: float | None = None  # Adam's initial step size; default 2e-3, for images 2.5e-4; 100+ inputs: 2.5e-4
    hidden_sizes: tuple[int, ...] = (128, 128)  # hidden layers for vector observations
    norm_obs: bool = True  # scale observations by running statistics
    norm_reward: bool = True  # scale rewards by running statistics
    device: str = "cpu"  # cpu, cuda, cuda:1
    async_envs: bool = False  # run each environment in its own process; for slow simulators
    run_dir: str = ""  # output folder; default runs/<env>__<script>__<seed>__<time>-<random>
    resume: str = ""  # checkpoint.pt to continue; flags that are not given come from it
    checkpoint_every: int = 10_000  # steps of each environment between checkpoints; they end episodes
    eval_episodes: int = 10  # episodes of the final evaluation, with greedy actions
    render: bool = False  # show the evaluation in a window
    capture_video: bool = False  # record the evaluation to <run_dir>/videos
    track: bool = False  # also log to Weights & Biases, to $WANDB_ENTITY/$WANDB_PROJECT

    def __new__(cls, **given):
        args = super().__new__(cls)
        args.given = given  # with --resume, all other flags come from the checkpoint
        return args

    def __post_init__(self):
        restore_flags(self)
        positive = "num_steps", "gradient_steps", "batch_size", "n_step", "tau", "target_interval"
        check_flags(self, *positive, "max_grad_norm")
        steps = self.num_envs * self.num_steps  # of a worker's rollout
        capacity = self.buffer_size // self.num_envs * self.num_envs
        if capacity < max(steps, self.learning_starts):
            needed = f"a rollout ({steps}) and --learning-starts ({self.learning_starts})"
            raise InputError(f"--buffer-size {self.buffer_size}: too small for {needed}")
        if self.total_timesteps // (steps * WORKERS) * steps < self.learning_starts:
            raise InputError(f"--learning-starts {self.learning_starts}: beyond --total-timesteps")


def n_step_return(rew, end, gamma):
    """Discounted sum of rew [..., n] through the first end of an episode, and how many; NumPy, [...]."""
    used = (end.cumsum(-1) - end) == 0  # no end before this step
    powers = gamma ** np.arange(rew.shape[-1])
    return (rew * powers * used).sum(-1), used.sum(-1)


def td_target(ret, discount, terminated, next_q, next_act):
    """The TD target y, [B]: ret plus the discounted value of a' = next_act (Algorithm 1).

    next_q [B, A] is Q(s', .) by the target network; the other arguments are [B].
    """
    next_val = next_q.gather(-1, next_act[:, None])[:, 0]
    return ret + discount * next_val * ~terminated  # a time limit is not a terminal state


def td_loss(agent, batch, args):
    """Loss of the TD errors [] and the action values Q(s, a) [B]; obs are scaled already."""
    with torch.no_grad():
        next_q = agent.target(batch.next_obs)
        # Double Q-learning: one network chooses, the other evaluates (van Hasselt et al., Eq. 4).
        next_act = (agent.network(batch.next_obs) if args.double_q else next_q).argmax(-1)
        y = td_target(batch.ret, batch.discount, batch.terminated, next_q, next_act)
    q = agent.network(batch.obs)  # [B, A]
    q = q.gather(-1, batch.act[:, None])[:, 0]
    return nn.functional.huber_loss(q, y), q  # linear beyond 1: the paper's clipped error


def update(agent, optimizer, replay, args):
    """Take G gradient steps on replayed transitions; returns metrics, all None before the first."""
    names, rows = ("td_loss", "q_value", "grad_norm"), []
    if len(replay) < args.learning_starts:
        return dict.fromkeys(names)
    params, target_params = list(agent.network.parameters()), list(agent.target.parameters())
    for batch in replay.sample(args, agent):  # n-step returns; obs and rewards scaled
        loss, q = td_loss(agent, batch, args)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(params)  # of torchrun's workers
        grad_norm = nn.utils.clip_grad_norm_(params, args.max_grad_norm)
        optimizer.step()
        agent.updates += 1
        if agent.updates.item() % args.target_interval == 0:
            with torch.no_grad():
                for slow, fast in zip(target_params, params):
                    slow.lerp_(fast, args.tau)
        rows.append(torch.stack([loss, q.mean(), grad_norm]).detach())
    return dict(zip(names, torch.stack(rows).mean(0).tolist()))


def collect(agent, envs, obs, num_steps, epsilon):
    """Take T epsilon-greedy steps in N environments; returns a Rollout and the obs to go on from."""
    shape, steps = (num_steps, envs.num_envs), []
    explore = (torch.rand(shape) < epsilon).numpy()
    random_act = torch.randint(int(envs.single_action_space.n), shape).numpy()
    for t in range(num_steps):
        act = random_act[t]
        if not explore[t].all():  # otherwise the network need not be asked
            act = np.where(explore[t], act, agent.act(obs))
        next_obs, rew, terminated, truncated, _ = envs.step(act)
        done = terminated | truncated
        steps.append((obs, act, rew, next_obs, terminated, done))
        # Autoreset is off, so next_obs is the true successor. Reset only where an episode ended.
        obs = envs.reset(options={"reset_mask": done})[0] if done.any() else next_obs
    return Rollout(*[to_tensor(column, "cpu") for column in zip(*steps)]), obs


def train(args):
    """Train an agent and return it; its files are in the run's folder. Raises InputError."""
    device = setup_torch(args)  # threads, seed
    envs = make_envs(args)
    agent = QNetwork(envs.single_observation_space, envs.single_action_space, args).to(device)
    inputs = agent.obs_norm.mean.numel()  # with many, large steps saturate the tanh units
    learning_rate = args.learning_rate or (2e-3 if inputs < 100 else 2.5e-4)
    optimizer = torch.optim.Adam(agent.network.parameters(), learning_rate, eps=1e-5, fused=True)
    replay = ReplayBuffer(envs.single_observation_space, envs.single_action_space, args)
    # Run logs, saves checkpoints and resumes from them; at the end it evaluates the agent.
    with Run(args, envs, agent=agent, optimizer=optimizer, replay=replay) as run:
        while run.step + run.rollout_steps <= args.total_timesteps:
            if run.checkpoint_due:  # also before the first rollout
                replay.end_episodes()  # the reset breaks them off
                run.save()
                obs = run.reset()  # as a resumed run does, so that both go on alike, bit for bit
            progress = run.step / args.total_timesteps
            decay = 1 - progress if args.anneal_lr else 1
            optimizer.param_groups[0]["lr"] = learning_rate * decay
            epsilons = args.epsilon_start, args.epsilon_end
            epsilon = np.interp(progress, [0, args.exploration_fraction], epsilons)

            # Collect T steps in each of N environments with the epsilon-greedy policy.
            rollout, obs = collect(agent, envs, obs, args.num_steps, epsilon)
            replay.add(rollout)
            agent.obs_norm.update(rollout.obs.flatten(0, 1).to(device))
            agent.reward_norm.update(rollout.rew.to(device), rollout.done, args.gamma)

            # Update by G gradient steps on replayed transitions.
            metrics = update(agent, optimizer, replay, args)
            run.report(rollout, metrics | {"epsilon": epsilon})  # adds to run.step
    return agent


# From here on: the replay buffer and the network, then what is shared with the other scripts.

MAX_SAVED_BYTES = 2**30  # a larger replay buffer is not saved in checkpoints
RANK = int(os.environ.get("RANK", 0))  # set by torchrun, as is the number of workers
WORKERS = int(os.environ.get("WORLD_SIZE", 1))


class ReplayBuffer:
    """The latest transitions, unscaled, in main memory; next_obs is always the true successor.

    N environments take turns: the next step of one stands N places further on.
    """

    def __init__(self, obs_space, act_space, args):
        self.num_envs, self.count = args.num_envs, 0  # count: transitions ever added
        self.size = args.buffer_size // args.num_envs * args.num_envs
        obs_type = np.uint8 if obs_space.dtype == np.uint8 else np.float32

        def column(dtype, shape=()):
            return np.full((self.size, *shape), 0, dtype)  # takes its memory now, not later

        obs, next_obs = column(obs_type, obs_space.shape), column(obs_type, obs_space.shape)
        act, rew = column(act_space.dtype, act_space.shape), column(np.float32)
        self.columns = Rollout(obs, act, rew, next_obs, column(bool), column(bool))
        size = sum(column.nbytes for column in self.columns)
        self.saved = size <= MAX_SAVED_BYTES
        if RANK == 0:
            note = "" if self.saved else ", not in checkpoints: a resumed run starts without it"
            print(f"replay buffer: {size / 2**20:,.1f} MiB{note}", file=sys.stderr)

    def __len__(self):
        return min(self.count, self.size)

    def state_dict(self):
        stored = {"count": self.count, "num_envs": self.num_envs}
        for name, x in self.columns._asdict().items():
            stored[name] = torch.from_numpy(x[: len(self)])
        return stored if self.saved else {}

    def load_state_dict(self, saved):
        """Raises ValueError for another number of environments or another size."""
        if saved.get("num_envs", self.num_envs) != self.num_envs:
            raise ValueError("the order of the transitions is that of other environments")
        self.count = saved.get("count", 0)
        for name in saved.keys() - {"count", "num_envs"}:
            getattr(self.columns, name)[: len(self)] = saved[name].numpy()

    def add(self, rollout):
        """Store a rollout [T, N]."""
        columns = [x.flatten(0, 1).numpy() for x in rollout]
        index = (self.count + np.arange(len(columns[0]))) % self.size
        for column, new in zip(self.columns, columns):
            column[index] = new
        self.count += len(index)

    def end_episodes(self):
        """Cut all episodes at their newest transition: the environments are about to be reset."""
        newest = self.count - 1 - np.arange(self.num_envs)
        self.columns.done[newest % self.size] = True

    def sample(self, args, agent):
        """G batches, drawn uniformly; n steps each, or fewer where an episode or the buffer ends."""
        obs, act, rew, next_obs, terminated, done = self.columns
        back = torch.randint(len(self), (args.gradient_steps, args.batch_size)).numpy()
        first = self.count - 1 - back
        step = first[..., None] + self.num_envs * np.arange(args.n_step)  # [G, B, n]
        end = done[step % self.size] | (step + self.num_envs >= self.count)  # nothing follows
        rew = agent.reward_norm(to_tensor(rew[step % self.size], agent.device)).numpy(force=True)
        ret, steps = n_step_return(rew, end, args.gamma)

        last = (first + self.num_envs * (steps - 1)) % self.size
        first = first % self.size
        columns = obs[first], act[first], ret, next_obs[last], terminated[last], args.gamma**steps
        batches = Batch(*[to_tensor(column, agent.device) for column in columns])  # [G, B, ...]
        obs, next_obs = agent.obs_norm(batches.obs), agent.obs_norm(batches.next_obs)
        return [Batch(*batch) for batch in zip(*batches._replace(obs=obs, next_obs=next_obs))]


class RunningNorm(nn.Module):
    """Subtracts the running mean, divides by the running standard deviation and clips at 10.

    Images of uint8 are only centered and divided by 255. Not centered, what they share would
    dominate the gradients and could turn ReLUs off for good.
    """

    def __init__(self, shape, enabled):
        super().__init__()
        self.enabled = enabled
        self.mean = nn.Buffer(torch.zeros(shape))  # buffers are part of the state_dict
        self.var = nn.Buffer(torch.ones(shape))
        self.std = nn.Buffer(torch.ones(shape))
        self.count = nn.Buffer(torch.tensor(0))

    def update(self, x):
        """Include x [B, *shape] of all workers (Chan et al. 1979, how to combine variances)."""
        if self.enabled:
            x = x.float() - self.mean
            shift = all_mean(x.mean(0))
            var = all_mean((x - shift).square().mean(0))
            self.count += len(x)
            weight = len(x) / self.count.item()
            self.var.lerp_(var + (1 - weight) * shift**2, weight)
            self.mean += weight * shift
            self.std.copy_((self.var + 1e-8).sqrt())

    def forward(self, x):
        if x.dtype == torch.uint8 and self.mean.ndim == 3:
            return (x - self.mean) / 255
        if self.enabled:
            return ((x.float() - self.mean) / self.std).clamp(-10, 10)
        return x.float()


class RewardNorm(RunningNorm):
    """Divides by the standard deviation of the discounted sum of past rewards (Engstrom et al. 2020).

    The divisor is at least a fifth of the mean absolute value of the latest rewards. Otherwise
    rewards that hardly vary, as in episodes of one step, would all be clipped and look the same.
    """

    ret = 0  # discounted sum of past rewards in each environment; Run.reset sets it to 0

    def update(self, rew, done, gamma):
        """Include a rollout's rewards [T, N]."""
        rets = []
        for r, d in zip(rew.numpy(force=True), done.numpy(force=True)):
            rets.append(r + gamma * self.ret)
            self.ret = rets[-1] * ~d
        super().update(to_tensor(rets, rew.device).flatten())
        self.std.clamp_(min=all_mean(rew.abs().mean()) / 5)

    def forward(self, rew):
        return (rew / self.std).clamp(-10, 10) if self.enabled else rew


def orthogonal(layer, gain=2**0.5):
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def feature_layers(shape, hidden_sizes):
    """Layers for vectors, or for images [C, H, W] (Mnih et al. 2015), and the number of outputs."""
    layers, size, activation = [], shape[0], nn.Tanh
    if len(shape) == 3:
        shapes = (32, 8, 4), (64, 4, 2), (64, 3, 1)
        for channels, kernel, stride in shapes:
            layers += [orthogonal(nn.Conv2d(size, channels, kernel, stride)), nn.ReLU()]
            size = channels
        layers.append(nn.Flatten())
        size = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
        hidden_sizes, activation = (512,), nn.ReLU
    for hidden in hidden_sizes:
        layers += [orthogonal(nn.Linear(size, hidden)), activation()]
        size = hidden
    return layers, size


def network(shape, hidden_sizes, out, gain):
    layers, size = feature_layers(shape, hidden_sizes)
    return nn.Sequential(*layers, orthogonal(nn.Linear(size, out), gain))


ACTIONS = (spaces.Discrete,)  # the supported action spaces


class QNetwork(nn.Module):
    """Action values Q(s, a), their target network and the statistics that scale obs and rew."""

    def __init__(self, obs_space, act_space, args):
        super().__init__()
        self.obs_norm = RunningNorm(obs_space.shape, args.norm_obs)
        self.reward_norm = RewardNorm((), args.norm_reward)
        self.images = len(obs_space.shape) == 3
        self.network = network(obs_space.shape, args.hidden_sizes, int(act_space.n), 1)
        self.target = deepcopy(self.network).requires_grad_(False)
        self.updates = nn.Buffer(torch.tensor(0))  # gradient steps so far; checkpoints hold it

    @property
    def device(self):
        return self.obs_norm.mean.device

    def q(self, obs):
        """Value of each action in units of scaled reward, [B, *obs] -> [B, A]."""
        return self.network(self.obs_norm(obs))

    @torch.no_grad()
    def act(self, obs, greedy=False):
        """Greedy actions, also if greedy is False: collect adds random ones; [N, *obs] -> [N]."""
        return self.q(to_tensor(obs, self.device)).argmax(-1).cpu().numpy()


class InputError(ValueError):
    """Wrong flag, environment or checkpoint; the message names it."""


def make_env(env_id, env_kwargs="{}", **options):
    """Environment with vector or [C, H, W] observations and actions in [-1, 1] or counted from 0.

    env_kwargs (JSON) and options go to gymnasium.make. Raises InputError.
    """
    try:
        options |= json.loads(env_kwargs)
        if env_id.startswith("ALE/"):
            env = gym.make(f"ale_py:{env_id}", frameskip=1, **options)
            env = wrappers.FrameStackObservation(wrappers.AtariPreprocessing(env), 4)
        else:
            env = gym.make(env_id, **options)
        flattenable = env.observation_space.is_np_flattenable
    except (gym.error.Error, ImportError, NotImplementedError, TypeError, ValueError) as error:
        hint = '; pip install "gymnasium[atari]" opencv-python-headless' if "ALE/" in env_id else ""
        raise InputError(f"--env-id {env_id}, --env-kwargs {env_kwargs}: {error}{hint}") from error
    act = env.action_space
    integers = isinstance(act, spaces.Box) and act.dtype.kind != "f"
    if integers or not flattenable or not isinstance(act, ACTIONS):
        found = f"{act} actions with {env.observation_space} observations"
        raise InputError(f"--env-id {env_id}: {found} are not supported")
    if env.spec.max_episode_steps is None:
        env = wrappers.TimeLimit(env, 27_000)  # Atari's limit; an episode might never end
    return wrap_actions(wrap_observations(env))


def wrap_observations(env):
    """Images become [C, H, W], all other observations vectors."""
    space = env.observation_space
    shape = space.shape if isinstance(space, spaces.Box) else ()
    if len(shape) == 2 and space.dtype == np.uint8:  # a gray image
        shape = (1, *shape)
        env = wrappers.ReshapeObservation(env, shape)
    if len(shape) == 3 and sorted(shape)[1] >= 36:  # large enough for the convolutions
        if shape[0] < shape[2]:  # the channels come first already
            return env
        low, high = space.low.min(), space.high.max()
        space = spaces.Box(low, high, (shape[2], *shape[:2]), space.dtype)
        return wrappers.TransformObservation(env, lambda obs: obs.transpose(2, 0, 1), space)
    env = env if len(shape) == 1 else wrappers.FlattenObservation(env)
    if (size := env.observation_space.shape[0]) > 5_000:
        gym.logger.warn(f"{space}: not a single image, so {size:,} numbers for dense layers")
    return env


def wrap_actions(env):
    """Bounded Box actions become [-1, 1]; Discrete and MultiDiscrete actions count from 0."""
    space = env.action_space
    if not isinstance(space, spaces.Box):
        shifted = wrappers.TransformAction(env, lambda act: act + space.start, space)
        return shifted if np.any(space.start) else env
    # The outer wrapper acts first, and may round beyond a bound. ClipAction would drop the bounds.
    env = wrappers.TransformAction(env, lambda act: np.clip(act, space.low, space.high), space)
    return wrappers.RescaleAction(env, -1, 1) if space.is_bounded() else env


def make_envs(args):
    """N environments as one vector environment without autoreset."""
    spec = gym.registry.get(args.env_id)

    def function():
        if spec:  # a new process may not know it
            gym.registry[args.env_id] = spec
        return make_env(args.env_id, args.env_kwargs)

    vectorize = gym.vector.AsyncVectorEnv if args.async_envs else gym.vector.SyncVectorEnv
    envs = vectorize([function] * args.num_envs, autoreset_mode="Disabled")
    envs._add_info = lambda infos, *_: infos  # not read here, and some cannot be merged
    return envs


class Run:
    """Folder, counters, checkpoints, metrics and evaluation of a run. Only worker 0 writes."""

    def __init__(self, args, envs, **parts):  # parts: agent, optimizer, all that checkpoints hold
        self.args, self.envs, self.parts, self.agent = args, envs, parts, parts["agent"]
        self.rollout_steps = args.num_envs * args.num_steps * WORKERS
        self.recent = deque(maxlen=20)  # (return, length) of the latest finished episodes
        self.current = np.zeros((2, args.num_envs))  # return and length of the unfinished ones
        self.step, self.seconds, self.metrics_size, self.checkpoint_due = 0, 0.0, 0, True
        if args.resume:
            self.restore(load(args.resume))
        self.start = time.perf_counter() - self.seconds
        name = f"{args.env_id}__{Path(__file__).stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        name = re.sub("[/:]", "-", f"{name}-{os.urandom(3).hex()}")
        default = Path(args.resume).parent if args.resume else Path("runs", name)
        self.folder = Path(args.run_dir or default)
        self.checkpoint = self.folder / "checkpoint.pt"
        if RANK == 0:
            self.open_files()

    def restore(self, saved):
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"--resume {self.args.resume}: its {name} does not fit") from error
        self.step, self.seconds, recent, self.metrics_size = saved["counters"]
        self.recent.extend(recent)

    def open_files(self):
        args = self.args
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics = open(self.folder / "metrics.csv", "a", newline="")
        resumed = args.resume and self.folder.samefile(Path(args.resume).parent)
        if self.metrics.tell() and not resumed:
            raise InputError(f"--run-dir {self.folder}: contains a run; choose another")
        # Drop the rows that were written after the checkpoint.
        self.metrics.seek(self.metrics.truncate(min(self.metrics_size, self.metrics.tell())))
        (self.folder / "args.json").write_text(json.dumps(asdict(args), indent=2))
        self.bar = tqdm(total=args.total_timesteps, initial=self.step, unit_scale=True, **BAR)
        if args.track:
            import wandb

            self.wandb = wandb.init(dir=self.folder, name=self.folder.name, config=asdict(args))

    def __enter__(self):
        if WORKERS > 1:  # only after the optimizer: what it imports would keep the group from ending
            torch.distributed.init_process_group()
        return self

    def __exit__(self, exc_type, *_):
        if RANK == 0:
            self.bar.close()  # what is printed next begins on a line of its own
        if exc_type in (None, KeyboardInterrupt):
            self.save()
        if exc_type is KeyboardInterrupt and RANK == 0:
            print(f"stopped; continue with --resume {self.checkpoint}", file=sys.stderr)
        self.envs.close(terminate=True)  # without waiting for a step that has not ended
        if WORKERS > 1:
            torch.distributed.destroy_process_group()
        if exc_type is None and RANK == 0:
            self.finish()

    def reset(self):
        """Seed torch and reset the environments as (seed, step) says; returns obs [N, *obs].

        So the states of random generators and environments need not be saved.
        """
        sequence = np.random.SeedSequence((self.args.seed, self.step, RANK))
        torch_seed, *env_seeds = sequence.generate_state(1 + self.args.num_envs).tolist()
        torch.manual_seed(torch_seed)
        self.current[:] = self.agent.reward_norm.ret = 0
        self.checkpoint_due = False
        return self.envs.reset(seed=env_seeds)[0]

    def save(self):
        if RANK == 0:
            saved = {name: part.state_dict() for name, part in self.parts.items()}
            saved["args"] = asdict(self.args)
            saved["counters"] = self.step, self.seconds, list(self.recent), self.metrics.tell()
            torch.save(saved, f"{self.checkpoint}.new")
            os.replace(f"{self.checkpoint}.new", self.checkpoint)  # atomic: one is always whole

    def report(self, rollout, metrics):
        """Count steps and episodes and write a row of metrics. Raises FloatingPointError."""
        rew, done = rollout.rew.numpy(force=True), rollout.done.numpy(force=True)
        for r, d in zip(rew, done):
            self.current += r, np.ones_like(r)
            if d.any():
                self.recent.extend(self.current[:, d].T.tolist())
                self.current[:, d] = 0
        steps = rew.size * WORKERS
        interval = self.args.checkpoint_every * self.args.num_envs * WORKERS
        self.step += steps
        self.seconds = time.perf_counter() - self.start
        self.checkpoint_due = self.step % interval < steps  # it has just passed a multiple
        ret, length = np.mean(self.recent, 0).tolist() if self.recent else (None, None)
        row = {"global_step": self.step, "episodic_return": ret, "episodic_length": length}
        row |= {"steps_per_second": self.step / self.seconds, "seconds": self.seconds} | metrics
        norms = {"observations": self.agent.obs_norm, "rewards": self.agent.reward_norm}
        numbers = {name: norm.var.sum().item() for name, norm in norms.items()} | row
        wrong = [name for name, x in numbers.items() if x is not None and not math.isfinite(x)]
        if wrong:
            hint = f"a smaller --learning-rate may help; last good checkpoint: {self.checkpoint}"
            raise FloatingPointError(f"{wrong} not finite at step {self.step}; {hint}")
        if RANK == 0:
            writer = csv.DictWriter(self.metrics, row)
            if self.metrics.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
            self.metrics.flush()
            self.bar.set_postfix({"return": ret}, refresh=False)
            self.bar.update(steps)
            if self.args.track:
                self.wandb.log(row, step=self.step)

    def finish(self):
        """Evaluate the agent, write eval.json and print the result."""
        args = self.args
        self.metrics.close()
        if args.eval_episodes:
            mode = "human" if args.render else "rgb_array" if args.capture_video else ""
            options = {"render_mode": mode} if mode else {}
            env = make_env(args.env_id, args.env_kwargs, **options)
            if args.capture_video:
                env = wrappers.RecordVideo(env, f"{self.folder}/videos", lambda episode: True)
            returns = evaluate(self.agent.eval(), env, args.eval_episodes, args.seed)
            mean, std, n = np.mean(returns), np.std(returns), len(returns)
            result = {"mean": mean, "std": std, "episodes": n, "returns": returns}
            result |= {"global_step": self.step, "seconds": self.seconds}
            (self.folder / "eval.json").write_text(json.dumps(result, indent=2))
            form = ".1f" if abs(mean) >= 1 else ".3g"
            print(f"eval: {mean:{form}} +- {std:{form}} over {n} episodes ({self.folder})")
            if args.track:
                self.wandb.log({"eval": result}, step=self.step)
        if args.track:
            self.wandb.finish()


BAR = {"mininterval": 0.1 if sys.stderr.isatty() else 30}  # in a log file, a line now and then


def evaluate(agent, env, episodes, seed):
    """List of the undiscounted, unscaled returns of episodes with greedy actions."""
    seeds = np.random.SeedSequence(seed, spawn_key=(1,))  # not the seeds of training
    returns = []
    for episode_seed in tqdm(seeds.generate_state(episodes).tolist(), "evaluation", **BAR):
        obs, ret, done = env.reset(seed=episode_seed)[0], 0.0, False
        while not done:
            act = agent.act([obs], greedy=True)[0]
            obs, rew, terminated, truncated, _ = env.step(act)
            ret, done = ret + float(rew), terminated or truncated
        returns.append(ret)
    env.close()
    return returns


def all_mean(x):
    """Mean of a tensor over torchrun's workers."""
    if WORKERS > 1:
        x = x / WORKERS
        torch.distributed.all_reduce(x)
    return x


def average_gradients(params):
    """Average gradients over torchrun's workers, in one message."""
    if WORKERS > 1:
        grads = [param.grad for param in params if param.grad is not None]
        mean = all_mean(nn.utils.parameters_to_vector(grads))
        nn.utils.vector_to_parameters(mean, grads)


def to_tensor(arrays, device):
    """One array, or several of one shape, as one tensor; float64 becomes float32."""
    x = torch.as_tensor(np.asarray(arrays), device=device)
    return x.float() if x.dtype == torch.float64 else x


def setup_torch(args):
    """Seed torch and set its number of threads; returns the device. Raises InputError."""
    several_gpus = args.device == "cuda" and WORKERS > 1
    device = f"cuda:{os.environ['LOCAL_RANK']}" if several_gpus else args.device
    try:
        torch.zeros(1, device=device)  # fails if there is no such device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # more slow small networks down
    np.finfo(np.float32), np.finfo(np.float64)  # cached now; once denormals are flushed, numpy would warn
    torch.set_flush_denormal(True)  # numbers below 1e-38 would slow the processor down
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(args.seed)  # equal first weights in all workers
    return device


def restore_flags(args):
    """Take the flags that were not given from the checkpoint of --resume, if there is one."""
    if args.resume:
        kept = {"resume", "run_dir", "render", "capture_video"} | args.given.keys()
        saved = load(args.resume)["args"]
        vars(args).update({name: saved[name] for name in saved.keys() - kept})


def check_flags(args, *positive):
    """Raise InputError for flags that make no sense."""
    for name in (*positive, "num_envs", "learning_rate", "checkpoint_every"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be positive")
    rollout = args.num_envs * args.num_steps * WORKERS
    if args.total_timesteps < rollout:
        raise InputError(f"--total-timesteps {args.total_timesteps}: a rollout has {rollout} steps")
    if args.render and args.capture_video:
        raise InputError("--render: not together with --capture-video")


def load(path):
    """Contents of a checkpoint of this script. Raises InputError for any other file."""
    try:  # weights_only refuses files that run code
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        flags = saved["args"].keys()
    except Exception as error:
        raise InputError(f"--resume {path}: not a checkpoint ({type(error).__name__})") from error
    if flags != Args.__dataclass_fields__.keys():
        raise InputError(f"--resume {path}: a checkpoint of another script or version")
    return saved


def main():
    """Command line. Exit status: 2 wrong input, 1 numbers that are not finite, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", default="")  # read first: it sets the other defaults
    try:
        default = Args(resume=parser.parse_known_args()[0].resume)
        train(tyro.cli(Args, description=__doc__, default=default))
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, FloatingPointError, OSError, gym.error.DependencyNotInstalled) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, FloatingPointError) else 2)


if __name__ == "__main__":
    main()
