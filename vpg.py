"""Vanilla policy gradient (VPG, REINFORCE) with four choices of the weight psi, from return to GAE.

Williams (1992), REINFORCE. Sutton et al. (2000), the policy gradient theorem. Schulman et al.
(2016), generalized advantage estimation (GAE), arXiv:1506.02438: equation numbers refer to it.

The gradient of the expected return has the form E[sum_t psi_t grad log pi(a_t|s_t)] (Eq. 1). --form
chooses psi_t:

    total-return   the return of the whole episode
    reward-to-go   the return from step t on
    baseline       the return from step t on, minus the value V(s_t): GAE with lambda = 1
    gae            generalized advantage estimation, a weighted mean of n-step advantages (Eq. 16)

The first follows from the log-derivative trick. With gamma = 1, the second and third have the same
mean as the first and usually less variance: E[grad log pi(a|s)] = sum_a pi(a|s) grad log pi(a|s) =
grad sum_a pi(a|s) = 0, so a term that does not depend on a_t, such as the rewards before t or
V(s_t), can be subtracted. baseline bootstraps only where a rollout or time limit cuts an episode,
gae at every step: less variance, but more bias where the critic is wrong. With gamma < 1, the
gradient of the discounted return weights step t by gamma^t. All but total-return leave this factor
out, as late steps would hardly count; what is left is no objective's gradient (Nota and Thomas 2020).

The first two forms do not use the critic and cannot bootstrap, so they need whole episodes: each
rollout resets all environments and goes on after T steps, also beyond the budget, until every
episode that started within them has ended. Later ones count in the budget but not in the update.

Not in the papers:
- psi minus its mean, a constant baseline, divided by its standard deviation plus 0.1, so that noise
  near 0 is not blown up; the mean over steps, not the sum over an episode
- Adam for both networks, with a learning rate that decays to 0, so that the last steps settle
- a critic fit to psi + V in a few gradient steps, for simplicity, in place of a trust region
- observations and rewards scaled by running statistics and clipped at 10, so that one set of flags
  suits many environments
- gradient norms clipped, so that a rare, huge gradient does little harm
- orthogonal initialization, small in the policy's last layer, so that all actions are tried
- tanh on the mean of bounded actions, so that it cannot leave the bounds
- bootstrapping from the last state at a time limit, in the last two forms: the episode would have gone on

Shapes: T steps of N environments, or L >= T with whole episodes; B rows of a batch; K action
components.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces, wrappers
from torch import nn
from tqdm import tqdm

ADV_STD_EPS = 0.1
WITHOUT_CRITIC = "total-return", "reward-to-go"  # forms that need whole episodes
Rollout = namedtuple("Rollout", "obs act rew next_obs terminated done")  # [T, N, ...]
Batch = namedtuple("Batch", "obs act psi ret")  # [B, ...]; ret: V's targets, if there is a critic


@dataclass
class Args:
    form: Literal["total-return", "reward-to-go", "baseline", "gae"] = "gae"  # psi, see above
    num_steps: int = 32  # T, steps of each environment per rollout
    gae_lambda: float = 0.98  # lambda of GAE; smaller: less variance, more error from the critic
    value_epochs: int = 10  # gradient steps on the value loss per rollout, on the full batch
    max_grad_norm: float = 0.5  # clip gradients to this norm; inf: do not clip
    anneal_lr: bool = True  # decay the learning rate linearly to 0

    env_id: str = "CartPole-v1"  # Gymnasium id; "my_module:MyEnv-v0" imports my_module first
    env_kwargs: str = "{}"  # arguments of the environment as JSON, such as '{"continuous": true}'
    seed: int = 1  # on one machine, the same seed and flags give the same run, bit for bit
    total_timesteps: int = 100_000  # steps of all environments and workers, whole rollouts only
    num_envs: int = 8  # N, environments per worker
    gamma: float = 0.995  # discount factor
    learning_rate: float | None = None  # Adam's initial step size; default 1e-3, for images 2.5e-4; continuous: 3e-3
    hidden_sizes: tuple[int, ...] = (64, 64)  # hidden layers for vector observations
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
        check_flags(self, "num_steps", "value_epochs", "max_grad_norm")
        if self.num_envs * self.num_steps < 2:  # the standard deviation of one sample is undefined
            raise InputError("--num-steps 1: with --num-envs 1, must be at least 2")


def gae(rew, val, next_val, terminated, done, gamma, lam):
    """Generalized advantage estimates; arguments and result [T, N] (Schulman et al. 2016, Eq. 16)."""
    delta = rew + gamma * next_val * ~terminated - val  # a time limit is not a terminal state
    discount = gamma * lam * ~done  # no credit flows back from the next episode
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


def compute_psi(form, rollout, rew, val, next_val, gamma, lam):
    """The weight of grad log pi(a_t|s_t), [T, N]; rew: scaled rewards (Eq. 1)."""
    if form == "total-return":
        return total_return(rew, rollout.done, gamma)
    if form == "reward-to-go":
        return reward_to_go(rew, rollout.done, gamma)
    lam = 1.0 if form == "baseline" else lam
    return gae(rew, val, next_val, rollout.terminated, rollout.done, gamma, lam)


def started_before(num_steps, done):
    """Mask of the steps whose episode started before step num_steps of the rollout, [L, N]."""
    counts = torch.ones_like(done)
    for t in range(num_steps, len(done)):
        counts[t] = counts[t - 1] & ~done[t - 1]
    return counts


def update(agent, optimizer, value_optimizer, batch, args):
    """Take one gradient step on the policy (Eq. 1), then several on V, if used; returns metrics."""
    psi = (batch.psi - batch.psi.mean()) / (batch.psi.std() + ADV_STD_EPS)
    pi = agent.policy(batch.obs)
    policy_loss = -(pi.log_prob(batch.act) * psi).mean()
    entropy = pi.entropy().mean()
    policy_params, value_params = agent.policy_parameters(), list(agent.critic.parameters())
    optimizer.zero_grad()
    policy_loss.backward()
    average_gradients(policy_params)  # of torchrun's workers
    grad_norm = nn.utils.clip_grad_norm_(policy_params, args.max_grad_norm)
    optimizer.step()

    value_loss = torch.zeros_like(entropy)
    for _ in range(0 if args.form in WITHOUT_CRITIC else args.value_epochs):
        value_loss = nn.functional.mse_loss(agent.value(batch.obs), batch.ret)
        value_optimizer.zero_grad()
        value_loss.backward()
        average_gradients(value_params)
        nn.utils.clip_grad_norm_(value_params, args.max_grad_norm)
        value_optimizer.step()

    names = "policy_loss", "value_loss", "entropy", "grad_norm"
    return dict(zip(names, torch.stack([policy_loss, value_loss, entropy, grad_norm]).tolist()))


def collect(agent, envs, obs, num_steps):
    """Take T steps in each of N environments, from obs; returns a Rollout and the obs to go on from."""
    steps = []
    for _ in range(num_steps):
        act = agent.act(obs)  # sampled
        next_obs, rew, terminated, truncated, _ = envs.step(act)
        done = terminated | truncated
        steps.append((obs, act.reshape(len(act), -1), rew, next_obs, terminated, done))
        # Autoreset is off, so next_obs is the true successor. Reset only where an episode ended.
        obs = envs.reset(options={"reset_mask": done})[0] if done.any() else next_obs
    return Rollout(*[to_tensor(column, agent.device) for column in zip(*steps)]), obs


def collect_episodes(agent, envs, obs, num_steps):
    """Like collect, but goes on until every episode that started within T steps has ended."""
    rollout, obs = collect(agent, envs, obs, num_steps)
    steps, unfinished = [rollout], ~rollout.done[-1]  # [N]
    while all_mean(unfinished.float().max()) > 0:  # of any worker: all take the same number of steps
        step, obs = collect(agent, envs, obs, 1)
        unfinished &= ~step.done[0]
        steps.append(step)
    return Rollout(*map(torch.cat, zip(*steps))), obs


def train(args):
    """Train an agent and return it; its files are in the run's folder. Raises InputError."""
    device = setup_torch(args)  # threads, seed
    envs = make_envs(args)
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space, args).to(device)
    rate = 1e-3 if agent.log_std is None else 3e-3  # a wide Gaussian's mean must move further than logits
    learning_rate = args.learning_rate or (rate / 4 if agent.images else rate)
    optimizer = torch.optim.Adam(agent.policy_parameters(), learning_rate, eps=1e-5, fused=True)
    value_optimizer = torch.optim.Adam(agent.critic.parameters(), learning_rate, eps=1e-5, fused=True)
    whole_episodes = args.form in WITHOUT_CRITIC
    # Run logs, saves checkpoints and resumes from them; at the end it evaluates the agent.
    with Run(args, envs, agent=agent, optimizer=optimizer, value_optimizer=value_optimizer) as run:
        while run.step + run.rollout_steps <= args.total_timesteps:
            if run.checkpoint_due:  # also before the first rollout
                run.save()
            if run.checkpoint_due or whole_episodes:  # save does not change it, reset does
                obs = run.reset()  # as a resumed run does, so that both go on alike, bit for bit
            decay = 1 - run.step / args.total_timesteps if args.anneal_lr else 1
            for group in optimizer.param_groups + value_optimizer.param_groups:
                group["lr"] = learning_rate * decay

            # Collect T steps in each of N environments with the current policy, or whole episodes.
            collect_rollout = collect_episodes if whole_episodes else collect
            rollout, obs = collect_rollout(agent, envs, obs, args.num_steps)

            # Compute psi, the weight of each action's grad log pi.
            with torch.no_grad():
                both = torch.stack([rollout.obs, rollout.next_obs]).flatten(0, 2)
                val, next_val = agent.value(both).view(2, *rollout.rew.shape)
                agent.reward_norm.update(rollout.rew, rollout.done, args.gamma)  # std of returns
                rew, lam = agent.reward_norm(rollout.rew), args.gae_lambda
                psi = compute_psi(args.form, rollout, rew, val, next_val, args.gamma, lam)

            # Update policy and value; then obs_norm, so that the update sees obs scaled as they were.
            counts = started_before(args.num_steps, rollout.done)  # [L, N]
            columns = rollout.obs, rollout.act, psi, psi + val
            batch = Batch(*[x[counts] for x in columns])
            metrics = update(agent, optimizer, value_optimizer, batch, args)
            agent.obs_norm.update(rollout.obs.flatten(0, 1))
            # Of later episodes only short ones have ended: left out of the averages.
            run.report(rollout._replace(done=rollout.done & counts), metrics)  # adds to run.step
    return agent


# From here on: shared. This text is the same in vpg.py, a2c.py, trpo.py and ppo.py.

RANK = int(os.environ.get("RANK", 0))  # set by torchrun, as is the number of workers
WORKERS = int(os.environ.get("WORLD_SIZE", 1))
BAR = {"mininterval": 0.1 if sys.stderr.isatty() else 30}  # in a log file, a line now and then


class Categorical:  # written out, like Gaussian: torch's would cost a fifth of the speed
    """A categorical distribution for each of K components with M choices; logits [..., K, M]."""

    def __init__(self, logits):
        self.logits = logits.log_softmax(-1)

    @property
    def mode(self):
        return self.logits.argmax(-1)

    def sample(self):
        noise = torch.empty_like(self.logits).exponential_()
        return (self.logits - noise.log()).argmax(-1)  # Gumbel-max trick

    def log_prob(self, act):
        return self.logits.gather(-1, act[..., None]).sum((-1, -2))

    def entropy(self):
        return -(self.logits.exp() * self.logits).sum((-1, -2))


class Gaussian:
    """A normal distribution for each of K components; mean [..., K], log_std [K].

    Samples are not bounded. The environment clips them; log_prob is that of the sample itself.
    """

    def __init__(self, mean, log_std):
        self.mode = self.mean = mean
        self.log_std, self.std = log_std, log_std.exp()

    def sample(self):
        return self.mean + self.std * torch.randn_like(self.mean)

    def log_prob(self, act):
        z = (act - self.mean) / self.std
        log_density = -(z**2) / 2 - self.log_std - math.log(2 * math.pi) / 2
        return log_density.sum(-1)

    def entropy(self):
        entropy = self.log_std + math.log(2 * math.pi * math.e) / 2
        return entropy.expand_as(self.mean).sum(-1)


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


ACTIONS = spaces.Box, spaces.Discrete, spaces.MultiDiscrete  # the supported action spaces


class ActorCritic(nn.Module):
    """Policy pi(a|s) and value function V(s), with the statistics that scale obs and rew."""

    def __init__(self, obs_space, act_space, args):
        super().__init__()
        self.obs_norm = RunningNorm(obs_space.shape, args.norm_obs)
        self.reward_norm = RewardNorm((), args.norm_reward)
        self.images = len(obs_space.shape) == 3
        self.act_shape, self.log_std = act_space.shape, None
        if isinstance(act_space, spaces.Box):
            outputs = math.prod(act_space.shape)
            self.bounded = act_space.is_bounded()  # make_env rescales bounded actions to [-1, 1]
            # 1.6 / K^0.75: one component covers [-1, 1]; as much in every joint topples robots.
            self.log_std = nn.Parameter(torch.full((outputs,), 0.5 - 0.75 * math.log(outputs)))
        else:  # K components with up to M choices each
            choices = act_space.nvec if isinstance(act_space, spaces.MultiDiscrete) else act_space.n
            choices = torch.tensor(choices).reshape(-1, 1)  # [K, 1]
            self.missing = nn.Buffer(torch.arange(choices.max()) >= choices, persistent=False)
            outputs = self.missing.numel()
        self.actor = network(obs_space.shape, args.hidden_sizes, outputs, 0.01)
        self.critic = network(obs_space.shape, args.hidden_sizes, 1, 1)

    @property
    def device(self):
        return self.obs_norm.mean.device

    def policy(self, obs):
        """Distribution of actions [B, K], given obs [B, *obs]; torch's with Independent will do."""
        out = self.actor(self.obs_norm(obs))
        if self.log_std is None:
            logits = out.unflatten(-1, self.missing.shape)  # [B, K, M]
            return Categorical(logits.masked_fill(self.missing, -1e9))  # -inf: entropy nan
        mean = out.tanh() if self.bounded else out  # clamp would have no gradient out of bounds
        return Gaussian(mean, self.log_std.clone())  # a copy: later steps do not change it

    def value(self, obs):
        """Expected discounted return in units of scaled reward, [B, *obs] -> [B]."""
        return self.critic(self.obs_norm(obs)).squeeze(-1)

    def policy_parameters(self):
        return [*self.actor.parameters()] + ([] if self.log_std is None else [self.log_std])

    @torch.no_grad()
    def act(self, obs, greedy=False):
        """Actions for an environment of make_env, bounded ones in [-1, 1]; [N, *obs] -> [N, *act]."""
        pi = self.policy(to_tensor(obs, self.device))
        act = pi.mode if greedy else pi.sample()  # [N, K]
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
