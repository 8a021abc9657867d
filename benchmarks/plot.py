"""Draw learning curves: the interquartile mean over runs, with a 95 % bootstrap confidence interval.

    python benchmarks/plot.py runs/*
    python benchmarks/plot.py "with replay=runs/a-*" "without=runs/b-*" --x seconds --out curves.png

A pattern names folders that runs have written. Runs of one pattern with a label make one curve; without a label, runs
of one environment and script do, as the names runs/<env>__<script>__<seed>__<time> say. The interquartile mean leaves
out the best and the worst quarter of the runs (Agarwal et al. 2021, arXiv:2108.13264): a lost run moves it little, and
it is steadier than the median.
"""

import csv
import glob
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro
from scipy import stats

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # told apart by all eyes


@dataclass
class Args:
    patterns: tyro.conf.Positional[tuple[str, ...]]  # folders of runs, or "label=folders"
    x: str = "global_step"  # or seconds
    out: str = "curves.svg"  # .svg, .png or .pdf
    title: str = ""  # above the picture


def read(folder, x="global_step"):
    """x and mean return of the last 20 episodes, from the first finished episode on; two arrays [rows]."""
    with open(Path(folder) / "metrics.csv", newline="") as file:
        rows = [
            (float(row[x]), float(row["episodic_return"])) for row in csv.DictReader(file) if row["episodic_return"]
        ]
    if not rows:
        raise ValueError(f"{folder}: no episode has ended")
    return np.array(rows).T


def align(runs, points=200):
    """Curves on one grid, from where all have begun to where the first ends: x [points], y [runs, points]."""
    grid = np.linspace(max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs), points)
    return grid, np.stack([np.interp(grid, x, y) for x, y in runs])


def iqm(y, axis=0):
    """Interquartile mean: the mean of the middle half."""
    return stats.trim_mean(y, 0.25, axis=axis)


def interval(y, seed=0):
    """95 % confidence interval of the interquartile mean, by resampling the runs: y [runs, ...] -> low, high."""
    found = stats.bootstrap((y,), iqm, axis=0, n_resamples=2_000, method="percentile", rng=seed)
    return found.confidence_interval


def draw(axes, runs, label, colour):
    x, y = align(runs)
    axes.plot(x, iqm(y), color=colour, label=f"{label} ({len(runs)} runs)")
    if len(runs) > 1:
        axes.fill_between(x, *interval(y), color=colour, alpha=0.2, linewidth=0)


def groups(patterns, x):
    """{label: runs} of patterns as on the command line. Raises ValueError if one matches nothing."""
    found = {}
    for pattern in patterns:
        label, _, folders = pattern.rpartition("=")
        folders = [folder for folder in sorted(glob.glob(folders)) if (Path(folder) / "metrics.csv").exists()]
        if not folders:
            raise ValueError(f"{pattern}: no folder of a run")
        for folder in folders:
            script = Path(folder).name.split("__")[1] if Path(folder).name.count("__") > 2 else Path(folder).name
            env = json.loads((Path(folder) / "args.json").read_text())["env_id"]
            found.setdefault(label or f"{script} {env}", []).append(read(folder, x))
    return found


def main():
    args = tyro.cli(Args, description=__doc__)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for colour, (label, runs) in zip(COLOURS * 9, groups(args.patterns, args.x).items()):
        draw(axes, runs, label, colour)
    axes.set(xlabel={"global_step": "environment steps"}.get(args.x, args.x), ylabel="return", title=args.title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    plt.rcParams["svg.hashsalt"] = "curves"  # the same picture gives the same file
    figure.savefig(args.out, metadata={"Date": None} if args.out.endswith("svg") else None, dpi=150)


if __name__ == "__main__":
    main()
