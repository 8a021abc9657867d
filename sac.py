"""Soft actor-critic (SAC), with a temperature that is tuned to a target entropy.

Haarnoja et al. (2018), "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning
with a Stochastic Actor", arXiv:1801.01290, and "Soft Actor-Critic Algorithms and Applications",
arXiv:1812.05905. Equation numbers refer to the second.

DDPG learns the best action and explores by adding noise to it. SAC makes the noise part of the
objective: it maximizes the sum of rewards and of alpha times the policy's entropy. So the policy is
as random as it can be without losing much reward, and its randomness is the exploration. The standard
deviation depends on the state: wide where many actions are about as good, narrow where one is needed.

What changed from ddpg.py: the actor outputs a mean and a standard deviation, and the gradient of Q
reaches both through a sampled action (reparameterization). The value of a state is soft: Q of a
sampled action minus alpha times its log-probability. No target actor, no noise on its actions, no
delay: the policy's own randomness smooths the targets. The smaller of the two critics also trains the
actor. alpha, the temperature, rises while the entropy is below its target and falls while it is above.
n is 1 by default, because n-step returns lack the entropy of the steps in between.

Not in the papers:
- half a gradient step for each transition and the Huber loss, as in ddpg.py
- random actions at the start, held for the T steps of a rollout, so that they do not cancel out
- alpha starts at 0.02, because rewards are scaled: their discounted sums have a deviation of 1
- a decaying learning rate, so that the last steps settle
- observations and rewards scaled by running statistics and clipped at 10, so that one set of flags
  suits many environments
- gradient norms clipped, so that a rare, huge gradient does little harm
- orthogonal initialization, so that layers keep the scale of their inputs
- bootstrapping from the last state at a time limit, because the episode would have gone on
Left out: the separate network for V of the first paper. Actions without bounds are refused: the
policy is squashed into them.

Shapes: T steps of N environments; G gradient steps, each on B transitions; K action components.
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
    num_steps: int = 16  # T, steps of each environment per rollout
    gradient_steps: int = 8  # G, gradient steps after each rollout; raise it with N and with workers
    batch_size: int = 128  # B, transitions per gradient step, per worker
    buffer_size: int = 300_000  # transitions kept by each worker; the oldest are overwritten
    learning_starts: int = 5_000  # transitions stored by each worker before the first gradient step
    n_step: int = 1  # n, rewards in a return before it bootstraps
    twin_q: bool = True  # two critics; the target is the smaller of their values
    tau: float = 0.005  # fraction by which the target networks move
    alpha: float = 0.02  # initial temperature: what one nat of entropy is worth, in units of scaled reward
    tune_alpha: bool = True  # adapt the temperature to the target entropy; otherwise it stays
    target_entropy: float = -1.0  # nats per action component; at a mean of 0, a deviation of 0.09
    max_grad_norm: float = 10.0  # clip gradients to this norm; inf: do not clip
    anneal_lr: bool = True  # decay the learning rate linearly to 0

    env_id: str = "Pendulum-v1"  # Gymnasium id; "my_module:MyEnv-v0" imports my_module first
    env_kwargs: str = "{}"  # arguments of the environment as JSON, such as '{"continuous": true}'
    seed: int = 1  # on one machine, the same seed and flags give the same run, bit for bit
    total_timesteps: int = 20_000  # steps of all environments and workers, whole rollouts only
    num_envs: int = 1  # N, environments per worker
    gamma: float = 0.99  # discount factor
    learning_rate: float | None = None  # Adam's initial step size; default 1e-3, for images 2.5e-4
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
        positive = "num_steps", "gradient_steps", "batch_size", "n_step", "tau", "alpha"
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


def soft_value(q, log_prob, alpha):
    """One sample of the soft value V(s), [B]: Q(s, a) and the entropy's part (Eq. 3)."""
    return q - alpha * log_prob


def td_target(ret, discount, terminated, next_val):
    """The TD target y: ret plus the discounted value of the state after it; all [B] (Eq. 5)."""
    return ret + discount * next_val * ~terminated  # a time limit is not a terminal state


def td_loss(agent, batch, args):
    """Loss of the critics' TD errors [] and the first critic's Q(s, a) [B]; obs are scaled already."""
    with torch.no_grad():
        pi = agent.distribution(batch.next_obs)
        next_act = pi.rsample()
        next_q = torch.stack([target(batch.next_obs, next_act) for target in agent.target_critics])
        next_val = soft_value(next_q.amin(0), pi.log_prob(next_act), agent.log_alpha.exp())
        y = td_target(batch.ret, batch.discount, batch.terminated, next_val)
    q = torch.stack([critic(batch.obs, batch.act) for critic in agent.critics])  # [2, B]
    loss = nn.functional.huber_loss(q, y.expand_as(q)) * len(q)  # sum of both means
    return loss, q[0]


def policy_loss(agent, batch):
    """Minus the mean soft value of sampled actions [] (Eq. 9), and their log-probabilities [B]."""
    pi = agent.distribution(batch.obs)
    act = pi.rsample()
    log_prob = pi.log_prob(act)
    q = torch.stack([critic(batch.obs, act) for critic in agent.critics]).amin(0)
    value = soft_value(q, log_prob, agent.log_alpha.exp().detach())
    return -value.mean(), log_prob.detach()


def temperature_loss(log_alpha, log_prob, target_entropy):
    """Descent raises alpha where the entropy, -log_prob [B], is below its target; [] (Eq. 18)."""
    return -log_alpha * (log_prob + target_entropy).mean()  # log alpha in place of alpha


def update(agent, actor_optimizer, critic_optimizer, replay, args):
    """Take G gradient steps on replayed transitions; returns metrics, all None before the first."""
    names = "td_loss", "q_value", "grad_norm", "policy_loss", "entropy", "alpha"
    if len(replay) < args.learning_starts:
        return dict.fromkeys(names)
    critic_params, rows = list(agent.critics.parameters()), []
    target_entropy = args.target_entropy * math.prod(agent.act_shape)  # of all K components
    actor_params = [param for param in agent.actor.parameters() if param.requires_grad]
    for batch in replay.sample(args, agent):  # n-step returns; obs and rewards scaled
        loss, q = td_loss(agent, batch, args)
        critic_optimizer.zero_grad()
        loss.backward()
        average_gradients(critic_params)  # of torchrun's workers
        grad_norm = nn.utils.clip_grad_norm_(critic_params, args.max_grad_norm)
        critic_optimizer.step()

        actor_loss, log_prob = policy_loss(agent, batch)
        alpha_loss = temperature_loss(agent.log_alpha, log_prob, target_entropy)
        params = [*actor_params, agent.log_alpha] if args.tune_alpha else actor_params
        actor_optimizer.zero_grad()
        (actor_loss + alpha_loss).backward(inputs=params or None)  # not to the critics' parameters; None: to all
        average_gradients(params)
        nn.utils.clip_grad_norm_(actor_params, args.max_grad_norm)
        actor_optimizer.step()
        agent.update_targets(args.tau)
        numbers = loss, q.mean(), grad_norm, actor_loss, -log_prob.mean(), agent.log_alpha.exp()
        rows.append(torch.stack(numbers).detach())
    return dict(zip(names, torch.stack(rows).mean(0).tolist()))


def collect(agent, envs, obs, num_steps, warm_up):
    """Take T steps in N environments; returns a Rollout and the obs to go on from.

    In the warm-up the actions are random, and held for all T steps: drawn anew in each, they would
    cancel out in a system with inertia.
    """
    steps, random_act = [], 2 * torch.rand(envs.action_space.shape).numpy() - 1
    for _ in range(num_steps):
        act = random_act if warm_up else agent.act(obs)
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
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space, args).to(device)
    learning_rate = args.learning_rate or (2.5e-4 if agent.images else 1e-3)
    actor_optimizer = torch.optim.Adam(agent.policy_parameters(), learning_rate, eps=1e-5, fused=True)
    critic_optimizer = torch.optim.Adam(agent.critics.parameters(), learning_rate, eps=1e-5, fused=True)
    optimizers = {"actor_optimizer": actor_optimizer, "critic_optimizer": critic_optimizer}
    replay = ReplayBuffer(envs.single_observation_space, envs.single_action_space, args)
    # Run logs, saves checkpoints and resumes from them; at the end it evaluates the agent.
    with Run(args, envs, agent=agent, **optimizers, replay=replay) as run:
        while run.step + run.rollout_steps <= args.total_timesteps:
            if run.checkpoint_due:  # also before the first rollout
                replay.end_episodes()  # the reset breaks them off
                run.save()
                obs = run.reset()  # as a resumed run does, so that both go on alike, bit for bit
            decay = 1 - run.step / args.total_timesteps if args.anneal_lr else 1
            for optimizer in optimizers.values():
                optimizer.param_groups[0]["lr"] = learning_rate * decay

            # Collect T steps in each of N environments, by the current policy.
            warm_up = run.step < WORKERS * args.learning_starts
            rollout, obs = collect(agent, envs, obs, args.num_steps, warm_up)
            replay.add(rollout)
            agent.obs_norm.update(rollout.obs.flatten(0, 1).to(device))
            agent.reward_norm.update(rollout.rew.to(device), rollout.done, args.gamma)

            # Update by G gradient steps on replayed transitions.
            metrics = update(agent, actor_optimizer, critic_optimizer, replay, args)
            run.report(rollout, metrics)  # adds to run.step
    return agent


# From here on: the replay buffer and the networks, then what is shared with the other scripts.

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


class SquashedGaussian:
    """tanh(u) for each of K components; u is normal with mean and log_std [..., K].

    rsample and log_prob are those of torch.distributions. The u of the latest sample is kept, as by
    torch's TanhTransform(cache_size=1): near the bounds it cannot be computed from a rounded tanh(u).
    """

    def __init__(self, mean, log_std):
        self.mean, self.log_std = mean, log_std
        self.mode = mean.tanh()  # the median; the highest density has no closed form
        self.u = self.act = None

    def rsample(self):
        self.u = self.mean + self.log_std.exp() * torch.randn_like(self.mean)
        self.act = self.u.tanh()
        return self.act

    def log_prob(self, act):
        """Log-density of actions [..., K] -> [...] (Haarnoja et al., arXiv:1801.01290, Eq. 21)."""
        u = self.u if act is self.act else act.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        z = (u - self.mean) / self.log_std.exp()
        log_density = -(z**2) / 2 - self.log_std - math.log(2 * math.pi) / 2
        log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))  # log(1 - tanh(u)^2)
        return (log_density - log_slope).sum(-1)


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


def convolutions(shape):
    """Layers for images [C, H, W] (Mnih et al. 2015), none for vectors, and the number of outputs."""
    layers, size = [], shape[0]
    if len(shape) == 3:
        shapes = (32, 8, 4), (64, 4, 2), (64, 3, 1)
        for channels, kernel, stride in shapes:
            layers += [orthogonal(nn.Conv2d(size, channels, kernel, stride)), nn.ReLU()]
            size = channels
        layers.append(nn.Flatten())
        size = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    return layers, size


def hidden_layers(size, hidden_sizes, out, gain):
    layers = []
    for hidden in hidden_sizes:
        layers += [orthogonal(nn.Linear(size, hidden)), nn.ReLU()]
        size = hidden
    return [*layers, orthogonal(nn.Linear(size, out), gain)]


class Critic(nn.Module):
    """Q(s, a) [B] of scaled obs [B, *obs] and act [B, K]; after the convolutions if obs are images."""

    def __init__(self, shape, act_size, hidden_sizes):
        super().__init__()
        images, size = convolutions(shape)
        self.images = nn.Sequential(*images)
        self.layers = nn.Sequential(*hidden_layers(size + act_size, hidden_sizes, 1, 1))

    def forward(self, obs, act):
        x = self.images(obs)
        x = torch.cat([x, act.reshape(len(x), -1)], -1)
        return self.layers(x).squeeze(-1)


ACTIONS = (spaces.Box,)  # the supported action spaces


class ActorCritic(nn.Module):
    """Policy pi(a|s), action values Q(s, a), their targets, temperature and the statistics that scale obs and rew."""

    def __init__(self, obs_space, act_space, args):
        super().__init__()
        if not act_space.is_bounded():
            raise InputError(f"--env-id {args.env_id}: {act_space} actions need bounds")
        self.obs_norm = RunningNorm(obs_space.shape, args.norm_obs)
        self.reward_norm = RewardNorm((), args.norm_reward)
        self.images = len(obs_space.shape) == 3
        self.act_shape, size = act_space.shape, math.prod(act_space.shape)
        hidden_sizes = (512,) if self.images else args.hidden_sizes
        layers, features = convolutions(obs_space.shape)
        layers += hidden_layers(features, hidden_sizes, 2 * size, 0.01)
        self.actor = nn.Sequential(*layers)
        critics = [Critic(obs_space.shape, size, hidden_sizes) for _ in range(1 + args.twin_q)]
        self.critics = nn.ModuleList(critics)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(args.alpha).log())

    @property
    def device(self):
        return self.obs_norm.mean.device

    def distribution(self, obs):
        """The policy at obs that are scaled already, as those of replayed batches."""
        mean, log_std = self.actor(obs).chunk(2, -1)  # [B, K] each
        return SquashedGaussian(mean, log_std.clamp(-5, 2))

    def policy(self, obs):
        """Distribution of actions in [-1, 1], [B, K], given obs [B, *obs]."""
        return self.distribution(self.obs_norm(obs))

    def policy_parameters(self):
        return [*self.actor.parameters(), self.log_alpha]

    def q(self, obs, act):
        """Action values by the first critic in units of scaled reward, [B, *obs], [B, K] -> [B]."""
        return self.critics[0](self.obs_norm(obs), act)

    @torch.no_grad()
    def update_targets(self, tau):
        """Move the target critics toward the critics by the fraction tau."""
        for slow, fast in zip(self.target_critics.parameters(), self.critics.parameters()):
            slow.lerp_(fast, tau)

    @torch.no_grad()
    def act(self, obs, greedy=False):
        """Actions in [-1, 1], sampled or tanh of the mean; [N, *obs] -> [N, *act]."""
        pi = self.policy(to_tensor(obs, self.device))
        act = pi.mode if greedy else pi.rsample()  # [N, K]
        return act.cpu().numpy().reshape(-1, *self.act_shape)


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
