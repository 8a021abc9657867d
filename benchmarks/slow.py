"""An environment as slow as many simulators: CartPole-v1 with 5 ms of waiting in each step, as "slow:Slow-v0"."""

import time

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

SECONDS = 0.005  # of a step


class Slow(CartPoleEnv):
    def step(self, action):
        time.sleep(SECONDS)
        return super().step(action)


gym.register("Slow-v0", entry_point=Slow, max_episode_steps=500)
