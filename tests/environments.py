"""Probe environments: each asks for one ability, so that a failure says which is missing.

They are registered as Probe<Name>-v0 when this module is imported; `--env-id environments:Probe...-v0` does it too.
"""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SIGN = spaces.Box(-1, 1, (2,), np.float32)  # [sign, step of the episode]


class Probe(gym.Env):
    """Episodes of `length` steps; the observation is (sign, t), the sign is drawn at each reset."""

    observation_space, action_space, length = SIGN, spaces.Discrete(2), 1

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.sign, self.t = int(self.np_random.choice([-1, 1])), 0
        return self.observe(), {}

    def step(self, act):
        assert self.action_space.contains(act), f"illegal action {act!r}"
        reward = self.reward(act)
        self.t += 1
        return self.observe(), reward, self.t == self.length, False, {}

    def observe(self):
        return np.array([self.sign, self.t], np.float32)

    def reward(self, act):
        raise NotImplementedError


class ConstantReward(Probe):
    def reward(self, act):
        return 1.0


class RewardFromObservation(Probe):
    def reward(self, act):
        return float(self.sign)


class RewardOneStepLate(Probe):
    length = 2

    def reward(self, act):
        return float(self.sign) if self.t == 1 else 0.0


class RewardFromAction(Probe):
    def reward(self, act):
        return 1.0 if act == 0 else -1.0


class RewardFromBoth(Probe):
    def reward(self, act):
        return 1.0 if act == (self.sign > 0) else -1.0


class Continuous(Probe):
    """The best action is twice the sign, on a scale of its own: the agent must be rescaled to reach it."""

    action_space = spaces.Box(-4, 4, (1,), np.float32)

    def reward(self, act):
        return -float((act[0] - 2 * self.sign) ** 2)


class Unbounded(Continuous):
    """The same with actions that have no bounds; the best is 2 or -2."""

    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


class HalfBounded(Probe):
    """Amounts from 0 on; the best are 0.5 and 2.5."""

    action_space = spaces.Box(0, np.inf, (1,), np.float32)

    def reward(self, act):
        return -float((act[0] - 1.5 - self.sign) ** 2)


class MultiDiscrete(Probe):
    """Components of 2 and 4 choices, the second counted from 1: right are (0, 1) and (1, 3)."""

    action_space = spaces.MultiDiscrete([2, 4], start=[0, 1])

    def reward(self, act):
        return float(act[0] == (self.sign > 0)) + float(act[1] == 2 + self.sign)


class Shifted(Probe):
    """Discrete actions 5 and 6."""

    action_space = spaces.Discrete(2, start=5)

    def reward(self, act):
        return 1.0 if act == 5 + (self.sign > 0) else -1.0


class Image(RewardFromBoth):
    """The sign is the side of an RGB image that is bright."""

    observation_space = spaces.Box(0, 255, (40, 36, 3), np.uint8)

    def observe(self):
        image = np.zeros((40, 36, 3), np.uint8)
        image[:, 18:] = 200 * (self.sign > 0)
        image[:, :18] = 200 * (self.sign < 0)
        return image


class Dict(RewardFromBoth):
    """The sign among other things in a dictionary."""

    observation_space = spaces.Dict(
        {"sign": spaces.Discrete(2), "noise": spaces.Box(-1, 1, (2, 2), np.float32), "count": spaces.MultiBinary(2)}
    )

    def observe(self):
        noise = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        return {"sign": int(self.sign > 0), "noise": noise, "count": np.ones(2, np.int8)}


class Endless(Probe):
    """Reward 1 at each step. Only a time limit ends an episode."""

    length = -1

    def observe(self):
        return np.array([1, 0], np.float32)

    def reward(self, act):
        return 1.0


class Broken(RewardFromObservation):
    """Returns nan from its 300th step on."""

    steps = 0

    def reward(self, act):
        self.steps += 1
        return float("nan") if self.steps > 300 else super().reward(act)


class BinaryActions(ConstantReward):
    action_space = spaces.MultiBinary(2)


class GraphObservations(ConstantReward):
    observation_space = spaces.Graph(spaces.Discrete(2), None)


for probe in (*Probe.__subclasses__(), Unbounded, Image, Dict, Broken, BinaryActions, GraphObservations):
    gym.register(f"Probe{probe.__name__}-v0", entry_point=probe)
gym.register("ProbeTimeLimit-v0", entry_point=Endless, max_episode_steps=10)
