"""Train a Stable-Baselines3 or sb3-contrib agent on CartPole-v1 and write what our scripts write.

    python benchmarks/sb3.py --algorithm ppo --total-timesteps 100000 --seed 1 --run-dir runs/sb3

The settings are those of rl-baselines3-zoo for CartPole-v1; for DQN, those of its versions up to 2.2.
"""

import csv
import json
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from sb3_contrib import TRPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

ALGORITHMS = {"a2c": A2C, "dqn": DQN, "ppo": PPO, "trpo": TRPO}
NUM_ENVS = {"a2c": 8, "dqn": 1, "ppo": 8, "trpo": 2}


def settings(algorithm):
    """Arguments of the algorithm's constructor."""
    return {
        "a2c": {"ent_coef": 0.0},
        "ppo": {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "learning_rate": lambda left: 0.001 * left,
            "clip_range": lambda left: 0.2 * left,
        },
        "trpo": {
            "n_steps": 512,
            "batch_size": 512,
            "cg_damping": 1e-3,
            "gae_lambda": 0.98,
            "learning_rate": 1e-3,
            "n_critic_updates": 20,
        },
        "dqn": {
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    }[algorithm]


@dataclass
class Args:
    algorithm: Literal["a2c", "dqn", "ppo", "trpo"]
    total_timesteps: int
    run_dir: Path
    seed: int = 1


class Record(BaseCallback):
    """metrics.csv: step, seconds and mean return of the last 20 episodes, about every 500 steps."""

    def __init__(self, path):
        super().__init__()
        self.path, self.recent, self.rows = path, deque(maxlen=20), []
        self.start = time.perf_counter()

    def _on_step(self):
        self.recent.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
        if self.recent and self.num_timesteps >= 500 * (len(self.rows) + 1):
            seconds = time.perf_counter() - self.start
            self.rows.append((self.num_timesteps, sum(self.recent) / len(self.recent), seconds))
        return True

    def _on_training_end(self):
        with open(self.path, "w", newline="") as file:
            csv.writer(file).writerows([("global_step", "episodic_return", "seconds"), *self.rows])


def main():
    args = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(1)
    args.run_dir.mkdir(parents=True)
    env = make_vec_env("CartPole-v1", NUM_ENVS[args.algorithm], seed=args.seed)
    arguments = settings(args.algorithm)
    model = ALGORITHMS[args.algorithm]("MlpPolicy", env, seed=args.seed, device="cpu", **arguments)
    start = time.perf_counter()
    model.learn(args.total_timesteps, callback=Record(args.run_dir / "metrics.csv"))
    seconds = time.perf_counter() - start
    test = make_vec_env("CartPole-v1", 1, seed=args.seed + 10_000)
    returns, _ = evaluate_policy(model, test, 10, deterministic=True, return_episode_rewards=True)
    result = {"mean": sum(returns) / 10, "returns": [float(x) for x in returns], "seconds": seconds}
    (args.run_dir / "eval.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
