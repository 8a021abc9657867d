# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "gymnasium[classic-control]>=1.1", "moviepy>=2.0", "numpy>=1.26", "psutil>=5.9", "torch>=2.4",
#   "tqdm>=4.66", "tyro>=0.9", "wandb>=0.18",
# ]
# ///
"""Deep Q-learning (DQN): a network that says what each action is worth.

Mnih et al. (2015), "Human-level control through deep reinforcement learning", Nature 518, Algorithm 1; first, without
the target network, in Mnih et al. (2013), "Playing Atari with Deep Reinforcement Learning", arXiv:1312.5602.

Q(s, a) is the return to expect after action a in state s, if the best actions follow. It obeys Bellman's equation,
Q(s, a) = E[r + gamma max_a' Q(s', a')], and learning moves the left side towards samples of the right. The policy is
epsilon-greedy: with probability epsilon, which falls while training, a random action; otherwise the one that Q says is
best. Two ideas make this work with a network:

- Replay. Bellman's equation holds for each action in each state, whoever chose it, so old transitions are remembered
  and each gradient step takes a batch from all of them. Successive steps are alike, and a network that sees only the
  latest forgets the rest. It also lets each transition be used many times.
- A target network. The right side comes from a copy of the network that follows slowly. Without it, each step towards
  the target moves the target too, and values can chase each other upwards.

Without either it is online Q-learning, as in Watkins (1989), with a network in place of his table: --num-envs 1
--num-steps 1 --gradient-steps 1 --buffer-size 1 --batch-size 1 --learning-starts 1 --tau 1. The README shows what that
costs on CartPole-v1. (A buffer of one leaves one reward to a return, and with --tau 1 both networks are the same.)

Not in the paper:

- Double Q-learning (van Hasselt, Guez and Silver 2016, arXiv:1509.06461).
- n-step returns (Watkins 1989; Hessel et al. 2018, arXiv:1710.02298): n rewards, then the value of the state reached.
  That is faster, though not quite right: the actions in between were random or those of an older policy.
- A target network that follows a little after each step; the paper's: --tau 1 --target-interval 10000.
- What the other scripts do too: several environments; Adam with a learning rate that decays, gradients clipped to a
  maximum norm; observations and rewards scaled by running statistics (the paper clips rewards to -1 and 1); weights
  that start orthogonal; at a time limit the value of the state reached counts, as the episode might have gone on.

Later ideas left out: prioritised replay, duelling, distributional and noisy networks.

Shapes: T steps of N environments; G gradient steps, each on B transitions of up to n steps; A actions.
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
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from gymnasium import spaces, wrappers
from torch import nn
from tqdm import tqdm

CHECKPOINT = "dqn 1"  # script and version: checkpoints of others are refused
KEPT = 2**30  # bytes up to which a replay buffer is part of the checkpoint


@dataclass
class Args:
    num_steps: int = 8  # T, steps of each environment in a rollout
    gradient_steps: int = 16  # G, after each rollout
    batch_size: int = 128  # B, transitions that each worker draws for a gradient step
    buffer_size: int = 100_000  # transitions remembered by each worker; the oldest are overwritten
    learning_starts: int = 1_000  # transitions that each worker remembers before the first gradient step
    n_step: int = 10  # n, rewards in a return before the value of the state reached
    double_q: bool = True  # the network chooses the next action, the target network says what it is worth
    tau: float = 0.01  # how far the target network moves towards the network; 1 makes it a copy
    target_interval: int = 1  # gradient steps from one such move to the next
    epsilon_start: float = 1.0  # probability of a random action at the start
    epsilon_end: float = 0.04  # probability of a random action in the end
    exploration_fraction: float = 0.2  # part of the training in which epsilon falls from start to end
    max_grad_norm: float = 10.0  # gradients are clipped to this norm
    anneal_lr: bool = True  # learning rate decays linearly towards 0

    env_id: str = "CartPole-v1"  # Gymnasium id; "my_module:MyEnv-v0" imports my_module first
    seed: int = 1  # same seed, same machine: same run, bit for bit
    total_timesteps: int = 50_000  # environment steps, of all environments and workers together
    num_envs: int = 8  # N, environments of each worker
    gamma: float = 0.99  # discount factor
    learning_rate: float = 1e-3  # Adam's step size at the start
    hidden_sizes: tuple[int, ...] = (128, 128)  # layers of the networks for vector observations
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


class ReplayBuffer(nn.Module):
    """A ring of the last transitions: a row holds one step of N environments, and the newest overwrites the oldest.

    All is stored as it came and scaled when it is used. next_obs is the true successor, also where an episode ended. It
    is a Module for its state_dict, and stays in main memory. Raises BadInput if it would not fit there.
    """

    def __init__(self, obs_space, args):
        super().__init__()
        rows = args.buffer_size // args.num_envs
        obs_dtype = torch.uint8 if obs_space.dtype == np.uint8 else torch.float32
        self.columns = {"obs": obs_dtype, "act": torch.int64, "rew": torch.float32, "next_obs": obs_dtype}
        self.columns |= {"terminated": torch.bool, "done": torch.bool}
        shapes = {name: (rows, args.num_envs) for name in self.columns}
        shapes["obs"] = shapes["next_obs"] = rows, args.num_envs, *obs_space.shape
        size = sum(math.prod(shapes[name]) * dtype.itemsize for name, dtype in self.columns.items())
        memory = psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # for each worker
        if size > memory:
            gigabytes = f"{size / 2**30:,.1f} GiB; this machine has {memory / 2**30:,.1f}"
            raise BadInput(f"--buffer-size {args.buffer_size}: takes {gigabytes}")
        kept = size <= KEPT  # in checkpoints
        if RANK == 0:
            note = "" if kept else "; not kept in checkpoints: a resumed run starts with an empty one"
            print(f"replay buffer: {size / 2**20:,.1f} MiB{note}", file=sys.stderr)
        for name, dtype in self.columns.items():
            self.register_buffer(name, torch.zeros(shapes[name], dtype=dtype), persistent=kept)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=kept)  # rows ever added

    def __len__(self):
        return min(int(self.count), len(self.done)) * self.done.shape[1]

    def add(self, *rollout):
        """Remember a rollout; obs, act, rew, next_obs, terminated, done, each [T, N, ...]."""
        steps = len(rollout[0])
        rows = (self.count + torch.arange(steps)) % len(self.done)
        for name, x in zip(self.columns, rollout, strict=True):
            column = getattr(self, name)
            column[rows] = x.to(column.dtype)
        self.count += steps

    def cut(self):
        """End the episodes at the newest row: the environments have been reset."""
        self.done[(self.count - 1) % len(self.done)] = True

    def sample(self, shape, n, gamma, scale=1.0):
        """Transitions of up to n steps: obs, act, return of n steps, obs after them, terminated, discount after them.

        Each [*shape, ...], drawn uniformly. There are fewer than n steps if an episode ends or the newest row comes
        before. Rewards are divided by scale, and clipped at 10 as in RewardNorm.
        """
        size, envs = self.done.shape
        age = torch.randint(min(int(self.count), size), shape)  # 0 is the newest row
        env, step = torch.randint(envs, shape), torch.arange(n)
        first = self.count - 1 - age
        row = (first[..., None] + step) % size  # [*shape, n]
        end = self.done[row, env[..., None]] | (step >= age[..., None])  # nothing follows this step
        rew = (self.rew[row, env[..., None]] / scale).clamp(-10, 10)
        ret, steps = n_step_return(rew, end, gamma)
        start, stop = (first % size, env), ((first + steps - 1) % size, env)
        return self.obs[start], self.act[start], ret, self.next_obs[stop], self.terminated[stop], gamma**steps


def n_step_return(rew, end, gamma):
    """Discounted sum of rew [..., n] up to the first step where end is True, and the number of steps; [...] each."""
    used = end.cumsum(-1) - end.long() == 0  # no end before this step
    powers = gamma ** torch.arange(rew.shape[-1])
    return (rew * powers * used).sum(-1), used.sum(-1)


def td_target(ret, discount, terminated, next_q, next_act):
    """What an action seems to be worth now: ret + discount Q^(s', a'), [B] (y in Mnih et al. 2015, Algorithm 1).

    next_q [B, A] is Q^(s', .), by the target network; next_act [B] is a'; the rest is [B].
    """
    next_val = next_q.gather(-1, next_act[:, None])[:, 0]
    return ret + discount * next_val * ~terminated  # a terminal state is worth 0; a time limit is not terminal


def update(agent, optimizer, batch, args):
    """One gradient step; batch: obs, act, ret, next_obs, terminated, discount, as ReplayBuffer.sample gives them."""
    obs, act, ret, next_obs, terminated, discount = batch
    with torch.no_grad():
        next_q = agent.target_q(next_obs)
        # Double Q-learning (van Hasselt et al. 2016, Eq. 4): the largest of noisy values is too large on average, so
        # one network chooses the action and the other says what it is worth.
        next_act = (agent.q(next_obs) if args.double_q else next_q).argmax(-1)
        target = td_target(ret, discount, terminated, next_q, next_act)
    q = agent.q(obs).gather(-1, act[:, None])[:, 0]
    td_loss = F.huber_loss(q, target)  # half the square up to 1, then linear: the paper's clipped error
    grad_norm = gradient_step(optimizer, td_loss, args.max_grad_norm)
    agent.updates.add_(1)
    if agent.updates % args.target_interval == 0:
        agent.move_target(args.tau)
    return torch.stack([td_loss, q.mean(), grad_norm]).detach()


def train(args):
    """Train an agent and return it; the README says what it leaves on disk. Raises BadInput, FloatingPointError."""
    device = setup(args)
    envs, eval_env = make_envs(args), make_env(args, evaluation=True)
    agent = QNetwork(envs.single_observation_space, envs.single_action_space, args).to(device)
    optimizer = torch.optim.Adam(agent.network.parameters(), args.learning_rate, eps=1e-5, fused=True)
    replay, num_actions = ReplayBuffer(envs.single_observation_space, args), int(envs.single_action_space.n)

    with Run(args, agent=agent, optimizer=optimizer, replay=replay) as run:
        rollout_size = args.num_steps * args.num_envs * WORKERS
        while run.step + rollout_size <= args.total_timesteps:
            if run.cut_due:  # at the start and at each checkpoint: save, reseed, reset
                obs = run.clean_cut(envs)
                replay.cut()
            past = run.step / args.total_timesteps
            optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - past if args.anneal_lr else 1)
            epsilon = np.interp(past, [0, args.exploration_fraction], [args.epsilon_start, args.epsilon_end])

            # Collect: T steps in each of N environments, some actions random.
            shape, rollout = (args.num_steps, args.num_envs), []
            explore, random = (torch.rand(shape) < epsilon).numpy(), torch.randint(num_actions, shape).numpy()
            for t in range(args.num_steps):
                act = random[t] if explore[t].all() else np.where(explore[t], random[t], agent.act(obs))
                next_obs, rew, terminated, truncated, _ = envs.step(act)
                done = terminated | truncated
                rollout.append((obs, act, rew, next_obs, terminated, done))
                obs = envs.reset(options={"reset_mask": done})[0] if done.any() else next_obs
            # The whole rollout, [T, N, ...] each.
            rollout = [to_tensor(x, "cpu") for x in zip(*rollout)]
            replay.add(*rollout)
            b_obs, _, b_rew, _, _, b_done = rollout
            agent.obs_norm.update(b_obs.flatten(0, 1).to(device))
            agent.reward_norm(b_rew.to(device), b_done)  # for its statistics: sample scales what is stored

            # Improve: G gradient steps on what is remembered.
            losses = dict.fromkeys(("td_loss", "q_value", "grad_norm"), "")  # empty until learning starts
            if len(replay) >= args.learning_starts:
                shape, scale = (args.gradient_steps, args.batch_size), agent.reward_norm.std.item()
                batches = (x.to(device) for x in replay.sample(shape, args.n_step, args.gamma, scale))  # [G, B, ...]
                steps = [update(agent, optimizer, batch, args) for batch in zip(*batches)]
                losses = dict(zip(losses, torch.stack(steps).mean(0).tolist()))
            run.report(b_rew, b_done, losses | {"epsilon": epsilon})
    run.finish(eval_env)
    return agent


# From here on: the text of vpg.py, a2c.py, trpo.py and ppo.py, but for QNetwork, make_env and setup.


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


class QNetwork(nn.Module):
    """Action values Q(s, a) and the copy that follows them, with the statistics that scale what they see."""

    def __init__(self, obs_space, act_space, args):
        super().__init__()
        self.obs_norm, self.reward_norm = RunningNorm(obs_space.shape), RewardNorm(args.gamma)
        self.network = network(obs_space.shape, args.hidden_sizes, int(act_space.n), 1)
        self.target = deepcopy(self.network).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # gradient steps so far

    def q(self, obs):
        """Value of each action in each of obs, [..., *obs] -> [..., A], in units of scaled reward."""
        return self.network(self.obs_norm(obs))

    def target_q(self, obs):
        """The same by the target network."""
        return self.target(self.obs_norm(obs))

    @torch.no_grad()
    def move_target(self, tau):
        for slow, fast in zip(self.target.parameters(), self.network.parameters()):
            slow.lerp_(fast, tau)

    @torch.no_grad()
    def act(self, obs, greedy=False):
        """The best action for each of obs, greedy or not: train adds the random ones; numpy [N, *obs] -> numpy [N]."""
        return self.q(to_tensor(obs, self.obs_norm.mean.device)).argmax(-1).cpu().numpy()


class BadInput(ValueError):
    """What was asked for cannot be done. The message names the flag and says what would do."""


def make_env(args, evaluation=False):
    """One environment that shows a vector or an image [C, H, W] and counts its actions from 0."""
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
    if not (obs_space.is_np_flattenable and isinstance(act_space, spaces.Discrete)):
        can = "Discrete actions (vpg.py, a2c.py, trpo.py and ppo.py take Box and MultiDiscrete ones too)"
        can += ", and any observation that gymnasium.spaces.flatten takes"
        raise BadInput(f"--env-id {args.env_id}: {act_space} actions on {obs_space} observations; supported are {can}")
    # An image is for the convolutions if it is at least 36 wide and high, the least they can take.
    if isinstance(obs_space, spaces.Box) and len(obs_space.shape) == 3 and sorted(obs_space.shape)[1] >= 36:
        axis = int(np.argmin(obs_space.shape))  # of the channels, which torch wants first
        low, high = np.moveaxis(obs_space.low, axis, 0), np.moveaxis(obs_space.high, axis, 0)
        space = spaces.Box(low, high, dtype=obs_space.dtype)
        env = wrappers.TransformObservation(env, lambda obs: np.moveaxis(obs, axis, 0), space)
    elif not isinstance(obs_space, spaces.Box) or len(obs_space.shape) != 1:
        env = wrappers.FlattenObservation(env)
    if act_space.start:  # choices count from 0 here, not so in every environment
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
            part = name in ("gamma", "tau", "epsilon_start", "epsilon_end", "exploration_fraction")
            low, high = 0 if amount else 1, 1 if part else math.inf
            if not np.all((low <= np.asarray(value)) & (np.asarray(value) <= high)):
                raise BadInput(f"--{name.replace('_', '-')} {value}: must lie between {low} and {high}")
    batch = args.num_envs * args.num_steps
    if args.buffer_size // args.num_envs * args.num_envs < max(batch, args.learning_starts):
        raise BadInput(f"--buffer-size {args.buffer_size}: less than a rollout, {batch}, or --learning-starts")
    if args.total_timesteps < batch * WORKERS:
        raise BadInput(f"--total-timesteps {args.total_timesteps}: one rollout is {batch * WORKERS} steps already")
    if args.total_timesteps // (batch * WORKERS) * batch < args.learning_starts:
        raise BadInput(f"--learning-starts {args.learning_starts}: never comes in --total-timesteps")
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
