"""The games of MinAtar in Gymnasium: `pip install minatar`, then `--env-id benchmarks.games:MinAtar/Breakout-v1`.

Young and Tian (2019), arXiv:1903.03176. Observations are of bool, [10, 10, channels].
"""

from minatar.gym import register_envs

register_envs()
