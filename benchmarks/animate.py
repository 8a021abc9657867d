"""Draw agents at work, trained by these scripts: agents.gif, the animated picture of the main README.

    pip install -r benchmarks/requirements.txt
    SDL_VIDEODRIVER=dummy MUJOCO_GL=egl python benchmarks/animate.py   # without a display

Agents come from the checkpoints that benchmarks/train.py leaves in runs/benchmark; those that are missing are trained
first, for minutes. The seed is the first of the reported ones. Nothing is cut: each panel starts with a reset, plays
greedy actions, and starts again when its episode ends.
"""

import importlib
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageDraw
from train import FIRST_SEED, FRESH  # beside this file

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs/benchmark"
sys.path.append(str(ROOT))
SIZE = 240, 160  # of a panel, in pixels
CAPTION = 16  # height of the line of text above it


@dataclass(frozen=True)
class Panel:
    """One agent; every so many steps of its environment make a frame."""

    script: str
    env_id: str
    steps: int  # of training
    stride: int
    options: dict = field(default_factory=dict)  # of gymnasium.make

    @property
    def seed(self):
        return FRESH.get((self.script, self.env_id), FIRST_SEED)

    @property
    def folder(self):
        return RUNS / f"{self.env_id}__{self.script}__{self.seed}__x"


PANELS = (
    Panel("ppo", "CartPole-v1", 100_000, stride=2),
    Panel("ppo", "LunarLander-v3", 1_000_000, stride=3),
    Panel("ppo", "HalfCheetah-v5", 1_000_000, stride=2, options={"camera_name": "track"}),
)


def load(panel):
    """The agent of a panel and its environment; trains it if there is no checkpoint."""
    script = importlib.import_module(panel.script)
    if not (panel.folder / "checkpoint.pt").exists():
        flags = {"env-id": panel.env_id, "total-timesteps": panel.steps, "seed": panel.seed, "run-dir": panel.folder}
        argv = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        subprocess.run([sys.executable, ROOT / f"{panel.script}.py", *argv], check=True)
    saved = script.load(panel.folder / "checkpoint.pt")
    env = script.make_env(panel.env_id, render_mode="rgb_array", **panel.options)
    if hasattr(env.unwrapped, "model"):  # of MuJoCo
        floor = env.unwrapped.model.geom("floor")  # drawn larger, because a fast robot runs off it
        floor.size[:2] *= 10
        env.unwrapped.model.mat_texrepeat[floor.matid] *= 10
    agent = script.ActorCritic(env.observation_space, env.action_space, script.Args(**saved["args"]))
    agent.load_state_dict(saved["agent"])
    return agent, env


def play(panel, count):
    """`count` frames, each an image of a panel with its caption."""
    agent, env = load(panel)
    frames, seed, done = [], panel.seed, True
    for step in range(count * panel.stride):
        if done:
            obs, _ = env.reset(seed=seed)
            seed += 1
        if step % panel.stride == 0:
            frames.append(captioned(env.render(), f"{panel.script}.py  {panel.env_id}"))
        obs, _, terminated, truncated, _ = env.step(agent.act(obs[None], greedy=True)[0])
        done = terminated or truncated
    env.close()
    return frames


def captioned(pixels, text):
    """A rendered frame [H, W, 3], cropped to the shape of a panel and scaled to its size, below a line of text."""
    image = Image.fromarray(pixels)
    height = int(image.width * SIZE[1] / SIZE[0])
    top = (image.height - height) // 2
    image = image.crop((0, top, image.width, top + height)).resize(SIZE, Image.Resampling.LANCZOS)
    panel = Image.new("RGB", (SIZE[0], SIZE[1] + CAPTION), "white")
    panel.paste(image, (0, CAPTION))
    ImageDraw.Draw(panel).text((4, 2), text, fill="black")
    return panel


def main(frames: int = 150, colors: int = 64, path: Path = ROOT / "benchmarks/agents.gif"):
    """Write the picture.

    Args:
        frames: frames of the animation, at 20 frames per second
        colors: colors of the palette; fewer make a smaller file
        path: file to write
    """
    rows = [np.hstack(row) for row in zip(*(play(panel, frames) for panel in PANELS))]
    palette = Image.fromarray(np.vstack(rows[:: max(1, frames // 10)])).quantize(colors)
    images = [Image.fromarray(row).quantize(palette=palette, dither=Image.Dither.NONE) for row in rows]
    images[0].save(path, save_all=True, append_images=images[1:], duration=50, loop=0, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(images)} frames")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
