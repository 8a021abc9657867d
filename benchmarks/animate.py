"""Draw agents at work, trained by these scripts: agents.gif, the animated picture of the main README.

    pip install -r benchmarks/requirements.txt
    SDL_VIDEODRIVER=dummy MUJOCO_GL=egl python benchmarks/animate.py   # without a display

Agents come from the checkpoints that benchmarks/train.py leaves in runs/benchmark; those that are missing are trained
first, for minutes, Pong for two hours. The seed is the first of the reported ones. Nothing is cut: each panel starts
with a reset, plays greedy actions, and starts again when its episode ends.
"""

import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import train  # beside this file
import tyro
from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
HEIGHT = 160  # of a panel, in pixels
CAPTION = 16  # height of the line of text above it


@dataclass(frozen=True)
class Panel:
    """One agent; every so many steps of its environment make a frame."""

    script: str
    env_id: str
    stride: int
    width: int = 240  # in pixels
    options: dict = field(default_factory=dict)  # of gymnasium.make

    @property
    def job(self):
        """The run of benchmarks/train.py with the first seed."""
        return next(job for job in train.jobs() if (job.script, job.env_id) == (self.script, self.env_id))


PANELS = (
    Panel("ppo", "CartPole-v1", stride=4),
    Panel("ppo", "LunarLander-v3", stride=6),
    Panel("ppo", "HalfCheetah-v5", stride=4, options={"camera_name": "track"}),
    Panel("ppo", "ALE/Pong-v5", stride=4, width=122),  # the whole screen
)


def load(panel):
    """The agent of a panel and its environment; trains it if there is no checkpoint."""
    script = importlib.import_module(panel.script)
    path = panel.job.folder / "checkpoint.pt"
    if not path.exists():
        train.run(panel.job)
    env = script.make_env(panel.env_id, render_mode="rgb_array", **panel.options)
    if hasattr(env.unwrapped, "model"):  # of MuJoCo
        floor = env.unwrapped.model.geom("floor")  # drawn larger, because a fast robot runs off it
        floor.size[:2] *= 10
        env.unwrapped.model.mat_texrepeat[floor.matid] *= 10
    agent = script.ActorCritic(env.observation_space, env.action_space, script.Args(resume=str(path)))
    agent.load_state_dict(script.load(path)["agent"])
    return agent, env


def play(panel, count):
    """`count` frames, each an image of a panel with its caption."""
    agent, env = load(panel)
    frames, seed, done = [], panel.job.seed, True
    for step in range(count * panel.stride):
        if done:
            obs, _ = env.reset(seed=seed)
            seed += 1
        if step % panel.stride == 0:
            frames.append(captioned(env.render(), f"{panel.script}.py  {panel.env_id}", panel.width))
        obs, _, terminated, truncated, _ = env.step(agent.act(obs[None], greedy=True)[0])
        done = terminated or truncated
    env.close()
    return frames


def captioned(pixels, text, width):
    """A rendered frame [H, W, 3], cropped to the shape of a panel and scaled to its size, below a line of text."""
    image = Image.fromarray(pixels)
    height = min(image.height, int(image.width * HEIGHT / width))
    top = (image.height - height) // 2
    image = image.crop((0, top, image.width, top + height)).resize((width, HEIGHT), Image.Resampling.LANCZOS)
    panel = Image.new("RGB", (width, HEIGHT + CAPTION), "white")
    panel.paste(image, (0, CAPTION))
    ImageDraw.Draw(panel).text((4, 2), text, fill="black")
    return panel


def main(frames: int = 66, colors: int = 32, path: Path = ROOT / "benchmarks/agents.gif"):
    """Write the picture.

    Args:
        frames: frames of the animation, at 10 frames per second
        colors: colors of the palette; fewer make a smaller file
        path: file to write
    """
    rows = [np.hstack(row) for row in zip(*(play(panel, frames) for panel in PANELS))]
    palette = Image.fromarray(np.vstack(rows[:: max(1, frames // 10)])).quantize(colors)
    images = [Image.fromarray(row).quantize(palette=palette, dither=Image.Dither.NONE) for row in rows]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, loop=0, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(images)} frames")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
