"""Vanilla policy gradient (VPG, REINFORCE) with four choices of the weight psi, from total return to GAE.

Williams (1992), REINFORCE. Sutton et al. (2000), the policy gradient theorem. Schulman et al. (2016), generalized
advantage estimation (GAE), arXiv:1506.02438; equation numbers refer to the last.

The gradient of the expected return has the form E[sum_t psi_t grad log pi(a_t|s_t)] (Eq. 1). --form chooses psi_t:

    total-return   the return of the whole episode
    reward-to-go   the return from step t on
    baseline       the return from step t on, minus the value V(s_t): GAE with lambda = 1
    gae            generalized advantage estimation, an exponentially weighted mean of n-step advantages (Eq. 16)

The first follows from the log-derivative trick. With gamma = 1, the second and third have the same mean as the first
and usually less variance: E[grad log pi(a|s)] = sum_a pi(a|s) grad log pi(a|s) = grad sum_a pi(a|s) = 0, so a term that
does not depend on a_t, such as the rewards before t or V(s_t), can be subtracted. Where a rollout or time limit cuts an
episode, the third bootstraps, biased if the critic is wrong; the fourth does at every step: less variance, more bias.

With gamma < 1, total-return follows the gradient of the discounted return. The other forms leave out a factor gamma^t
of that gradient, because it gives late steps little weight. They follow no objective's gradient (Nota and Thomas 2020).

The first two forms do not use the critic and cannot bootstrap. They need whole episodes: each rollout resets all
environments and runs past T steps until every episode that started within them has ended, or reached its time limit.
Steps of later episodes are not learned from. Such rollouts are longer, and updates fewer, than with the other forms.

Not in the papers: psi standardized in each batch, with 0.1 added to the standard deviation (this subtracts a constant
baseline in every form); a critic fit by Adam to psi + V; gradient norm clipping; observations and rewards scaled by
running statistics and clipped at 10; orthogonal initialization; tanh on the mean of bounded actions.

Shapes: T steps of N environments, or L >= T with whole episodes; B rows of a batch; K action components.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["gymnasium[classic-control]>=1.1", "moviepy>=2.0", "numpy>=1.26", "torch>=2.8",
#                 "tqdm>=4.66", "tyro>=0.9.1", "wandb>=0.20"]
# ///

import csv
import json
import math
import os
import signal
import sys
import time
from collections import deque, namedtuple
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces, wrappers
from torch import nn
from tqdm import tqdm

CHECKPOINT = "vpg 4"  # script and version of the checkpoint format
LIMITS = {"gamma": (0, 1), "gae_lambda": (0, 1)}  # other flags: see check_limits
ADV_STD_EPS = 0.1  # added to the standard deviation of psi; large, so that small, noisy values stay small
WITHOUT_CRITIC = "total-return", "reward-to-go"  # forms that need whole episodes
Batch = namedtuple("Batch", "obs act psi ret")  # [B, ...]; ret: value targets


@dataclass
class Args:
    form: Literal["total-return", "reward-to-go", "baseline", "gae"] = "gae"  # psi, the weight of grad log pi
    num_steps: int = 32  # T, steps of each environment per rollout
    gae_lambda: float = 0.98  # lambda of the advantage estimate; smaller: less variance, but more error from the critic
    value_epochs: int = 10  # gradient steps on the value loss per rollout, each on the full batch
    max_grad_norm: float = 0.5  # clip gradients to this norm
    anneal_lr: bool = True  # decay the learning rate linearly to 0

    env_id: str = "CartPole-v1"  # Gymnasium id; "my_module:MyEnv-v0" imports my_module first
    seed: int = 1  # on one machine, the same seed and flags give the same run, bit for bit
    total_timesteps: int = 100_000  # environment steps of all environments and torchrun's workers, in whole rollouts
    num_envs: int = 8  # N, environments per worker
    gamma: float = 0.995  # discount factor
    learning_rate: float = 3e-3  # Adam's initial step size; a quarter of it with convolutions
    hidden_sizes: tuple[int, ...] = (64, 64)  # hidden layers of the networks for vector observations
    device: str = "cpu"  # cpu, cuda, cuda:1
    async_envs: bool = False  # run each environment in its own process; for slow simulators
    run_dir: str = ""  # output folder; default runs/<env>__<script>__<seed>__<time>
    resume: str = ""  # checkpoint.pt to continue from, in its folder; flags that are not given come from it
    checkpoint_every: int = 100_000  # environment steps between checkpoints; each also ends all episodes
    eval_episodes: int = 10  # episodes of the final evaluation, with greedy actions
    render: bool = False  # show the evaluation in a window
    capture_video: bool = False  # record the evaluation to <run_dir>/videos
    track: bool = False  # also log to Weights & Biases, to $WANDB_ENTITY/$WANDB_PROJECT


def check_batch(args):
    if args.num_envs * args.num_steps < 2:  # the standard deviation of one sample is undefined
        raise InputError(f"--num-steps {args.num_steps}: with --num-envs {args.num_envs}, must be at least 2")


def gae(rew, val, next_val, terminated, done, gamma, lam):
    """Generalized advantage estimates; arguments and result [T, N] (Schulman et al. 2016, Eq. 16)."""
    delta = rew + gamma * next_val * ~terminated - val  # a terminal state has value 0; a time limit is not terminal
    discount = gamma * lam * (~done).to(delta.dtype)  # no credit flows back from the next episode
    adv, trace = torch.zeros_like(delta), 0
    for t in reversed(range(len(delta))):
        adv[t] = trace = delta[t] + discount[t] * trace
    return adv


def reward_to_go(rew, done, gamma):
    """Discounted return from each step to the end of its episode; arguments and result [T, N] (Eq. 1, form 2)."""
    ret, later = torch.zeros_like(rew), 0
    for t in reversed(range(len(rew))):
        ret[t] = later = rew[t] + gamma * later * ~done[t]
    return ret


def total_return(rew, done, gamma):
    """Discounted return of the whole episode, at each of its steps; arguments and result [T, N] (Eq. 1, form 1)."""
    ret = reward_to_go(rew, done, gamma)
    for t in range(1, len(ret)):
        ret[t] = torch.where(done[t - 1], ret[t], ret[t - 1])
    return ret


def psi(form, rew, val, next_val, terminated, done, gamma, lam):
    """psi_t, the weight of grad log pi(a_t|s_t); rew, val, next_val, terminated, done and result [T, N] (Eq. 1)."""
    if form == "total-return":
        return total_return(rew, done, gamma)
    if form == "reward-to-go":
        return reward_to_go(rew, done, gamma)
    return gae(rew, val, next_val, terminated, done, gamma, 1.0 if form == "baseline" else lam)


def started_before(num_steps, done):
    """Mask of the steps whose episode started before step num_steps of the rollout; done and result [L, N]."""
    ends = done.clone()
    ends[: num_steps - 1] = False  # only ends from step T - 1 on are followed by steps that do not count
    return (ends.cumsum(0) - ends.int()) == 0  # no such end before this step


def collect_episodes(agent, envs, obs, args):
    """Collect T steps, or whole episodes without a critic; returns rollout, mask of steps that count [L, N], obs."""
    rollout, obs = collect(agent, envs, obs, args.num_steps)
    if args.form in WITHOUT_CRITIC:
        parts, unfinished = [rollout], ~rollout.done[-1]  # [N]
        while all_mean(unfinished.float().max()) > 0:  # until all workers have finished
            step, obs = collect(agent, envs, obs, 1)
            unfinished &= ~step.done[0]
            parts.append(step)
        rollout, obs = Rollout(*map(torch.cat, zip(*parts))), None  # the next rollout resets all environments
    return rollout, started_before(args.num_steps, rollout.done), obs


def update(agent, optimizer, value_optimizer, batch, lr, args):
    """Take one gradient step on the policy (Eq. 1) and several on the critic; returns metrics."""
    pi = agent.policy(batch.obs)
    psi_t = (batch.psi - batch.psi.mean()) / (batch.psi.std() + ADV_STD_EPS)
    policy_loss = -(pi.log_prob(batch.act) * psi_t).mean()
    entropy = pi.entropy().mean()
    grad_norm = optimizer.step(policy_loss, lr)
    value_loss = torch.zeros_like(entropy)
    for _ in range(0 if args.form in WITHOUT_CRITIC else args.value_epochs):
        value_loss = nn.functional.mse_loss(agent.value(batch.obs), batch.ret)
        value_optimizer.step(value_loss, lr)
    names = "policy_loss", "value_loss", "entropy", "grad_norm"
    return dict(zip(names, torch.stack([policy_loss, value_loss, entropy, grad_norm]).tolist()))


def train(args):
    """Train an agent and return it; the results are in the run's folder. Raises InputError, FloatingPointError."""
    envs, device = setup(args)
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space, args).to(device)
    policy_params = [p for name, p in agent.named_parameters() if not name.startswith("critic")]  # actor, log_std
    optimizer, value_optimizer = Adam(policy_params, args), Adam(agent.critic.parameters(), args)
    obs = None
    with Run(args, envs, agent=agent, optimizer=optimizer, value_optimizer=value_optimizer) as run:  # saves, evaluates
        for progress in run.rollouts():  # fraction of --total-timesteps used so far; report advances it
            obs = run.checkpoint_if_due(obs)  # if obs is None and at each checkpoint, resets all environments
            lr = args.learning_rate * (1 - progress if args.anneal_lr else 1)

            # Collect T steps in each of N environments with the current policy, or whole episodes.
            rollout, counts, obs = collect_episodes(agent, envs, obs, args)

            # Compute psi, the weight of each action's grad log pi.
            with torch.no_grad():
                val, next_val = agent.value(torch.stack([rollout.obs, rollout.next_obs]))
                agent.reward_norm.update(rollout.rew, rollout.done, args.gamma)
                rew = agent.reward_norm(rollout.rew)
                ends = rollout.terminated, rollout.done
                psi_t = psi(args.form, rew, val, next_val, *ends, args.gamma, args.gae_lambda)

            # Update; psi + val are V's targets. obs_norm changes last, so that update normalizes as the rollout did.
            columns = rollout.obs, rollout.act, psi_t, psi_t + val
            batch = Batch(*[x[counts] for x in columns])
            metrics = update(agent, optimizer, value_optimizer, batch, lr, args)
            agent.obs_norm.update(rollout.obs.flatten(0, 1))
            run.report(rollout._replace(done=rollout.done & counts), metrics)
    return agent


# From here on: shared. This text is the same in vpg.py, a2c.py, trpo.py and ppo.py.

RANK = int(os.environ.get("RANK", 0))  # set by torchrun, as is the number of workers
WORKERS = int(os.environ.get("WORLD_SIZE", 1))
LIMITS |= {"seed": (0, 2**32), "hidden_sizes": (1, 10_000)}


Rollout = namedtuple("Rollout", "obs act rew next_obs terminated done")  # [T, N, ...]


def collect(agent, envs, obs, num_steps):
    """Take T steps in each of N environments with the current policy, from observations obs [N, *obs].

    Returns the rollout, with act [T, N, K], and the observations to continue from.
    """
    steps = []
    for _ in range(num_steps):
        act = agent.act(obs)
        next_obs, rew, terminated, truncated, _ = envs.step(act)
        done = terminated | truncated
        steps.append((obs, act.reshape(len(act), -1), rew, next_obs, terminated, done))
        # Autoreset is off, so next_obs is the true successor. Reset only the environments whose episode ended.
        obs = envs.reset(options={"reset_mask": done})[0] if done.any() else next_obs
    return Rollout(*[to_tensor(column, agent.device) for column in zip(*steps)]), obs


class Categorical:  # written out, like Gaussian, because torch.distributions takes ten times as long
    """A categorical distribution for each action component with M choices; params: logits [..., K, M]."""

    def __init__(self, params):
        self.params = params.log_softmax(-1)  # normalized logits

    def sample(self):
        noise = torch.empty_like(self.params).exponential_()
        return (self.params - noise.log()).argmax(-1)  # Gumbel-max trick

    def mode(self):
        return self.params.argmax(-1)

    def log_prob(self, act):
        return self.params.gather(-1, act[..., None]).sum((-1, -2))

    def entropy(self):
        return -(self.params.exp() * self.params).sum((-1, -2))

    def kl(self, other):
        log_ratio = self.params - other.params
        return (self.params.exp() * log_ratio).sum((-1, -2))


class Gaussian:
    """A normal distribution for each action component; params: mean and log standard deviation [..., K, 2].

    Samples are not bounded. The environment clips them to its bounds; log_prob is that of the sample itself.
    """

    def __init__(self, params):
        self.params = params
        self.mean, self.log_std = params.unbind(-1)

    def sample(self):
        return self.mean + self.log_std.exp() * torch.randn_like(self.mean)

    def mode(self):
        return self.mean

    def log_prob(self, act):
        z = (act - self.mean) / self.log_std.exp()
        log_density = -(z**2) / 2 - self.log_std - math.log(2 * math.pi) / 2
        return log_density.sum(-1)

    def entropy(self):
        return (self.log_std + math.log(2 * math.pi * math.e) / 2).sum(-1)

    def kl(self, other):
        z = (self.mean - other.mean) / other.log_std.exp()
        log_ratio = 2 * (self.log_std - other.log_std)
        return (log_ratio.exp() + z**2 - 1 - log_ratio).sum(-1) / 2


class RunningNorm(nn.Module):
    """Subtracts the running mean over all workers; divides by the standard deviation, but uint8 observations by 255.

    If the mean stayed in, what all images share would dominate the gradient, which can turn ReLUs off for good.
    """

    def __init__(self, shape):
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(shape))  # buffers are part of the state_dict
        self.var = nn.Buffer(torch.ones(shape))
        self.std = nn.Buffer(torch.ones(shape))
        self.count = nn.Buffer(torch.tensor(0))

    def update(self, x):
        """Include x [B, *shape] in the statistics (Chan et al. 1979, formulas to combine variances)."""
        var, shift = torch.var_mean(x.float() - self.mean, 0, correction=0)
        if WORKERS > 1:
            own, shift = shift, all_mean(shift.clone())
            var = all_mean(var + (shift - own) ** 2)
        self.count.add_(len(x))
        weight = len(x) / self.count.item()
        self.var.lerp_(var + (1 - weight) * shift**2, weight)
        self.mean.add_(weight * shift)
        self.std.copy_((self.var + 1e-8).sqrt())

    def forward(self, x):
        if x.dtype == torch.uint8:
            return (x - self.mean) / 255
        return ((x.float() - self.mean) / self.std).clamp(-10, 10)


class RewardNorm(RunningNorm):
    """Divides rewards by the standard deviation of the discounted sum of past rewards (Engstrom et al. 2020).

    The divisor is at least a fifth of the mean absolute value of the latest rewards. Otherwise rewards that hardly
    vary, as in episodes of one step, would all be clipped and look the same.
    """

    ret = 0  # discounted sum of past rewards in each environment; 0 when episodes start

    def update(self, rew, done, gamma):
        """Include a rollout's rewards [T, N] in the statistics."""
        rets = []
        for r, d in zip(rew.numpy(force=True), done.numpy(force=True)):
            rets.append(r + gamma * self.ret)
            self.ret = rets[-1] * ~d
        super().update(to_tensor(rets, rew.device).flatten())
        self.std.clamp_(min=all_mean(rew.abs().mean()) / 5)

    def forward(self, rew):
        return (rew / self.std).clamp(-10, 10)


class MLP(nn.Sequential):
    """Fully connected layers with tanh between them: [..., features] -> [..., out]."""

    def __init__(self, *layers):
        super().__init__(*layers)
        # Calling the layers themselves would nearly double the time.
        self.params = [(layer.weight, layer.bias) for layer in layers]

    def forward(self, x):
        for weight, bias in self.params[:-1]:
            x = nn.functional.linear(x, weight, bias).tanh()
        return nn.functional.linear(x, *self.params[-1])


class ConvNet(nn.Sequential):
    """Layers for images with one or more leading dimensions: [..., C, H, W] -> [..., features]."""

    def forward(self, x):
        images = x.flatten(0, -4).contiguous(memory_format=torch.channels_last)  # on a CPU, a third less time
        features = super().forward(images)
        return features.unflatten(0, x.shape[:-3])


def orthogonal(layer, gain=2**0.5):
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def network(shape, hidden_sizes, out, gain):
    """Fully connected tanh layers for vectors; the convolutional network of Mnih et al. (2015) for images [C, H, W]."""
    if len(shape) == 3:
        layers = [orthogonal(nn.Conv2d(shape[0], 32, 8, 4)), nn.ReLU()]
        layers += [orthogonal(nn.Conv2d(32, 64, 4, 2)), nn.ReLU()]
        layers += [orthogonal(nn.Conv2d(64, 64, 3, 1)), nn.ReLU()]
        body = ConvNet(*layers, nn.Flatten())
        features = body(torch.zeros(1, *shape)).shape[1]
        hidden = orthogonal(nn.Linear(features, 512))
        head = orthogonal(nn.Linear(512, out), gain)
        return nn.Sequential(body, hidden, nn.ReLU(), head)
    layers, size = [], shape[0]
    for hidden in hidden_sizes:
        layers.append(orthogonal(nn.Linear(size, hidden)))
        size = hidden
    return MLP(*layers, orthogonal(nn.Linear(size, out), gain))


ACTIONS = spaces.Box, spaces.Discrete, spaces.MultiDiscrete  # the action spaces that ActorCritic supports


class ActorCritic(nn.Module):
    """Policy pi(a|s) and value function V(s) in separate networks, with the statistics that scale obs and rew."""

    def __init__(self, obs_space, act_space, args):
        super().__init__()
        self.obs_norm = RunningNorm(obs_space.shape)
        self.reward_norm = RewardNorm(())
        self.act_shape = act_space.shape
        if isinstance(act_space, spaces.Box):
            self.distribution = Gaussian
            outputs = math.prod(act_space.shape)
            self.bounded = act_space.is_bounded()  # make_env rescales bounded actions to [-1, 1]
            # Initial std 1.6 / K^0.75: one component covers [-1, 1]; as much noise in every joint topples robots.
            self.log_std = nn.Parameter(torch.full((outputs,), 0.5 - 0.75 * math.log(outputs)))
        else:  # K components with up to M choices each; missing choices get probability 0
            choices = act_space.nvec if isinstance(act_space, spaces.MultiDiscrete) else act_space.n
            choices = torch.tensor(choices).reshape(-1, 1)  # [K, 1]
            missing = torch.arange(choices.max()) >= choices  # [K, M]
            self.mask = nn.Buffer(-1e9 * missing, persistent=False)  # with -inf, the entropy would be nan
            self.distribution = Categorical
            outputs = self.mask.numel()
        self.actor = network(obs_space.shape, args.hidden_sizes, outputs, 0.01)  # hardly depends on obs at first
        self.critic = network(obs_space.shape, args.hidden_sizes, 1, 1)

    @property
    def device(self):
        return self.obs_norm.mean.device

    def policy(self, obs):
        """Action distributions for observations [..., *obs]."""
        out = self.actor(self.obs_norm(obs))
        if self.distribution is Categorical:
            return Categorical(out.unflatten(-1, self.mask.shape) + self.mask)
        mean = out.tanh() if self.bounded else out  # clamp would have no gradient outside the bounds
        return Gaussian(torch.stack([mean, self.log_std.expand_as(mean)], -1))

    def value(self, obs):
        """Expected discounted return in units of scaled reward, [..., *obs] -> [...]."""
        return self.critic(self.obs_norm(obs)).squeeze(-1)

    @torch.no_grad()
    def act(self, obs, greedy=False):
        """Actions in the environment's format, sampled or most likely; numpy [N, *obs] -> numpy [N, *act]."""
        pi = self.policy(to_tensor(obs, self.device))
        act = pi.mode() if greedy else pi.sample()  # [N, K]
        return act.cpu().numpy().reshape(-1, *self.act_shape)


class InputError(ValueError):
    """Invalid flag, environment or checkpoint; the message names it and says what is accepted."""


def make_env(env_id, **options):
    """Environment with vector or [C, H, W] observations; bounded actions are rescaled to [-1, 1]. Raises InputError."""
    try:
        if env_id.startswith("ALE/"):
            env = gym.make(f"ale_py:{env_id}", frameskip=1, **options)
            env = wrappers.FrameStackObservation(wrappers.AtariPreprocessing(env), 4)
        else:
            env = gym.make(env_id, **options)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        hint = ' For Atari: pip install "gymnasium[atari]" opencv-python-headless' if "ALE/" in env_id else ""
        raise InputError(f"--env-id {env_id}: {error}{hint}") from error
    if env.spec.max_episode_steps is None:
        env = wrappers.TimeLimit(env, 27_000)  # Atari's limit; without one, an episode might never end
    obs = env.observation_space
    act = env.action_space
    if not obs.is_np_flattenable or not isinstance(act, ACTIONS):
        accepted = f"{', '.join(space.__name__ for space in ACTIONS)} actions and observations that can be flattened"
        raise InputError(f"--env-id {env_id}: {act} actions and {obs} observations; supported are {accepted}")
    return wrap_actions(wrap_observations(env))


def wrap_observations(env):
    """Images become [C, H, W], all other observations vectors."""
    space = env.observation_space
    shape = space.shape if isinstance(space, spaces.Box) else ()
    if len(shape) != 3 or sorted(shape)[1] < 36:  # the shorter side is too short for the convolutions
        return env if len(shape) == 1 else wrappers.FlattenObservation(env)
    if shape[0] < shape[2]:  # the channels come first already
        return env
    low, high = space.low.transpose(2, 0, 1), space.high.transpose(2, 0, 1)
    space = spaces.Box(low, high, dtype=space.dtype)
    return wrappers.TransformObservation(env, lambda obs: obs.transpose(2, 0, 1), space)


def wrap_actions(env):
    """Bounded Box actions become [-1, 1]; Discrete and MultiDiscrete actions count from 0."""
    space = env.action_space
    if isinstance(space, spaces.Box) and space.dtype.kind != "f":
        raise InputError(f"--env-id {env.spec.id}: {space} actions; supported are boxes of floats, or MultiDiscrete")
    if not isinstance(space, spaces.Box):
        return wrappers.TransformAction(env, lambda act: act + space.start, space) if np.any(space.start) else env
    # Clipped after rescaling, which may exceed a bound by a rounding error. ClipAction would remove the bounds.
    env = wrappers.TransformAction(env, lambda act: np.clip(act, space.low, space.high), space)
    return wrappers.RescaleAction(env, -1, 1) if space.is_bounded() else env


def make_envs(args):
    """N environments as one vector environment without autoreset."""
    envs = [lambda: make_env(args.env_id)] * args.num_envs
    if not args.async_envs:
        return gym.vector.SyncVectorEnv(envs, autoreset_mode="Disabled")
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the new processes: they ignore Ctrl-C
    envs = gym.vector.AsyncVectorEnv(envs, autoreset_mode="Disabled")
    signal.signal(signal.SIGINT, handler)
    return envs


class Run:
    """Folder, counters, checkpoints, metrics and evaluation of one run. Under torchrun, only worker 0 writes."""

    def __init__(self, args, envs, **parts):
        """parts: agent, optimizer and all else that a checkpoint must hold."""
        self.args, self.envs = args, envs
        self.agent, self.parts = parts["agent"], parts
        self.step, self.seconds, self.metrics_size = 0, 0.0, 0
        self.checkpoint_due = True
        self.recent = deque(maxlen=20)  # (return, length) of the latest finished episodes
        self.current = np.zeros((2, args.num_envs))  # return and length so far of the unfinished episodes
        if args.resume:
            self.restore(load(args.resume))
        self.start = time.perf_counter() - self.seconds
        self.wandb = None
        options = {"render_mode": "human" if args.render else "rgb_array"} if args.render or args.capture_video else {}
        self.eval_env = make_env(args.env_id, **options)

        env_id = args.env_id.replace("/", "-").replace(":", "-")
        name = f"runs/{env_id}__{Path(__file__).stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        self.folder = Path(args.run_dir or (Path(args.resume).parent if args.resume else name))
        self.checkpoint = self.folder / "checkpoint.pt"
        if RANK == 0:
            try:
                self.open_files()
            except OSError as error:
                raise InputError(f"--run-dir {self.folder}: {error}") from error

    def restore(self, saved):
        """Continue from a checkpoint."""
        if saved["args"]["env_id"] != self.args.env_id:
            raise InputError(f"--env-id {self.args.env_id}: the checkpoint is for {saved['args']['env_id']}")
        for name, part in self.parts.items():
            try:
                part.load_state_dict(saved[name])
            except Exception as error:
                raise InputError(f"--resume {self.args.resume}: its {name} does not fit the flags") from error
        self.step = saved["step"]
        self.seconds = saved["seconds"]
        self.metrics_size = saved["metrics_size"]
        self.recent.extend(saved["recent"])

    def open_files(self):
        """Create the folder with args.json and metrics.csv, the progress bar and the Weights & Biases run."""
        resume = self.args.resume
        if self.checkpoint.exists() and not (resume and self.checkpoint.samefile(resume)):
            raise InputError(f"--run-dir {self.folder}: contains a run; choose another or --resume {self.checkpoint}")
        if self.args.track:
            self.start_tracking()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "args.json").write_text(json.dumps(vars(self.args), indent=2))
        self.metrics = open(self.folder / "metrics.csv", "a", newline="")
        self.metrics.seek(min(self.metrics_size, self.metrics.tell()))
        self.metrics.truncate()  # drop rows after the checkpoint
        self.bar = tqdm(total=self.args.total_timesteps, initial=self.step, unit_scale=True, disable=None)

    def start_tracking(self):
        """Start a run at Weights & Biases. Raises InputError; does not wait for somebody to type an API key."""
        stdin, sys.stdin = sys.stdin, None
        try:
            import wandb

            config = vars(self.args)
            self.wandb = wandb.init(dir=self.folder, name=self.folder.name, config=config)
        except Exception as error:
            raise InputError(f"--track: {error}; pip install wandb; wandb login or WANDB_MODE=offline") from error
        finally:
            sys.stdin = stdin

    def track(self, method, *args, **kwargs):
        """Call a method of the run at Weights & Biases, if there is one; after an error, continue without it."""
        try:
            if self.wandb:
                getattr(self.wandb, method)(*args, **kwargs)
        except Exception as error:
            self.wandb = None
            print(f"\n--track: no longer logging: {error}", file=sys.stderr)

    def __enter__(self):
        # Join the other workers only after the optimizer is made. One of torch.optim in place of Adam would import
        # torch._dynamo, which holds an existing process group to the end; Python then sometimes aborts at its exit.
        if WORKERS > 1:
            torch.distributed.init_process_group()
        return self

    def __exit__(self, exc_type, *_):
        if exc_type in (None, KeyboardInterrupt):
            self.save()
        if exc_type is KeyboardInterrupt and RANK == 0:
            print(f"\nstopped at step {self.step}; continue with --resume {self.checkpoint}", file=sys.stderr)
        self.envs.close(terminate=True)  # without waiting for a step that has not ended
        if WORKERS > 1:
            torch.distributed.destroy_process_group()
        if exc_type is None and RANK == 0:
            self.finish()

    def rollouts(self):
        """Yield the fraction of the budget used so far, as long as another rollout of T steps fits."""
        args = self.args
        rollout = args.num_steps * args.num_envs * WORKERS
        while self.step + rollout <= args.total_timesteps:
            yield self.step / args.total_timesteps

    def checkpoint_if_due(self, obs):
        """Save if due; reset all environments if due or if obs is None. Returns the observations to act on."""
        if self.checkpoint_due:
            self.save()
        elif obs is not None:
            return obs
        # The states of random generators and environments are not saved. Reset both here and in a resumed run alike.
        sequence = np.random.SeedSequence((self.args.seed, self.step, RANK))
        torch_seed, *env_seeds = sequence.generate_state(1 + self.args.num_envs).tolist()
        torch.manual_seed(torch_seed)
        self.current[:] = 0
        self.agent.reward_norm.ret = 0
        self.checkpoint_due = False
        return self.envs.reset(seed=env_seeds)[0]

    def save(self):
        if RANK == 0:
            saved = {name: part.state_dict() for name, part in self.parts.items()} | {
                "format": CHECKPOINT,
                "args": vars(self.args),
                "step": self.step,
                "seconds": self.seconds,
                "recent": list(self.recent),
                "metrics_size": self.metrics.tell(),
            }
            try:
                torch.save(saved, f"{self.checkpoint}.new")
            except RuntimeError as error:  # torch does not say why
                raise OSError(f"cannot write {self.checkpoint}.new; the disk is full or the folder gone") from error
            os.replace(f"{self.checkpoint}.new", self.checkpoint)  # atomic, so there is always a complete checkpoint

    def report(self, rollout, metrics):
        """Count a rollout's steps and episodes and write a row of metrics. Raises FloatingPointError."""
        rew, done = rollout.rew.numpy(force=True), rollout.done.numpy(force=True)
        for r, d in zip(rew, done):
            self.current[0] += r
            self.current[1] += 1
            if d.any():
                self.recent.extend(self.current[:, d].T.tolist())
                self.current[:, d] = 0
        steps = rew.size * WORKERS
        self.step += steps
        self.seconds = time.perf_counter() - self.start
        self.checkpoint_due = self.step % self.args.checkpoint_every < steps  # it has just passed a multiple

        ret, length = np.mean(self.recent, 0).tolist() if self.recent else (None, None)
        row = {
            "global_step": self.step,
            "episodic_return": ret,
            "episodic_length": length,
            "steps_per_second": self.step / self.seconds,
            "seconds": self.seconds,
            **metrics,
        }
        numbers = {name: number for name, number in row.items() if number is not None}
        # The smallest number plus the largest is not finite if any is not; a sum over images would take long.
        extremes = zip(["observation", "action", "reward", "observation"], (sum(x.aminmax()) for x in rollout))
        for name, number in [*extremes, *numbers.items()]:
            if not math.isfinite(number):
                hint = f"check the environment; try a smaller --learning-rate; last good checkpoint: {self.checkpoint}"
                raise FloatingPointError(f"{name} is {number:g} at step {self.step}; {hint}")
        if RANK == 0:
            writer = csv.DictWriter(self.metrics, row)
            if self.metrics.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
            self.metrics.flush()
            self.bar.set_postfix({"return": ret}, refresh=False)
            self.bar.update(steps)
        self.track("log", numbers, step=self.step)

    def finish(self):
        """Evaluate the agent, write eval.json and print the result."""
        args = self.args
        self.bar.total = self.step  # the budget need not be a whole number of rollouts
        self.bar.close()
        if args.capture_video:
            self.eval_env = wrappers.RecordVideo(self.eval_env, f"{self.folder}/videos", lambda episode: True)
        returns = evaluate(self.agent, self.eval_env, args.eval_episodes, args.seed)
        result = {
            "mean": np.mean(returns),
            "std": np.std(returns),
            "episodes": len(returns),
            "returns": returns,
            "global_step": self.step,
            "seconds": self.seconds,
        }
        (self.folder / "eval.json").write_text(json.dumps(result, indent=2))
        self.track("log", {"eval": result}, step=self.step)
        self.track("finish")
        print(f"eval: {result['mean']:.1f} +- {result['std']:.1f} over {len(returns)} episodes ({self.folder})")


def evaluate(agent, env, episodes, seed):
    """List of the undiscounted, unscaled returns of episodes with greedy actions."""
    seeds = np.random.SeedSequence(seed, spawn_key=(1,))  # not the seeds of training
    returns = []
    for episode_seed in seeds.generate_state(episodes).tolist():
        obs, ret, done = env.reset(seed=episode_seed)[0], 0.0, False
        while not done:
            act = agent.act([obs], greedy=True)[0]
            obs, rew, terminated, truncated, _ = env.step(act)
            ret, done = ret + float(rew), terminated or truncated
        returns.append(ret)
    env.close()
    return returns


def all_mean(x):
    """Average a tensor over torchrun's workers, in place; returns it."""
    if WORKERS > 1:
        torch.distributed.all_reduce(x)
        x /= WORKERS
    return x


class Adam(nn.Module):
    """Adam (Kingma and Ba 2015, Algorithm 1), on gradients that are averaged over workers and clipped to a norm.

    torch.optim.Adam with eps=1e-5 takes the same steps, but three times as long, and 0.8 s to create. Here all
    parameters become views of one vector and their gradients of another, so that one operation serves all layers.
    Convolutional networks take a quarter of each step: a unit has more inputs, and the changes of its weights add up.
    """

    def __init__(self, params, args):
        super().__init__()
        self.max_grad_norm = args.max_grad_norm
        params = [param for param in params if param.requires_grad]
        self.lr_scale = 0.25 if any(param.ndim == 4 for param in params) else 1
        self.vector = nn.utils.parameters_to_vector(params).detach()
        nn.utils.vector_to_parameters(self.vector, params)  # replaces their data by views
        self.grad = torch.zeros_like(self.vector)
        for param, grad in zip(params, self.grad.split([param.numel() for param in params])):
            param.grad = grad.view_as(param)
        self.mean = nn.Buffer(torch.zeros_like(self.vector))  # running averages of the gradient and of its square
        self.square = nn.Buffer(torch.zeros_like(self.vector))
        self.steps = nn.Buffer(torch.zeros_like(self.vector[0]))

    @torch.no_grad()
    def step(self, loss, lr):
        """Take a step on loss with learning rate lr; returns the norm of the gradient before clipping."""
        self.grad.zero_()
        loss.backward()  # adds to the views of self.grad
        grad = all_mean(self.grad)
        norm = grad.norm()
        grad.mul_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1))
        self.steps.add_(1)
        self.mean.lerp_(grad, 1 - 0.9)
        self.square.lerp_(grad**2, 1 - 0.999)
        mean = self.mean / (1 - 0.9**self.steps)  # corrects the bias toward the initial 0
        square = self.square / (1 - 0.999**self.steps)
        self.vector.sub_(self.lr_scale * lr * mean / (square.sqrt() + 1e-5))
        return norm


def to_tensor(arrays, device):
    """One array, or several of one shape, as one tensor; float64 becomes float32."""
    array = np.asarray(arrays)
    return torch.as_tensor(array.astype(np.float32) if array.dtype == np.float64 else array, device=device)


def check_limits(args):
    """Raise InputError for a number outside LIMITS; by default integers are at least 1 and floats at least 0."""
    for name, value in vars(args).items():
        default = getattr(Args, name)
        if isinstance(default, (str, bool)) or value is None:
            continue
        whole = isinstance(default, (int, tuple))
        low, high = LIMITS.get(name, (int(whole), math.inf))
        if not all(low <= number <= high for number in np.ravel(value)):  # nan is never within limits
            limits = f"between {low} and {high}" if high < math.inf else f"at least {low}"
            raise InputError(f"--{name.replace('_', '-')} {value}: must be {limits}")


def setup(args):
    """Check the flags, seed torch, make the environments; returns envs and device. Raises InputError."""
    check_limits(args)
    rollout = args.num_envs * args.num_steps * WORKERS
    if args.total_timesteps < rollout:
        raise InputError(f"--total-timesteps {args.total_timesteps}: must be at least one rollout, {rollout} steps")
    check_batch(args)
    if args.render and args.capture_video:
        raise InputError("--render: cannot be combined with --capture-video")
    if args.capture_video and not find_spec("moviepy"):
        raise InputError("--capture-video: needs moviepy; pip install moviepy")
    try:
        local = f":{os.environ['LOCAL_RANK']}" if args.device == "cuda" and WORKERS > 1 else ""
        device = torch.zeros(1, device=args.device + local).device  # fails if there is no such device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # more threads slow small networks down
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(args.seed)  # equal initial weights in all workers; checkpoint_if_due reseeds each differently
    return make_envs(args), device


def load(path):
    """Contents of a checkpoint of this script. Raises InputError for any other file."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # refuses files that run code
        found = saved["format"]
    except Exception as error:
        raise InputError(f"--resume {path}: not a checkpoint ({type(error).__name__})") from error
    if found != CHECKPOINT:
        raise InputError(f"--resume {path}: a checkpoint of {found}, not {CHECKPOINT}")
    return saved


def main():
    """Command line. Exit status: 2 invalid input, 1 numbers that are not finite or a full disk, 130 Ctrl-C."""
    try:
        args = tyro.cli(Args, description=__doc__)
        if args.resume:  # the checkpoint's flags, unless given again
            new = {"resume": args.resume, "run_dir": "", "render": False, "capture_video": False}
            try:
                args = tyro.cli(Args, default=Args(**load(args.resume)["args"] | new))
            except (KeyError, TypeError) as error:
                raise InputError(f"--resume {args.resume}: flags of another version ({error})") from error
        train(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if type(error) not in (InputError, FloatingPointError, OSError):  # subclasses of OSError come from environments
            raise
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
