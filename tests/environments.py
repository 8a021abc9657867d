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


class RewardFromObservation(Probe):
    def reward(self, act):
        return float(self.sign)


class RewardOneStepLate(Probe):
    length = 2

    def reward(self, act):
        return float(self.sign) if self.t == 1 else 0.0


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


class ContinuousImage(Image):
    """The best action is 1 / 2 or -1 / 2, as the bright side says."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reward(self, act):
        return -float((act[0] - self.sign / 2) ** 2)


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


class Misbehaving(Probe):
    """Episodes of 5 steps; from its 40th step on, an observation or a reward that is no number, or an error."""

    length, steps = 5, 0

    def __init__(self, obs=None, last_obs=None, reward=1.0, error=None):
        self.wrong_obs, self.wrong_last_obs, self.wrong_reward, self.error = obs, last_obs, reward, error

    def step(self, act):
        self.steps += 1
        if self.error and self.steps >= 40:
            raise self.error
        return super().step(act)

    def observe(self):
        wrong = self.wrong_last_obs if self.t == self.length else self.wrong_obs
        return super().observe() if wrong is None or self.steps < 40 else np.array(wrong, np.float32)

    def reward(self, act):
        return 1.0 if self.steps < 40 else self.wrong_reward


class Loose(RewardFromObservation):
    """Observations as lists of numbers that are not within the space."""

    def observe(self):
        return [50.0 * self.sign, float(self.t)]


class Spaces(Probe):
    """Spaces to try; step refuses what is not an action."""

    length = 5

    def __init__(self, action_space=Probe.action_space, observation_space=SIGN):
        self.action_space, self.observation_space = action_space, observation_space

    def reward(self, act):
        return float(np.sum(act))


ACTION_SPACES = {
    "OneAction": spaces.Discrete(1),
    "FromMinusOne": spaces.Discrete(3, start=-1),
    "UnequalCounts": spaces.MultiDiscrete([1, 5, 2]),
    "Grid": spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[0, -1], [2, 3]]),
    "Odd": spaces.Box(np.array([-1e-3, 0.1], np.float32), np.array([0.1, 0.7], np.float32)),  # bounds that get rounded
    "HalfBounded": spaces.Box(0, np.inf, (1,), np.float32),
    "OneBound": spaces.Box(np.array([-1, -np.inf], np.float32), np.array([np.inf, 0], np.float32)),
    "Double": spaces.Box(-5, 10, (2,), np.float64),
    "Scalar": spaces.Box(-2, 2, (), np.float32),
    "Matrix": spaces.Box(-2, 2, (2, 3), np.float32),
}
REFUSED = {"Integers": spaces.Box(-3, 3, (2,), np.int64), "BinaryActions": spaces.MultiBinary(2)}
MISBEHAVING = {
    "NanObservation": {"obs": [np.nan, 0]},
    "InfiniteObservation": {"obs": [0, np.inf]},
    "NanLastObservation": {"last_obs": [np.nan, 0]},
    "NanReward": {"reward": np.nan},
    "InfiniteReward": {"reward": -np.inf},
    "Raises": {"error": ZeroDivisionError("the environment's own words")},
}

for probe in RewardFromObservation, RewardOneStepLate, Endless:  # the same with actions that do not matter
    continuous = type(f"Continuous{probe.__name__}", (probe,), {"action_space": spaces.Box(-1, 1, (1,), np.float32)})
    gym.register(f"Probe{continuous.__name__}-v0", continuous)
gym.register("ProbeContinuousTimeLimit-v0", continuous, max_episode_steps=10)
for probe in (*Probe.__subclasses__(), Unbounded, Image, ContinuousImage, Dict, Loose):
    gym.register(f"Probe{probe.__name__}-v0", entry_point=probe)
gym.register("ProbeTimeLimit-v0", entry_point=Endless, max_episode_steps=10)
gym.register("ProbeGraphObservations-v0", entry_point=Spaces, kwargs={"observation_space": spaces.Graph(SIGN, None)})
for name, kwargs in MISBEHAVING.items():
    gym.register(f"Probe{name}-v0", entry_point=Misbehaving, kwargs=kwargs)
for name, space in (ACTION_SPACES | REFUSED).items():
    gym.register(f"Probe{name}-v0", entry_point=Spaces, kwargs={"action_space": space})
