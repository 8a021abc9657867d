"""Draw learning curves: the interquartile mean over runs, with a 95 % bootstrap confidence interval.

    python benchmarks/plot.py                            # the README's pictures and tables, from results.csv
    python benchmarks/plot.py "runs/*"                   # your own runs, one curve an environment and script
    python benchmarks/plot.py "with=runs/a-*" "without=runs/b-*" --x seconds --out curves.png

A pattern names folders that runs have written; with a label before it, these are one curve. The interquartile mean
leaves out the best and the worst quarter of the runs (Agarwal et al. 2021, arXiv:2108.13264): one lost run moves it
little, and it is steadier than the median.
"""

import csv
import glob
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from scipy import stats

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
COLOURS = dict(zip(("vpg", "a2c", "trpo", "ppo", "dqn"), ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2")))
OTHERS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # told apart by all eyes
STYLES = {"a2c": "--", "ppo": "-", "trpo": "-.", "dqn": ":"}  # of Stable-Baselines3's greys
SCRIPTS = list(COLOURS)


@dataclass
class Args:
    patterns: tyro.conf.Positional[tuple[str, ...]] = ()  # folders of runs, or "label=folders"
    x: str = "global_step"  # or seconds
    out: str = "curves.svg"  # .svg, .png or .pdf
    title: str = ""  # above the picture


# Statistics


def iqm(y, axis=0):
    """Interquartile mean: the mean of the middle half."""
    return stats.trim_mean(y, 0.25, axis=axis)


def interval(y, seed=0):
    """95 % confidence interval of the interquartile mean, by resampling the runs: y [runs, ...] -> low, high."""
    found = stats.bootstrap((y,), iqm, axis=0, n_resamples=1_000, method="percentile", rng=seed)
    return found.confidence_interval


def align(runs, points=150):
    """Curves on one grid, from where all have begun to where the first ends: x [points], y [runs, points]."""
    grid = np.linspace(max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs), points)
    return grid, np.stack([np.interp(grid, x, y) for x, y in runs])


# Runs


def read(folder, x="global_step"):
    """x and mean return of the last 20 episodes, from the first finished episode on; two arrays [rows]."""
    with open(Path(folder) / "metrics.csv", newline="") as file:
        rows = [
            (float(row[x]), float(row["episodic_return"])) for row in csv.DictReader(file) if row["episodic_return"]
        ]
    if not rows:
        raise ValueError(f"{folder}: no episode has ended")
    return np.array(rows).T


def groups(patterns, x="global_step"):
    """{label: runs} of patterns as on the command line. Raises ValueError if one matches nothing."""
    found = {}
    for pattern in patterns:
        label, _, folders = pattern.rpartition("=")
        folders = [folder for folder in sorted(glob.glob(folders)) if (Path(folder) / "metrics.csv").exists()]
        if not folders:
            raise ValueError(f"{pattern}: no folder of a run")
        for folder in folders:
            parts = Path(folder).name.split("__")  # runs/<env>__<script>__<seed>__<time>
            env = json.loads((Path(folder) / "args.json").read_text())["env_id"]
            name = f"{parts[1]} {env}" if len(parts) == 4 else Path(folder).name
            found.setdefault(label or name, []).append(read(folder, x))
    return found


def results(path=HERE / "results.csv"):
    """Rows of results.csv; see train.py for the columns."""
    csv.field_size_limit(10**7)
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def select(rows, **wanted):
    """Rows with these values; variant "" unless asked for."""
    wanted = {"variant": ""} | wanted
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def curves(rows, x="step"):
    return [tuple(np.array(row[f"curve_{name}"].split(), float) for name in (x, "return")) for row in rows]


# Pictures


def draw(axes, runs, label, colour, **style):
    """One curve with its interval."""
    x, y = align(runs)
    axes.plot(x, iqm(y), color=colour, label=label, **style)
    if len(runs) > 1:
        axes.fill_between(x, *interval(y), color=colour, alpha=0.2, linewidth=0)


def finish(figure, path):
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    plt.rcParams["svg.hashsalt"] = "curves"  # the same picture gives the same file
    figure.savefig(path, metadata={"Date": None} if str(path).endswith("svg") else None, dpi=150)
    plt.close(figure)


def picture_of_cartpole(rows, path):
    """Return against seconds, all scripts, Stable-Baselines3 in grey."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for name, style in STYLES.items():
        if runs := curves(select(rows, script=f"sb3-{name}", env_id="CartPole-v1"), "seconds"):
            draw(axes, runs, f"Stable-Baselines3 {name}", "#999999", linestyle=style)
    for name, colour in COLOURS.items():
        if runs := curves(select(rows, script=name, env_id="CartPole-v1"), "seconds"):
            draw(axes, runs, f"{name}.py", colour, linewidth=2)
    axes.set(xlabel="seconds, on one core", ylabel="return, CartPole-v1", xlim=(0, 30), ylim=(0, 510))
    figure.legend(frameon=False, loc="outside right center")
    finish(figure, path)


def picture_of_all(rows, path):
    """Return against steps, a panel for each environment."""
    envs = list(dict.fromkeys(row["env_id"] for row in rows))
    figure, panels = plt.subplots(-(-len(envs) // 3), 3, figsize=(11, 3 * -(-len(envs) // 3)), layout="constrained")
    for axes, env in zip(panels.flat, envs):
        for name, colour in COLOURS.items():
            if runs := curves(select(rows, script=name, env_id=env)):
                draw(axes, runs, f"{name}.py", colour)
        axes.set_title(env, fontsize=10)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k" if x < 1e6 else f"{x / 1e6:g}M")
    for axes in panels.flat[len(envs) :]:
        axes.remove()
    handles = [plt.Line2D([], [], color=colour, label=f"{name}.py") for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)
    finish(figure, path)


def picture_of_ablation(rows, path):
    """dqn.py with and without its two ideas."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    variants = {"": "replay and target network", "no target network": "no target network", "no replay": "no replay"}
    variants |= {"online": "neither, and one environment: online Q-learning"}
    for (variant, label), colour in zip(variants.items(), OTHERS):
        if runs := curves(select(rows, script="dqn", env_id="CartPole-v1", variant=variant)[:10]):
            draw(axes, runs, f"{label} ({len(runs)} seeds)", colour)
    axes.set(xlabel="environment steps", ylabel="return, CartPole-v1", ylim=(0, 510))
    axes.legend(frameon=False, loc="lower right")
    finish(figure, path)


# Tables


def amount(steps):
    return f"{int(steps) // 1_000_000}M" if int(steps) >= 1_000_000 else f"{int(steps) // 1000}k"


def score(runs, most):
    """Final evaluation of some runs: mean over seeds (worst seed; worst episode), budget, seeds if not the most."""
    if not runs:
        return "–"
    means, worst = [float(row["mean"]) for row in runs], min(float(row["worst"]) for row in runs)
    fewer = f", {len(runs)} seed{'s' * (len(runs) > 1)}" if len(runs) < most else ""
    return f"{np.mean(means):.1f} ({min(means):.1f}; {worst:.0f}), {amount(runs[0]['steps'])}{fewer}"


def table_of_scores(rows):
    """A row for each environment, a column for each script."""
    lines = ["| environment | seeds | " + " | ".join(SCRIPTS) + " |", "|---|---|" + "---|" * len(SCRIPTS)]
    for env in dict.fromkeys(row["env_id"] for row in rows):
        found = [select(rows, script=name, env_id=env) for name in SCRIPTS]
        most = max(map(len, found))
        lines.append(f"| {env} | {most} | " + " | ".join(score(runs, most) for runs in found) + " |")
    return "\n".join(lines)


def table_of_solving(rows):
    """Median steps and seconds until the last 20 episodes average 475 on CartPole-v1, ours and Stable-Baselines3's."""
    lines = ["| | seeds that got there | steps | seconds | final evaluation, mean (worst) |", "|---|---|---|---|---|"]
    for name in [*SCRIPTS, *(f"sb3-{name}" for name in SCRIPTS)]:
        runs = select(rows, script=name, env_id="CartPole-v1")[:10]
        if not runs:
            continue
        label = f"{name}.py" if name in SCRIPTS else f"Stable-Baselines3 {name[4:]}"
        solved = [row for row in runs if row["solved_step"]]
        middle = [
            np.median([float(row[column]) for row in solved]) for column in ("solved_step", "solved_seconds") if solved
        ]
        means = [float(row["mean"]) for row in runs]
        cells = (
            f"{len(solved)} of {len(runs)} | {middle[0]:,.0f} | {middle[1]:.1f}" if solved else f"0 of {len(runs)} | |"
        )
        lines.append(f"| {label} | {cells} | {np.mean(means):.1f} ({min(means):.1f}), {amount(runs[0]['steps'])} |")
    return "\n".join(lines)


TABLES = {"scores": table_of_scores, "solving": table_of_solving}
PICTURES = {"cartpole": picture_of_cartpole, "curves": picture_of_all, "dqn-ablation": picture_of_ablation}


def readme(text, rows):
    """The README with its tables as the rows say."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name}: python benchmarks/plot.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n\n{table(rows)}\n\n{end}{rest.split(end)[1]}"
    return text


def main():
    args = tyro.cli(Args, description=__doc__)
    if not args.patterns:
        rows = results()
        README.write_text(readme(README.read_text(), rows))
        for name, picture in PICTURES.items():
            picture(rows, HERE / f"{name}.svg")
        return
    try:
        found = groups(args.patterns, args.x)
    except ValueError as error:
        sys.exit(f"plot.py: {error}")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, (label, runs) in enumerate(found.items()):
        draw(axes, runs, f"{label} ({len(runs)} runs)", OTHERS[i % len(OTHERS)])
    axes.set(xlabel={"global_step": "environment steps"}.get(args.x, args.x), ylabel="return", title=args.title)
    axes.legend(frameon=False)
    finish(figure, args.out)


if __name__ == "__main__":
    main()
