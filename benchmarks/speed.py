"""Steps per second on CartPole-v1, ours and Stable-Baselines3's at the same settings, and ours against the floor.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py --rounds 5

Runs alternate, one at a time, each in a process of its own with one thread, and what is compared is the median of the
rounds. The floor is the time of what no implementation can leave out: the environments' steps, and as many bare
forward, backward and optimiser calls as the algorithm needs, on networks and batches of the same size. Ours normalises
observations and rewards as well, which Stable-Baselines3 does not at these settings.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

ROOT = Path(__file__).parent.parent

# The same algorithm twice: flags of our script, arguments of Stable-Baselines3's class.
ON_POLICY = {"num_envs": 16, "num_steps": 128}
DQN = {"num_envs": 1, "n_step": 1, "double_q": False, "anneal_lr": False, "tau": 1.0, "learning_starts": 1_000}
SB3_DQN = {"learning_starts": 1_000}
CASES = {
    "ppo": (
        ON_POLICY | {"num_minibatches": 8, "update_epochs": 8},
        ("PPO", 16, {"n_steps": 128, "batch_size": 256, "n_epochs": 8, "learning_rate": 1e-3}),
        60_000,
    ),
    "a2c": ({"num_envs": 8, "num_steps": 5, "learning_rate": 7e-4}, ("A2C", 8, {}), 40_000),
    "trpo": (
        {"num_envs": 2, "num_steps": 512, "value_epochs": 20, "cg_iters": 15},
        ("TRPO", 2, {"n_steps": 512, "batch_size": 1_024, "n_critic_updates": 20, "cg_max_steps": 15}),
        40_000,
    ),
    "dqn (rl-baselines3-zoo)": (
        DQN
        | {"num_steps": 256, "gradient_steps": 128, "batch_size": 64, "hidden_sizes": (256, 256), "target_interval": 5},
        (
            "DQN",
            1,
            SB3_DQN
            | {"train_freq": 256, "gradient_steps": 128, "batch_size": 64, "target_update_interval": 10}
            | {"policy_kwargs": {"net_arch": [256, 256]}},
        ),
        12_000,
    ),
    "dqn (CleanRL)": (
        DQN
        | {"num_steps": 10, "gradient_steps": 1, "batch_size": 128, "hidden_sizes": (120, 84), "target_interval": 50}
        | {"buffer_size": 10_000},
        (
            "DQN",
            1,
            SB3_DQN
            | {"train_freq": 10, "gradient_steps": 1, "batch_size": 128, "target_update_interval": 500}
            | {"buffer_size": 10_000, "policy_kwargs": {"net_arch": [120, 84]}},
        ),
        20_000,
    ),
}


def ours(name, seed):
    """Steps per second of our script, evaluation not counted."""
    flags, _, steps = CASES[name]
    script = importlib.import_module(name.split()[0])
    with tempfile.TemporaryDirectory() as folder:
        args = script.Args(total_timesteps=steps, seed=seed, run_dir=f"{folder}/run", eval_episodes=1, **flags)
        script.train(args)
        result = json.loads(Path(folder, "run/eval.json").read_text())
    return result["global_step"] / result["seconds"]


def sb3(name, seed):
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    _, (algorithm, num_envs, arguments), steps = CASES[name]
    algorithm = getattr(sb3_contrib if algorithm == "TRPO" else stable_baselines3, algorithm)
    env = make_vec_env("CartPole-v1", num_envs, seed=seed)
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **arguments)
    start = time.perf_counter()
    model.learn(steps)
    return model.num_timesteps / (time.perf_counter() - start)


def floor(name, seed):
    """Steps per second of the environments and of bare calls of the networks, as many as our script makes."""
    import torch

    flags, _, steps = CASES[name]
    script = importlib.import_module(name.split()[0])
    args = script.Args(**flags)
    envs = script.make_envs(args)
    space, actions = envs.single_observation_space, 2
    torch.manual_seed(seed)
    actor = script.network(space.shape, args.hidden_sizes, actions, 1)
    critic = script.network(space.shape, args.hidden_sizes, 1, 1)
    value_based = script.__name__ == "dqn"
    networks = [actor] if value_based else [actor, critic]
    optimizer = torch.optim.Adam([p for net in networks for p in net.parameters()], fused=True)
    rollout = args.num_envs * args.num_steps
    rounds = max(1, steps // rollout)
    epochs, batch = {
        "ppo": lambda: (args.update_epochs * args.num_minibatches, rollout // args.num_minibatches),
        "dqn": lambda: (args.gradient_steps, args.batch_size),
        "trpo": lambda: (args.value_epochs, rollout),
    }.get(script.__name__, lambda: (1, rollout))()
    few, many = torch.randn(args.num_envs, *space.shape), torch.randn(batch, *space.shape)
    whole = torch.randn(rollout, *space.shape)

    def gradient_step(networks):
        loss = sum(net(many).mean() for net in networks)
        for p in optimizer.param_groups[0]["params"]:
            p.grad = None
        loss.backward()
        optimizer.step()

    def fisher_vector_product():
        params = list(actor.parameters())
        first = torch.autograd.grad((actor(whole) ** 2).mean(), params, create_graph=True)
        torch.autograd.grad(sum((g * g.detach()).sum() for g in first), params)

    envs.reset(seed=seed)
    start = time.perf_counter()
    for _ in range(rounds):
        for _ in range(args.num_steps):
            with torch.no_grad():
                act = actor(few).argmax(-1).numpy()
            _, _, terminated, truncated, _ = envs.step(act)
            if (done := terminated | truncated).any():
                envs.reset(options={"reset_mask": done})
        if not value_based:
            with torch.no_grad():
                critic(whole), critic(whole)  # values of observations and of their successors
        if script.__name__ == "trpo":
            for _ in range(args.cg_iters + 1):
                fisher_vector_product()
        for _ in range(epochs):
            if value_based:
                with torch.no_grad():
                    actor(many)  # the target network
            gradient_step([critic] if script.__name__ == "trpo" else networks)
    return rounds * rollout / (time.perf_counter() - start)


def measure(kind, name, seed):
    """Steps per second in a process of its own."""
    code = f"import speed; print(speed.{kind}({name!r}, {seed}))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    code = f"import torch; torch.set_num_threads(1); {code}"
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.DEVNULL)  # fmt: skip
    return float(done.stdout.split()[-1])


def main(rounds: int = 5, only: str = ""):
    """Compare speeds.

    Args:
        rounds: how often each is measured
        only: cases whose name contains this
    """
    print("| | ours, steps/s | Stable-Baselines3 | ratio, median (least to most) | time against the floor |")
    print("|---|---|---|---|---|")
    for name in CASES:
        if only not in name:
            continue
        found = [[measure(kind, name, seed) for kind in ("ours", "sb3", "floor")] for seed in range(1, rounds + 1)]
        medians = [statistics.median(column) for column in zip(*found)]
        ratios = sorted(a / b for a, b, _ in found)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        share = statistics.median(c / a for a, _, c in found)
        print(f"| {name} | {medians[0]:,.0f} | {medians[1]:,.0f} | {spread} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
