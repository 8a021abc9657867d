# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "gymnasium[classic-control]>=1.1", "moviepy>=2.0", "numpy>=1.26", "torch>=2.4",
#   "tqdm>=4.66", "tyro>=0.9", "wandb>=0.18",
# ]
# ///
"""Vanilla policy gradient (VPG, REINFORCE) with four weights of the score: from the return to the advantage.

Williams (1992), "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning". Sutton,
McAllester, Singh and Mansour (2000), "Policy Gradient Methods for Reinforcement Learning with Function Approximation".
Schulman, Moritz, Levine, Jordan and Abbeel (2016), "High-Dimensional Continuous Control Using Generalized Advantage
Estimation", arXiv:1506.02438; equation numbers are this paper's.

The gradient of the expected return is E[sum_t psi_t grad log pi(a_t|s_t)] (Eq. 1), and psi_t can be (--form)

    total-return   the rewards of the whole episode
    reward-to-go   the rewards from t on
    baseline       the rewards from t on, less the value V(s_t) that a critic expected
    gae            a mean of the critic's estimates over all horizons, weighted by lambda (Eq. 16)

The first follows from the log-derivative trick. With gamma = 1 the second and third have the same mean and less
variance, because E[grad log pi(a|s)] = sum_a pi(a|s) grad log pi(a|s) = grad sum_a pi(a|s) = 0 in any state (the
expected grad-log-prob lemma): what is known before a_t is drawn, the rewards before t or V(s_t), can be taken away and
the mean stays. The fourth lets the critic stand for rewards to come: less variance again, and a bias as far as the
critic is wrong. The third is the fourth with lambda = 1, where the critic stands only for what follows a cut: the end
of a rollout, or a time limit.

Discounting: total-return is discounted from the episode's start and follows the discounted return exactly. The others
discount from t. Exact would be gamma^t times that; the factor is dropped, as is usual, since with it late steps would
hardly count. So with gamma < 1 they are biased, and follow the gradient of no function (Nota and Thomas 2020).

Without a critic nobody can say what follows after a cut. The first two forms therefore use whole episodes only: none
begins after the first T steps of a rollout, and those under way are played to their end. A time limit ends an episode
for good there; with a critic, its last state keeps its value.

Not in the papers: weights standardised in each batch, which takes their mean away too; Adam; gradients clipped to a
maximum norm; observations and rewards scaled by running statistics and clipped at 10; networks that start orthogonal;
means of bounded actions kept within the bounds.

Shapes: T steps of N environments; B steps of a batch or minibatch; K components of an action, M parameters of each.
"""

import csv
import importlib.util
import json
import math
import os
import signal
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from gymnasium import spaces, wrappers
from torch import nn
from tqdm import tqdm

CHECKPOINT = "vpg 1"  # script and version: checkpoints of others are refused
WITHOUT_CRITIC = "total-return", "reward-to-go"  # forms that need whole episodes


@dataclass
class Args:
    form: Literal["total-return", "reward-to-go", "baseline", "gae"] = "gae"  # psi, the weight of an action's score
    num_steps: int = 32  # T, steps of each environment in a rollout
    gae_lambda: float = 0.95  # 0: least variance, most bias; 1: the reverse
    value_epochs: int = 10  # passes over a rollout that fit the values, a gradient step each
    max_grad_norm: float = 0.5  # gradients are clipped to this norm
    anneal_lr: bool = True  # learning rate decays linearly towards 0

    env_id: str = "CartPole-v1"  # Gymnasium id; "my_module:MyEnv-v0" imports my_module first
    seed: int = 1  # same seed, same machine: same run, bit for bit
    total_timesteps: int = 100_000  # environment steps, of all environments and workers together
    num_envs: int = 16  # N, environments of each worker
    gamma: float = 0.99  # discount factor
    learning_rate: float = 5e-3  # Adam's step size at the start
    hidden_sizes: tuple[int, ...] = (64, 64)  # layers of the networks for vector observations
    device: str = "cpu"  # cpu, cuda, cuda:1
    async_envs: bool = False  # a process for each environment: for slow simulators
    run_dir: str = ""  # folder for the results; default runs/<env>__<script>__<seed>__<time>
    resume: str = ""  # checkpoint.pt to go on from, with its own flags unless given anew
    checkpoint_every: int = 100_000  # environment steps between checkpoints; each resets all environments
    eval_episodes: int = 10  # episodes of the final evaluation, whose actions are greedy
    render: bool = False  # show the evaluation in a window
    capture_video: bool = False  # film the evaluation into <run_dir>/videos
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "rl"  # project to log to
    wandb_entity: str | None = None  # team to log to


def gae(rew, val, next_val, terminated, done, gamma, lam):
    """Generalised advantage estimate of each action; arguments and result [T, N] (Schulman et al. 2016, Eq. 16)."""
    delta = rew + gamma * next_val * ~terminated - val  # a terminal state is worth 0; a time limit is not terminal
    discount = gamma * lam * (~done).to(delta.dtype)  # no credit flows back over an episode's end
    adv, trace = torch.zeros_like(delta), 0
    for t in reversed(range(len(delta))):
        adv[t] = trace = delta[t] + discount[t] * trace
    return adv


def reward_to_go(rew, done, gamma):
    """Discounted rewards from each step to its episode's end; arguments and result [T, N] (Eq. 1, form 2)."""
    ret, later = torch.zeros_like(rew), 0
    for t in reversed(range(len(rew))):
        ret[t] = later = rew[t] + gamma * later * ~done[t]
    return ret


def total_return(rew, done, gamma):
    """Discounted rewards of the whole episode, at each of its steps; arguments and result [T, N] (Eq. 1, form 1)."""
    ret = reward_to_go(rew, done, gamma)
    for t in range(1, len(ret)):
        ret[t] = torch.where(done[t - 1], ret[t], ret[t - 1])
    return ret


def score_weight(form, rew, val, next_val, terminated, done, gamma, lam):
    """psi, what each action's score counts; the other arguments and the result [T, N] (Eq. 1)."""
    if form == "total-return":
        return total_return(rew, done, gamma)
    if form == "reward-to-go":
        return reward_to_go(rew, done, gamma)
    return gae(rew, val, next_val, terminated, done, gamma, 1.0 if form == "baseline" else lam)


def begun_before(step, done):
    """Which steps belong to an episode that began before the given one; done and result [T, N]."""
    ends = done.clone()
    ends[: step - 1] = False
    return ends.cumsum(0) - ends.int() == 0


def update(agent, optimizer, batch, args):
    """One step of the policy by Eq. 1, several of the values; batch: obs, act, weight, ret, each [B, ...]."""
    obs, act, weight, ret = batch
    pi = agent.policy(obs)
    weight = (weight - weight.mean()) / (weight.std() + 0.1)  # 0.1: noise alone must not move a good policy
    policy_loss = -(pi.log_prob(act) * weight).mean()
    entropy = pi.entropy().mean()
    grad_norm = gradient_step(optimizer, policy_loss, args.max_grad_norm)

    v_loss = torch.zeros_like(entropy)
    for _ in range(0 if args.form in WITHOUT_CRITIC else args.value_epochs):
        v_loss = F.mse_loss(agent.value(obs), ret)
        gradient_step(optimizer, v_loss, args.max_grad_norm)

    names = "policy_loss", "value_loss", "entropy", "grad_norm"
    return dict(zip(names, torch.stack([policy_loss, v_loss, entropy, grad_norm]).tolist()))


def train(args):
    """Train an agent and return it; the README says what it leaves on disk. Raises BadInput, FloatingPointError."""
    device = setup(args)
    envs, eval_env = make_envs(args), make_env(args, evaluation=True)
    agent = ActorCritic(envs.single_observation_space, envs.single_action_space, args).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate, eps=1e-5, fused=True)
    whole_episodes = args.form in WITHOUT_CRITIC

    with Run(args, agent=agent, optimizer=optimizer) as run:
        batch_size = args.num_steps * args.num_envs * WORKERS
        while run.step + batch_size <= args.total_timesteps:
            if run.cut_due or whole_episodes:  # save, reseed, reset; whole episodes need it for each rollout
                obs = run.clean_cut(envs)
            left = 1 - run.step / args.total_timesteps
            optimizer.param_groups[0]["lr"] = args.learning_rate * (left if args.anneal_lr else 1)

            # Collect: T steps in each of N environments, or until whole episodes end, all by the current policy.
            rollout, playing = [], torch.ones(args.num_envs)
            while len(rollout) < args.num_steps or whole_episodes and all_mean([playing.max()])[0] > 0:
                act = agent.act(obs)
                next_obs, rew, terminated, truncated, _ = envs.step(act.reshape(envs.action_space.shape))
                done = terminated | truncated
                rollout.append((obs, act, rew, next_obs, terminated, done))
                obs = envs.reset(options={"reset_mask": done})[0] if done.any() else next_obs
                if len(rollout) >= args.num_steps:
                    playing[done] = 0  # what follows belongs to an episode that began too late
            # The whole rollout, [T, N, ...] each.
            b_obs, b_act, b_rew, b_next_obs, b_terminated, b_done = (to_tensor(x, device) for x in zip(*rollout))

            # Evaluate: what does each action's score count?
            with torch.no_grad():
                val, next_val = agent.value(torch.stack([b_obs, b_next_obs]))
                rew = agent.reward_norm(b_rew, b_done)
                weight = score_weight(args.form, rew, val, next_val, b_terminated, b_done, args.gamma, args.gae_lambda)

            # Improve; the statistics last, so that old and new policy see the same inputs.
            used = begun_before(args.num_steps, b_done)
            batch = [x[used] for x in (b_obs, b_act, weight, weight + val)]  # [B, ...]
            losses = update(agent, optimizer, batch, args)
            agent.obs_norm.update(b_obs.flatten(0, 1))
            run.report(b_rew, b_done, losses)
    run.finish(eval_env)
    return agent


# From here on: shared by all scripts of the family, the same text in each.


class Categorical:
    """A categorical distribution for each action component; params: unnormalised log-probabilities [..., K, M]."""

    def __init__(self, params):
        self.params = params.log_softmax(-1)

    def sample(self):  # the largest of log-probability + Gumbel noise
        return (self.params - torch.empty_like(self.params).exponential_().log()).argmax(-1)

    def mode(self):
        return self.params.argmax(-1)

    def log_prob(self, act):
        return self.params.gather(-1, act[..., None]).sum((-1, -2))

    def entropy(self):
        return -(self.params.exp() * self.params).sum((-1, -2))

    def kl(self, other):
        return (self.params.exp() * (self.params - other.params)).sum((-1, -2))


class Gaussian:
    """A normal distribution for each action component; params: mean and log standard deviation [..., K, 2]."""

    def __init__(self, params):
        self.params = params
        self.mean, self.log_std = params.unbind(-1)

    def sample(self):
        return self.mean + self.log_std.exp() * torch.randn_like(self.mean)

    def mode(self):
        return self.mean

    def log_prob(self, act):
        z = (act - self.mean) / self.log_std.exp()
        return -(z**2 / 2 + self.log_std + math.log(2 * math.pi) / 2).sum(-1)

    def entropy(self):
        return (self.log_std + math.log(2 * math.pi * math.e) / 2).sum(-1)

    def kl(self, other):
        z = (self.mean - other.mean) / other.log_std.exp()
        log_ratio = 2 * (self.log_std - other.log_std)
        return (log_ratio.exp() + z**2 - 1 - log_ratio).sum(-1) / 2


class RunningNorm(nn.Module):
    """Standardises by mean and variance of all [B, *shape] seen so far by all workers; divides bytes by 255."""

    def __init__(self, shape):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))  # buffers: a state_dict carries them
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("count", torch.zeros(()))

    def update(self, x):
        if x.dtype != torch.uint8:
            var, mean = torch.var_mean(x.double(), 0, correction=0)
            shift = mean - self.mean
            shift, square = all_mean([shift, var + shift**2])  # about the mean so far
            self.count += len(x)
            weight = len(x) / self.count
            self.mean += weight * shift
            self.var.copy_(torch.lerp(self.var.double(), square, weight.double()) - (weight * shift) ** 2)
            self.std.copy_((self.var + 1e-8).sqrt())

    def forward(self, x):
        return x / 255 if x.dtype == torch.uint8 else ((x.float() - self.mean) / self.std).clamp(-10, 10)


class RewardNorm(RunningNorm):
    """Divides rewards by the standard deviation of the discounted sum of rewards so far (Engstrom et al. 2020)."""

    def __init__(self, gamma):
        super().__init__(())
        self.gamma, self.ret = gamma, 0

    def forward(self, rew, done):  # [T, N]
        rets = []
        for r, d in zip(rew.numpy(force=True), done.numpy(force=True)):
            rets.append(r + self.gamma * self.ret)
            self.ret = rets[-1] * ~d
        self.update(to_tensor(rets, rew.device).flatten())
        return (rew / self.std).clamp(-10, 10)


class MLP(nn.Sequential):
    """Linear layers with tanh between: [..., in] -> [..., out]."""

    def forward(self, x):
        *hidden, last = self
        for linear in hidden:  # F.linear(...) rather than linear(x), which takes twice as long on a small layer
            x = F.linear(x, linear.weight, linear.bias).tanh()
        return F.linear(x, last.weight, last.bias)


class ConvNet(nn.Sequential):
    """Layers for images, for any leading dimensions: [..., C, H, W] -> [..., features]."""

    def forward(self, x):
        return super().forward(x.flatten(0, -4)).unflatten(0, x.shape[:-3])


def layer(module, gain=2**0.5):
    nn.init.orthogonal_(module.weight, gain)
    nn.init.zeros_(module.bias)
    return module


def network(shape, hidden_sizes, out, gain):
    """An MLP for vectors; the convolutional network of Mnih et al. (2015) for images [C, H, W]."""
    if len(shape) == 3:
        convs = (layer(nn.Conv2d(*conv)) for conv in ((shape[0], 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)))
        body = ConvNet(*(m for conv in convs for m in (conv, nn.ReLU())), nn.Flatten())
        features = body(torch.zeros(1, *shape)).shape[1]
        return nn.Sequential(body, layer(nn.Linear(features, 512)), nn.ReLU(), layer(nn.Linear(512, out), gain))
    sizes = [*shape, *hidden_sizes]
    return MLP(*(layer(nn.Linear(*pair)) for pair in pairwise(sizes)), layer(nn.Linear(sizes[-1], out), gain))


class ActorCritic(nn.Module):
    """Policy pi(a|s) and value function V(s), a network each, with the statistics that scale what they see."""

    def __init__(self, obs_space, act_space, args):
        super().__init__()
        self.obs_norm, self.reward_norm = RunningNorm(obs_space.shape), RewardNorm(args.gamma)
        if isinstance(act_space, spaces.Box):
            self.distribution, outputs = Gaussian, math.prod(act_space.shape)
            self.bounded = act_space.is_bounded()  # to [-1, 1], see make_env
            self.log_std = nn.Parameter(torch.full((outputs,), 0.5))  # wide at first, to reach the bounds often
        else:  # K components of up to M choices; where there are fewer, the others get no probability
            choices = act_space.nvec if isinstance(act_space, spaces.MultiDiscrete) else act_space.n
            choices = torch.as_tensor(np.ravel(choices))  # [K]
            absent = torch.arange(choices.max()) >= choices[:, None]  # [K, M]
            self.register_buffer("mask", -1e9 * absent, persistent=False)
            self.distribution, outputs = Categorical, self.mask.numel()
        self.actor = network(obs_space.shape, args.hidden_sizes, outputs, 0.01)
        self.critic = network(obs_space.shape, args.hidden_sizes, 1, 1)

    def policy(self, obs):
        """Distribution of actions in each of obs [..., *obs]."""
        out = self.actor(self.obs_norm(obs))
        if self.distribution is Gaussian:  # a mean beyond the bounds would be clipped, and so never learn its way back
            mean = out.tanh() if self.bounded else out
            return Gaussian(torch.stack([mean, self.log_std.expand_as(mean)], -1))
        return Categorical(out.view(*out.shape[:-1], *self.mask.shape) + self.mask)

    def value(self, obs):
        """Expected return from each of obs, [..., *obs] -> [...], in units of scaled reward."""
        return self.critic(self.obs_norm(obs)).squeeze(-1)

    @torch.no_grad()
    def act(self, obs, greedy=False):
        """A sampled or the most likely action for each of obs; numpy [N, *obs] -> numpy [N, K]."""
        pi = self.policy(to_tensor(obs, self.obs_norm.mean.device))
        return (pi.mode() if greedy else pi.sample()).cpu().numpy()


class BadInput(ValueError):
    """What was asked for cannot be done. The message names the flag and says what would do."""


def make_env(args, evaluation=False):
    """One environment that shows a vector or an image [C, H, W] and, if bounded, is acted on in [-1, 1]."""
    atari = args.env_id.startswith("ALE/")
    options = {"frameskip": 1} if atari else {}
    if evaluation and (args.render or args.capture_video):
        options["render_mode"] = "human" if args.render else "rgb_array"
    try:
        env = gym.make(f"ale_py:{args.env_id}" if atari else args.env_id, **options)
        if atari:
            env = wrappers.FrameStackObservation(wrappers.AtariPreprocessing(env), 4)
    except (gym.error.Error, ImportError) as error:
        hint = ' For Atari: pip install "gymnasium[atari]" opencv-python-headless' if atari else ""
        raise BadInput(f"--env-id {args.env_id}: {error}{hint}") from error
    if env.spec.max_episode_steps is None:
        env = wrappers.TimeLimit(env, 27_000)  # without one, a policy may walk in circles for ever

    obs_space, act_space = env.observation_space, env.action_space
    if not (obs_space.is_np_flattenable and isinstance(act_space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete))):
        can = "Box, Discrete and MultiDiscrete actions, and any observation that gymnasium.spaces.flatten takes"
        raise BadInput(f"--env-id {args.env_id}: {act_space} actions on {obs_space} observations; supported are {can}")
    # An image is for the convolutions if it is at least 36 wide and high, the least they can take.
    if isinstance(obs_space, spaces.Box) and len(obs_space.shape) == 3 and sorted(obs_space.shape)[1] >= 36:
        axis = int(np.argmin(obs_space.shape))  # of the channels, which torch wants first
        low, high = np.moveaxis(obs_space.low, axis, 0), np.moveaxis(obs_space.high, axis, 0)
        space = spaces.Box(low, high, dtype=obs_space.dtype)
        env = wrappers.TransformObservation(env, lambda obs: np.moveaxis(obs, axis, 0), space)
    elif not isinstance(obs_space, spaces.Box) or len(obs_space.shape) != 1:
        env = wrappers.FlattenObservation(env)
    if isinstance(act_space, spaces.Box) and act_space.is_bounded():  # not ClipAction, which drops the bounds
        env = wrappers.RescaleAction(env, -1, 1)
        return wrappers.TransformAction(env, lambda act: np.clip(act, -1, 1), env.action_space)
    if isinstance(act_space, spaces.Box):
        return wrappers.ClipAction(env)
    if np.any(act_space.start):  # choices count from 0 here, not so in every environment
        return wrappers.TransformAction(env, lambda act: act + act_space.start, act_space)
    return env


def make_envs(args):
    envs, mode = [lambda: make_env(args)] * args.num_envs, gym.vector.AutoresetMode.DISABLED
    if not args.async_envs:
        return gym.vector.SyncVectorEnv(envs, autoreset_mode=mode)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the new processes: Ctrl-C is this one's business
    try:
        return gym.vector.AsyncVectorEnv(envs, autoreset_mode=mode)
    finally:
        signal.signal(signal.SIGINT, handler)


class Run:
    """Folder, counters and clean cuts of one run. Under torchrun every worker has one, but only worker 0 writes."""

    def __init__(self, args, **parts):  # agent, optimizer and whatever else a checkpoint must hold
        self.args, self.agent, self.parts = args, parts["agent"], parts
        self.step, self.seconds, self.cut_due, metrics_size = 0, 0.0, True, 0
        self.recent = deque(maxlen=20)  # return and length of the last finished episodes
        self.current = np.zeros((2, args.num_envs))  # return and length, so far, of the episodes under way
        if args.resume:
            saved = load(args.resume)
            if saved["args"]["env_id"] != args.env_id:
                raise BadInput(f"--env-id {args.env_id}: the checkpoint is for {saved['args']['env_id']}")
            for name, part in parts.items():
                try:
                    part.load_state_dict(saved[name])
                except (RuntimeError, ValueError) as error:
                    raise BadInput(f"--resume {args.resume}: its {name} has other sizes than the flags say") from error
            self.step, self.seconds, metrics_size = saved["step"], saved["seconds"], saved["metrics_size"]
            self.recent.extend(saved["recent"])

        env_id = args.env_id.replace("/", "-").replace(":", "-")
        name = f"{env_id}__{Path(__file__).stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        self.folder = Path(args.run_dir or (Path(args.resume).parent if args.resume else f"runs/{name}"))
        self.checkpoint = self.folder / "checkpoint.pt"
        if RANK == 0 and self.checkpoint.exists() and not (args.resume and self.checkpoint.samefile(args.resume)):
            raise BadInput(f"--run-dir {self.folder}: holds a run; take another, or --resume {self.checkpoint}")
        self.start, self.wandb = time.perf_counter() - self.seconds, None
        if RANK == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "args.json").write_text(json.dumps(asdict(args), indent=2))
            self.metrics = open(self.folder / "metrics.csv", "a", newline="")
            self.metrics.truncate(min(metrics_size, self.metrics.tell()))  # rows after the checkpoint come again
            self.metrics.seek(0, os.SEEK_END)
            self.bar = tqdm(total=args.total_timesteps, initial=self.step, unit="step", unit_scale=True, disable=None)
            if args.track:
                import wandb

                where = {"project": args.wandb_project_name, "entity": args.wandb_entity, "dir": self.folder}
                self.wandb = wandb.init(**where, name=self.folder.name, config=asdict(args))

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error in (None, KeyboardInterrupt):
            self.save()
        if error is KeyboardInterrupt and RANK == 0:
            print(f"\nstopped at step {self.step}; go on with --resume {self.checkpoint}", file=sys.stderr)

    def clean_cut(self, envs):
        """Save; then reseed and reset what is not saved, so that a resumed run goes on bit for bit as this one does."""
        self.save()
        self.cut_due = False
        sequence = np.random.SeedSequence((self.args.seed, self.step, RANK))
        torch_seed, *env_seeds = sequence.generate_state(1 + self.args.num_envs).tolist()
        torch.manual_seed(torch_seed)
        self.current[:] = self.agent.reward_norm.ret = 0
        return envs.reset(seed=env_seeds)[0]

    def save(self):
        if RANK == 0:
            saved = {"format": CHECKPOINT, "args": asdict(self.args), "step": self.step, "seconds": self.seconds}
            saved |= {"recent": list(self.recent), "metrics_size": self.metrics.tell()}
            saved |= {name: part.state_dict() for name, part in self.parts.items()}
            torch.save(saved, f"{self.checkpoint}.new")
            os.replace(f"{self.checkpoint}.new", self.checkpoint)  # at once: there is always a whole checkpoint

    def report(self, rew, done, losses):
        """Count a rollout [T, N] and write its row of metrics. Raises FloatingPointError if one is nan or infinite."""
        for r, d in zip(rew.numpy(force=True), done.numpy(force=True)):
            self.current[0] += r
            self.current[1] += 1
            self.recent.extend(self.current[:, d].T.tolist())
            self.current[:, d] = 0
        step, self.step, self.seconds = self.step, self.step + rew.numel() * WORKERS, time.perf_counter() - self.start
        self.cut_due |= self.step // self.args.checkpoint_every > step // self.args.checkpoint_every
        ret, length = np.mean(self.recent, 0).tolist() if self.recent else ("", "")
        row = {"global_step": self.step, "episodic_return": ret, "episodic_length": length}
        row |= {"steps_per_second": self.step / self.seconds, "seconds": self.seconds, **losses}
        for name, number in row.items():
            if number != "" and not math.isfinite(number):
                hint = "a smaller --learning-rate may help; does the environment return nan or huge numbers?"
                raise FloatingPointError(
                    f"{name} is {number} at step {self.step}: {hint} Last good checkpoint: {self.checkpoint}"
                )
        if RANK == 0:
            writer = csv.writer(self.metrics)
            if self.metrics.tell() == 0:
                writer.writerow(row)
            writer.writerow(row.values())
            self.metrics.flush()
            self.bar.set_postfix({"return": ret}, refresh=False)
            self.bar.update(self.step - self.bar.n)
        if self.wandb:
            self.wandb.log({name: number for name, number in row.items() if number != ""}, step=self.step)

    def finish(self, env):
        """Evaluate the agent in env, write eval.json and print the last line."""
        if WORKERS > 1:
            dist.destroy_process_group()
        if RANK > 0:
            return
        self.bar.total = self.step  # a budget is rounded down to whole rollouts
        self.bar.close()
        if self.args.capture_video:
            env = wrappers.RecordVideo(env, str(self.folder / "videos"), lambda episode: True)
        returns = evaluate(self.agent, env, self.args.eval_episodes, self.args.seed)
        result = {"mean": np.mean(returns), "std": np.std(returns), "episodes": len(returns), "returns": returns}
        result |= {"global_step": self.step, "seconds": self.seconds}
        (self.folder / "eval.json").write_text(json.dumps(result, indent=2))
        if self.wandb:
            self.wandb.summary["eval"] = result
            self.wandb.finish()
        print(f"eval: {result['mean']:.1f} +- {result['std']:.1f} over {len(returns)} episodes ({self.folder})")


def evaluate(agent, env, episodes, seed):
    """Return of each of `episodes` episodes of greedy actions, in the environment's own rewards."""
    returns = []
    seeds = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(episodes)  # none that training used
    for episode_seed in seeds.tolist():
        obs, ret, done = env.reset(seed=episode_seed)[0], 0.0, False
        while not done:
            act = agent.act(obs[None], greedy=True)
            act = act.reshape(env.action_space.shape)[()]  # [()] makes a number of an array without dimensions
            obs, rew, terminated, truncated, _ = env.step(act)
            ret, done = ret + float(rew), terminated or truncated
        returns.append(ret)
    env.close()
    return returns


RANK, WORKERS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # as torchrun sets them


def all_mean(tensors):
    """Average tensors over torchrun's workers, in place and in one message; returns them."""
    if WORKERS > 1:
        flat = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(flat)
        for x, mean in zip(tensors, (flat / WORKERS).split([x.numel() for x in tensors])):
            x.copy_(mean.view_as(x))
    return tensors


def gradient_step(optimizer, loss, max_grad_norm):
    """Step down the gradient of loss, averaged over the workers and clipped; returns its norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    params = [p for p in optimizer.param_groups[0]["params"] if p.grad is not None]
    (flat,) = all_mean([torch.cat([p.grad.flatten() for p in params])])  # as one vector: fewer calls
    norm = flat.norm()
    flat *= (max_grad_norm / (norm + 1e-6)).clamp(max=1)
    for p, grad in zip(params, flat.split([p.numel() for p in params])):
        p.grad = grad.view_as(p)
    optimizer.step()
    return norm


def to_tensor(arrays, device):
    """One array, or several of one shape, as one tensor; float64 becomes float32."""
    array = np.asarray(arrays)
    return torch.as_tensor(array.astype(np.float32) if array.dtype == np.float64 else array, device=device)


def setup(args):
    """Check the flags, meet torchrun's other workers, seed torch; returns the device. Raises BadInput."""
    for field in fields(args):
        name, value = field.name, getattr(args, field.name)
        amount = field.type in (float, float | None) or name == "seed"  # from 0 on; whole numbers count, from 1 on
        if (amount or field.type in (int, tuple[int, ...])) and value is not None:
            low, high = 0 if amount else 1, 1 if name in ("gamma", "gae_lambda", "line_search_shrink") else math.inf
            if not np.all((low <= np.asarray(value)) & (np.asarray(value) <= high)):
                raise BadInput(f"--{name.replace('_', '-')} {value}: must lie between {low} and {high}")
    batch, parts = args.num_envs * args.num_steps, getattr(args, "num_minibatches", 1)
    if batch % parts or batch < 2 * parts:
        raise BadInput(f"--num-steps {args.num_steps}: {batch} steps do not make {parts} equal minibatches above 1")
    if args.total_timesteps < batch * WORKERS:
        raise BadInput(f"--total-timesteps {args.total_timesteps}: one rollout is {batch * WORKERS} steps already")
    if args.render and args.capture_video:
        raise BadInput("--render: not together with --capture-video")
    for flag, module in ("track", "wandb"), ("capture_video", "moviepy"):
        if getattr(args, flag) and not importlib.util.find_spec(module):
            raise BadInput(f"--{flag.replace('_', '-')}: pip install {module}")
    try:
        local = f":{os.environ['LOCAL_RANK']}" if args.device == "cuda" and WORKERS > 1 else ""
        device = torch.zeros(1, device=args.device + local).device
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # more threads slow small networks down
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(args.seed)  # the same in all workers, for equal weights; clean_cut seeds each differently
    if WORKERS > 1 and not dist.is_initialized():
        dist.init_process_group()
    return device


def load(path):
    """What a checkpoint of this script holds. Raises BadInput if path is something else."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # so that a stranger's file runs no code
        found = saved["format"]
    except Exception as error:
        raise BadInput(f"--resume {path}: not a checkpoint ({type(error).__name__})") from error
    if found != CHECKPOINT:
        raise BadInput(f"--resume {path}: a checkpoint of {found}, not {CHECKPOINT}")
    return saved


def main():
    """The command line. Exit status 2 for bad input, 1 for numbers that are not finite, 130 for Ctrl-C."""
    try:
        args = tyro.cli(Args, description=__doc__)
        if args.resume:  # the checkpoint's flags, unless given anew; where to write and what to show is asked anew
            anew = {"resume": args.resume, "run_dir": "", "render": False, "capture_video": False}
            args = tyro.cli(Args, default=Args(**load(args.resume)["args"] | anew))
        train(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except (BadInput, FloatingPointError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)


if __name__ == "__main__":
    main()
