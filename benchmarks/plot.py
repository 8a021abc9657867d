"""Draw learning curves: the interquartile mean over runs, with a 95 % bootstrap confidence interval.

    python benchmarks/plot.py "runs/*"               # your own runs, one curve for each environment and script
    python benchmarks/plot.py "with=runs/a-*" "without=runs/b-*" --x seconds --out curves.png
    python benchmarks/plot.py --readme               # this project's pictures, and the tables of both READMEs

A pattern names folders that runs have written; with a label before it, all its runs make one curve. The interquartile
mean leaves out the best and the worst quarter of the runs (Agarwal et al. 2021, arXiv:2108.13264): a single failed run
hardly moves it, and it varies less than the median.
"""

import csv
import glob
import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib import patheffects
from scipy import stats
from train import TASKS, threshold_of  # beside this file

HERE = Path(__file__).parent
ROOT = HERE.parent
DOCUMENTS = ROOT / "README.md", HERE / "README.md"
FOLD = "# From here on"  # starts the comment above what a script shares with its siblings
# Both palettes can be told apart by color-blind readers.
COLORS = {"vpg": "#e69f00", "a2c": "#56b4e9", "trpo": "#009e73", "ppo": "#d55e00", "dqn": "#0072b2"}
OTHER_COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
SCRIPTS = list(COLORS)
GRAY = "#999999"


@dataclass
class Args:
    patterns: tyro.conf.Positional[tuple[str, ...]] = ()  # folders of runs, or "label=folders"
    x: str = "global_step"  # or seconds
    out: str = "curves.svg"  # .svg, .png or .pdf
    title: str = ""  # above the picture
    readme: bool = False  # rewrite the pictures in benchmarks/ and the tables of README.md and benchmarks/README.md


# Statistics


def iqm(y, axis=0):
    """Interquartile mean: the mean of the middle half."""
    return stats.trim_mean(y, 0.25, axis=axis)


def interval(y, seed=0):
    """95 % confidence interval of the interquartile mean, by resampling the runs: y [runs, ...] -> low, high."""
    found = stats.bootstrap((y,), iqm, axis=0, n_resamples=1_000, method="percentile", rng=seed)
    return found.confidence_interval


def align(runs, points=60, log=False):
    """Curves on one grid, from where all have begun to where the first ends: x [points], y [runs, points]."""
    space = np.geomspace if log else np.linspace
    start, stop = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
    grid = space(start, stop, points)
    return grid, np.stack([np.interp(grid, x, y) for x, y in runs])


# Data


def read(folder, x="global_step"):
    """x and mean return of the last 20 episodes, from the first finished episode on; two arrays [rows]."""
    with open(Path(folder) / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["episodic_return"]]
    if not rows:
        raise ValueError(f"{folder}: no episode has ended")
    return np.array([[float(row[name]) for row in rows] for name in (x, "episodic_return")])


def groups(patterns, x="global_step"):
    """{label: runs} of patterns as on the command line. Raises ValueError if one matches nothing."""
    found = {}
    for pattern in patterns:
        label, _, folders = pattern.rpartition("=")
        folders = [path.parent for path in map(Path, sorted(glob.glob(f"{folders}/metrics.csv")))]
        if not folders:
            raise ValueError(f"{pattern}: no folder of a run")
        for folder in folders:
            parts = folder.name.split("__")  # runs/<env>__<script>__<seed>__<time>
            env = json.loads((folder / "args.json").read_text())["env_id"]
            name = f"{parts[1]} {env}" if len(parts) == 4 else folder.name
            found.setdefault(label or name, []).append(read(folder, x))
    return found


def table(name, folder=HERE):
    """Rows of results.csv or another table of this folder."""
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def results(folder=HERE):
    """Rows of results.csv, each with its curve: {"step": [points], "seconds": [points], "return": [points]}."""
    curves = {row.pop("command"): row for row in table("curves.csv", folder)}
    rows = table("results.csv", folder)
    order = [env for env, *_ in TASKS]
    rows.sort(key=lambda row: (order.index(row["env_id"]), int(row["seed"])))
    for row in rows:
        curve = curves[row["command"]]
        row["curve"] = {name: np.array(cell.split(), float) for name, cell in curve.items()}
    return rows


def select(rows, **wanted):
    """Rows with these values; variant "" unless asked for."""
    wanted = {"variant": ""} | wanted
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def by_round(rows, column="steps_per_second", **wanted):
    """{round: number in a column} of the rows of speed.csv or scale.csv with these values."""
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return {int(row["round"]): float(row[column]) for row in found}


def distinct(rows, column):
    """The different values of a column, in the order of the rows."""
    return list(dict.fromkeys(row[column] for row in rows))


def curves(rows, x="step"):
    return [(row["curve"][x], row["curve"]["return"]) for row in rows]


# Pictures


def draw(axes, runs, label, color, band=True, log=False, points=60, **style):
    """One curve, and its interval if band is set and there are several runs; returns x and y of the curve."""
    x, y = align(runs, points, log)
    middle = iqm(y)
    axes.plot(x, middle, color=color, label=label, **style)
    if band and len(runs) > 1:
        axes.fill_between(x, *interval(y), color=color, alpha=0.2, linewidth=0)
    return x, middle


def save(figure, path):
    """Write a picture; the same data give the same bytes."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    svg = str(path).endswith("svg")
    plt.rcParams |= {"svg.hashsalt": "curves", "svg.fonttype": "none"}
    figure.savefig(path, metadata={"Date": None} if svg else None, dpi=150)
    plt.close(figure)
    if svg:  # a tenth of a point is finer than a screen shows, and halves the file
        lines = re.split(r'(?<= d=")([^"]*)', Path(path).read_text())  # every other part is a line
        lines[1::2] = [re.sub(r"\d+\.\d+", shorten, line) for line in lines[1::2]]
        Path(path).write_text("".join(lines))


def shorten(number):
    return f"{float(number[0]):.1f}".removesuffix(".0")


def thousands(x, _=None):
    """A number of steps, "100k" or "1M"; also the form that matplotlib wants for the labels of an axis."""
    if x == 0:
        return "0"
    return f"{x / 1000:g}k" if x < 1e6 else f"{x / 1e6:g}M"


# At which return, and on which side of its curve, the label of a curve stands.
CARTPOLE_LABELS = {
    "vpg": (300, "left"),
    "a2c": (420, "right"),
    "trpo": (130, "right"),
    "ppo": (300, "right"),
    "dqn": (330, "left"),
    "sb3-a2c": (487, "right"),
    "sb3-trpo": (330, "right"),
    "sb3-ppo": (355, "right"),
    "sb3-dqn": (170, "right"),
}


def picture_of_cartpole(rows, path):
    """Return against seconds on a log axis: our scripts in color, Stable-Baselines3 in gray."""
    figure, axes = plt.subplots(figsize=(8.5, 4), layout="constrained")
    for name, (level, side) in CARTPOLE_LABELS.items():
        runs = curves(select(rows, script=name, env_id="CartPole-v1")[:10], "seconds")  # timed together
        if not runs:
            continue
        ours = name in COLORS
        label, color = (f"{name}.py", COLORS[name]) if ours else (f"SB3 {name[4:]}", GRAY)
        style = {"linewidth": 2.2, "zorder": 3} if ours else {"linewidth": 1.2, "zorder": 2}
        x, y = draw(axes, runs, label, color, band=ours, log=True, **style)
        last = x[np.flatnonzero(y < level)[-1]]  # after which the curve stays above the level
        place = {"x": last * 1.1, "ha": "left"} if side == "right" else {"x": last / 1.05, "ha": "right"}
        font = {"color": color, "weight": "bold"} if ours else {"color": "#666666", "fontsize": 9}
        halo = [patheffects.withStroke(linewidth=2.5, foreground="white")] if ours else None
        font |= {"path_effects": halo, "va": "center", "zorder": 4}
        axes.text(**place, y=level, s=label, **font)
    axes.axhline(475, color="black", linewidth=0.8, linestyle=":", zorder=1)
    axes.text(0.21, 478, "solved: 475", fontsize=9, va="bottom")
    axes.set(xscale="log", xlim=(0.2, 100), ylim=(0, 515))
    axes.set(xlabel="seconds of training on one CPU core (log scale)", ylabel="return on CartPole-v1")
    axes.set_xticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    axes.set_xticks([], minor=True)
    save(figure, path)


def picture_of_all(rows, path):
    """Return against steps, a panel for each environment."""
    envs = distinct(rows, "env_id")
    height = math.ceil(len(envs) / 3)
    figure, panels = plt.subplots(height, 3, figsize=(10, 2.4 * height), layout="constrained")
    for axes, env in zip(panels.flat, envs):
        for name, color in COLORS.items():
            if runs := curves(select(rows, script=name, env_id=env)):
                draw(axes, runs, f"{name}.py", color, points=40)
        axes.set_title(env, fontsize=10)
        axes.xaxis.set_major_formatter(thousands)
        axes.tick_params(labelsize=8)
    for axes in panels.flat[len(envs) :]:
        axes.axis("off")
    lines = [plt.Line2D([], [], color=color, linewidth=2) for color in COLORS.values()]
    labels = [f"{name}.py" for name in COLORS]
    figure.legend(lines, labels, loc="outside upper center", ncols=len(lines), frameon=False)
    figure.supxlabel("environment steps", fontsize=10)
    figure.supylabel("mean return of the last 20 training episodes", fontsize=10)
    save(figure, path)


ABLATION = {  # variant in results.csv: what remains of DQN
    "": "replay and target network",
    "no target network": "no target network",
    "no replay": "no replay",
    "online": "neither (online Q-learning)",
}


def picture_of_ablation(rows, path):
    """dqn.py with and without its two ideas."""
    figure, axes = plt.subplots(figsize=(7.5, 3.5), layout="constrained")
    for (variant, label), color in zip(ABLATION.items(), OTHER_COLORS):
        if runs := curves(select(rows, script="dqn", env_id="CartPole-v1", variant=variant)[:10]):
            draw(axes, runs, label, color)
    axes.set(xlabel="environment steps", ylabel="return on CartPole-v1", ylim=(0, 510))
    axes.xaxis.set_major_formatter(thousands)
    axes.legend(frameon=False, loc="lower right")
    save(figure, path)


def picture_of_scale(_, path):
    """Steps per second and peak memory of ppo.py against the number of environments, from scale.csv."""
    rows = [row for row in table("scale.csv") if row["case"] == "environments"]
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 3), layout="constrained")
    panels_of = {"steps_per_second": "steps per second", "peak_mib": "peak memory, MiB"}
    for axes, (column, label) in zip(panels, panels_of.items()):
        found = {int(n): by_round(rows, column, setting=n) for n in distinct(rows, "setting")}
        runs = [(list(found), [found[n][number] for n in found]) for number in found[1]]
        draw(axes, runs, "ppo.py", COLORS["ppo"], log=True, points=len(found), marker="o")
        axes.set(xscale="log", ylim=(0, 1.1 * axes.dataLim.ymax), xlabel="environments", ylabel=label)
        axes.set_xticks(list(found), [str(n) for n in found])
        axes.set_xticks([], minor=True)
    panels[0].yaxis.set_major_formatter(thousands)
    save(figure, path)


def picture_of_rlhf(_, path):
    """Score of the reward model and gold score of the judge against the square root of KL, as in Gao et al. (2023)."""
    rows = [row for row in table("rlhf.csv") if row["point"] != "end"]
    sizes = sorted(distinct(rows, "num_comparisons"), key=int)
    figure, panels = plt.subplots(1, len(sizes), figsize=(11, 3.8), sharey=True, layout="constrained")
    for axes, size in zip(panels, sizes):
        here = [row for row in rows if row["num_comparisons"] == size]
        for beta, color in zip(("0.2", "0.05", "0"), ("#0072b2", "#e69f00", "#d55e00")):
            path_rows = [row for row in here if row["experiment"] == "paths" and row["kl_coef"] == beta]
            draw_path(axes, path_rows, "point", f"PPO, beta {beta}", color)
        selected = [row for row in here if row["experiment"] == "selection"]
        for name, column, color in ("best of n", "point", "#777777"), ("optimal", "kl_coef", "#000000"):
            draw_path(axes, [row for row in selected if row["algorithm"] == name], column, name, color)
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set(title=f"{int(size):,} comparisons", xlabel="square root of KL to the reference (nats)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="score", ylim=(-2.2, None))
    title = "dashed: reward model\nsolid: judge"
    panels[0].legend(frameon=False, fontsize=8, loc="lower left", title=title, title_fontsize=8)
    save(figure, path)


def draw_path(axes, rows, column, label, color):
    """Means over seeds at each value of a column; values that some seeds lack are left out."""
    seeds, points = distinct(rows, "seed"), {}
    for row in rows:
        points.setdefault(row[column], []).append([float(row[name]) for name in ("kl", "score", "gold")])
    kl, score, gold = np.array([np.mean(x, 0) for x in points.values() if len(x) == len(seeds)]).T
    axes.plot(np.sqrt(kl.clip(0)), score, "--", color=color, linewidth=1)
    axes.plot(np.sqrt(kl.clip(0)), gold, color=color, linewidth=1.6, label=label)


PICTURES = {
    "cartpole": picture_of_cartpole,
    "curves": picture_of_all,
    "dqn-ablation": picture_of_ablation,
    "scale": picture_of_scale,
    "rlhf": picture_of_rlhf,
}


# Tables


def markdown(head, rows):
    """A table of cells that are texts."""
    head, *lines = ("| " + " | ".join(cells) + " |" for cells in [head, *rows])
    return "\n".join([head, "|" + "---|" * head.count(" |"), *lines])


def means(runs):
    """The final evaluation of each run."""
    return [float(row["mean"]) for row in runs]


def budget(runs):
    return thousands(int(runs[0]["steps"]))


def budgets(env_runs):
    """Steps of training, the most common first, then the scripts that differ: "100k; a2c 300k, dqn 50k"."""
    steps = {name: budget(runs) for name, runs in env_runs.items() if runs}
    usual = Counter(steps.values()).most_common(1)[0][0]
    others = ", ".join(f"{name} {other}" for name, other in steps.items() if other != usual)
    return f"{usual}; {others}" if others else usual


def table_of_results(rows):
    """Mean over seeds and worst seed, rounded; environments as rows, scripts as columns."""
    lines = []
    for env in distinct(rows, "env_id"):
        found = {name: select(rows, script=name, env_id=env) for name in SCRIPTS}
        cells = [f"{round(np.mean(means(x)))} ({round(min(means(x)))})" if x else "-" for x in found.values()]
        seeds = max(map(len, found.values()))
        lines.append([env, str(seeds), *cells, budgets(found)])
    return markdown(["environment", "seeds", *SCRIPTS, "steps"], lines)


def score(runs, most):
    """Final evaluation of some runs: mean over seeds (worst seed; worst episode), steps, seeds if not the most."""
    if not runs:
        return "-"
    worst = min(float(row["worst_episode"]) for row in runs)
    fewer = f", {len(runs)} seed{'s' * (len(runs) > 1)}" if len(runs) < most else ""
    values = f"{np.mean(means(runs)):.1f} ({min(means(runs)):.1f}; {worst:.0f})"
    return f"{values}, {budget(runs)}{fewer}"


def table_of_scores(rows):
    """The same with the worst episode and the steps of each script."""
    lines = []
    for env in distinct(rows, "env_id"):
        found = [select(rows, script=name, env_id=env) for name in SCRIPTS]
        most = max(map(len, found))
        lines.append([env, str(most), *(score(runs, most) for runs in found)])
    return markdown(["environment", "seeds", *SCRIPTS], lines)


def table_of_thresholds(rows):
    """How many seeds end at or above the reward threshold that Gymnasium registers, where it registers one."""
    lines = []
    for env in distinct(rows, "env_id"):
        threshold = threshold_of(env)
        if threshold is not None:
            found = [select(rows, script=name, env_id=env) for name in SCRIPTS]
            cells = [f"{sum(np.array(means(x)) >= threshold)} of {len(x)}" if x else "-" for x in found]
            lines.append([env, f"{threshold:g}", *cells])
    return markdown(["environment", "threshold", *SCRIPTS], lines)


def solving(rows, script):
    """Runs of CartPole-v1 on the first 10 seeds of a script, and of those that ever average 475: steps, seconds."""
    runs = select(rows, script=script, env_id="CartPole-v1")[:10]
    solved = [row for row in runs if row["solved_step"]]
    return runs, *([float(row[name]) for row in solved] for name in ("solved_step", "solved_seconds"))


def table_of_solving(rows):
    """Median steps and seconds until the last 20 episodes average 475 on CartPole-v1, ours and Stable-Baselines3's."""
    lines = []
    for name in [*SCRIPTS, *(f"sb3-{name}" for name in SCRIPTS)]:
        runs, steps, seconds = solving(rows, name)
        if runs:
            label = f"{name}.py" if name in SCRIPTS else f"Stable-Baselines3 {name[4:]}"
            medians = [f"{np.median(steps):,.0f}", f"{np.median(seconds):.1f}"] if steps else ["", ""]
            final = f"{np.mean(means(runs)):.1f} ({min(means(runs)):.1f}), {budget(runs)}"
            lines.append([label, f"{len(steps)} of {len(runs)}", *medians, final])
    return markdown(["", "seeds that reach it", "steps", "seconds", "final evaluation, mean (worst seed)"], lines)


def table_of_ablation(rows):
    """dqn.py with and without its two ideas, the first 10 seeds of CartPole-v1."""
    lines = []
    for variant, label in ABLATION.items():
        runs = select(rows, script="dqn", env_id="CartPole-v1", variant=variant)[:10]
        below = sum(np.array(means(runs)) < 475)
        seconds = np.median([float(row["seconds"]) for row in runs])
        final = f"{np.mean(means(runs)):.1f} ({min(means(runs)):.1f})"
        lines.append([label, final, f"{below} of {len(runs)}", f"{seconds:.0f}"])
    return markdown(["", "final evaluation, mean (worst seed)", "seeds below 475", "seconds of a run"], lines)


PEERS = {"ours": "ours", "sb3": "Stable-Baselines3", "sbx": "SBX", "cleanrl": "CleanRL", "floor": "floor"}


def middle(found):
    """Median of {round: number}, as a cell."""
    return f"{np.median(list(found.values())):,.0f}" if found else "-"


def ratio(found, others):
    """Median, least and greatest of the ratios over the rounds that both have, as a cell."""
    ratios = [found[number] / others[number] for number in found if number in others]
    return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"


def table_of_speed(rows):
    """Steps per second of each case and peer in speed.csv, medians over rounds."""
    lines = []
    for case in distinct(rows, "case"):
        found = [by_round(rows, case=case, peer=peer) for peer in PEERS]
        lines.append([case, str(len(found[0])), *map(middle, found)])
    return markdown(["steps per second", "rounds", *PEERS.values()], lines)


def table_of_ratios(rows):
    """How many times as fast our scripts are, and how many times as long as the floor they take."""
    lines = []
    for case in distinct(rows, "case"):
        ours, *others, floor = (by_round(rows, case=case, peer=peer) for peer in PEERS)
        lines.append([case, *(ratio(ours, other) for other in others), ratio(floor, ours)])
    _, *names, _ = PEERS.values()
    return markdown(["", *(f"our speed / {name}" for name in names), "our time / floor"], lines)


def table_of_waiting(rows):
    """Seconds from the command to the result, and what the result was, for each script in solve.csv."""
    lines = []
    for script in distinct(rows, "script"):
        runs = [row for row in rows if row["script"] == script]
        seconds = [float(row["wall_seconds"]) for row in runs]
        label = f"Stable-Baselines3 {script[4:]}" if script.startswith("sb3-") else f"{script}.py"
        spread = f"{np.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        lines.append([label, str(len(runs)), spread, f"{np.mean(means(runs)):.1f} ({min(means(runs)):.1f})"])
    return markdown(["", "seeds", "seconds, median (least to most)", "mean return (worst seed)"], lines)


def table_of_environments(rows):
    """Steps per second and memory of ppo.py for each number of environments in scale.csv, medians over rounds."""
    rows = [row for row in rows if row["case"] == "environments"]
    columns = "steps_per_second", "peak_mib"
    lines = [[n, *(middle(by_round(rows, column, setting=n)) for column in columns)] for n in distinct(rows, "setting")]
    return markdown(["environments", "steps per second", "peak memory, MiB"], lines)


def table_of_processes(rows):
    """Steps per second of ppo.py without and with --async-envs, in scale.csv."""
    lines = []
    for env in distinct([row for row in rows if row["setting"] == "async"], "case"):
        sync, processes = (by_round(rows, case=env, setting=setting) for setting in ("sync", "async"))
        lines.append([env, middle(sync), middle(processes), ratio(processes, sync)])
    head = ["8 environments", "steps per second", "with --async-envs", "ratio, median (least to most)"]
    return markdown(head, lines)


def table_of_workers(rows):
    """Steps per second of torchrun's workers in scale.csv; with efficiency 1, two are twice as fast as one."""
    rows = [row for row in rows if row["case"] == "workers"]
    speeds = {n: by_round(rows, setting=n) for n in distinct(rows, "setting")}
    each = {n: {number: speed / int(n) for number, speed in found.items()} for n, found in speeds.items()}
    lines = [[n, middle(speeds[n]), ratio(each[n], each["1"])] for n in speeds]
    return markdown(["workers", "steps per second, all together", "efficiency, median (least to most)"], lines)


def table_of_algorithms(rows):
    """The algorithms of rlhf.py at the end: means over seeds, and the worst seed where a target is for each seed."""
    rows, lines = [row for row in rows if row["experiment"] == "table"], []
    for algorithm in distinct(rows, "algorithm"):
        runs = [row for row in rows if row["algorithm"] == algorithm]
        x = {name: np.array([float(row[name]) for row in runs]) for name in runs[0] if runs[0][name][-1:].isdigit()}
        up = (x["gold"] - x["gold_reference"]) / x["gold_std"]
        gain = (x["J"] - x["J_reference"]) / (x["J_optimum"] - x["J_reference"])
        cells = [algorithm, str(len(runs)), f"{x['gold_reference'].mean():.2f} to {x['gold'].mean():.2f}"]
        cells += [f"{up.mean():.2f} ({up.min():.2f})", f"{x['win_rate'].mean():.1%} ({x['win_rate'].min():.1%})"]
        cells += [f"{x['kl'].mean():.1f}", f"{gain.mean():.0%}", f"{x['grammatical'].mean():.1%}"]
        lines.append(cells)
    head = ["", "seeds", "judge's score", "in standard deviations (worst seed)", "wins (worst seed)", "KL"]
    return markdown([*head, "of the possible gain in J", "grammatical"], lines)


def table_of_overoptimization(rows):
    """Scores at the end of long runs of rlhf.py, for each size of the reward model's data and each beta."""
    rows, lines = [row for row in rows if row["experiment"] == "paths" and row["point"] == "end"], []
    betas = sorted(distinct(rows, "kl_coef"), reverse=True)
    for size in sorted(distinct(rows, "num_comparisons"), key=int):
        cells = [f"{int(size):,}"]
        for beta in betas:
            runs = [row for row in rows if row["num_comparisons"] == size and row["kl_coef"] == beta]
            gold, score, kl = ([float(row[name]) for row in runs] for name in ("gold", "score", "kl"))
            cells.append(f"{np.mean(gold):.2f} ({min(gold):.2f}; {np.mean(score):.2f}; {np.mean(kl):.1f})")
        lines.append(cells)
    return markdown(["comparisons", *(f"beta {beta}" for beta in betas)], lines)


# The READMEs


def lines_to_read(script):
    """Lines of a script above what it shares with its siblings; all lines if it shares nothing."""
    lines = (ROOT / script).read_text().splitlines()
    return next((i for i, line in enumerate(lines) if line.startswith(FOLD)), len(lines))


def table_of_scripts(text, rows):
    """The README's text with the last two cells of each script's row as they are today."""

    def row(match):
        name = match["name"]
        _, _, seconds = solving(rows, name)
        solved = f"{np.median(seconds):.1f}" if seconds else "-"
        return f"{match['start']} {lines_to_read(f'{name}.py')} | {solved} |"

    return re.sub(r"^(?P<start>\| \[(?P<name>\w+)\.py\]\(\2\.py\) \|.*\|) [^|]* \| [^|]* \|$", row, text, flags=re.M)


def fill(text, rows):
    """A README's text with its tables and numbers as the data say."""
    tables = {
        "results": table_of_results(rows),
        "scores": table_of_scores(rows),
        "thresholds": table_of_thresholds(rows),
        "solving": table_of_solving(rows),
        "ablation": table_of_ablation(rows),
        "speed": table_of_speed(table("speed.csv")),
        "ratios": table_of_ratios(table("speed.csv")),
        "waiting": table_of_waiting(table("solve.csv")),
        "environments": table_of_environments(table("scale.csv")),
        "processes": table_of_processes(table("scale.csv")),
        "workers": table_of_workers(table("scale.csv")),
        "algorithms": table_of_algorithms(table("rlhf.csv")),
        "overoptimization": table_of_overoptimization(table("rlhf.csv")),
    }
    for name, content in tables.items():
        start, end = f"<!-- {name}: python benchmarks/plot.py --readme -->", f"<!-- end of {name} -->"
        if start in text:
            before, rest = text.split(start)
            text = f"{before}{start}\n\n{content}\n\n{end}{rest.split(end)[1]}"
    return table_of_scripts(text, rows)


def main():
    args = tyro.cli(Args, description=__doc__)
    if args.readme:
        rows = results()
        for path in DOCUMENTS:
            path.write_text(fill(path.read_text(), rows))
        for name, picture in PICTURES.items():
            picture(rows, HERE / f"{name}.svg")
        return
    if not args.patterns:
        sys.exit('plot.py: name folders of runs, such as "runs/*"; see --help')
    try:
        found = groups(args.patterns, args.x)
    except ValueError as error:
        sys.exit(f"plot.py: {error}")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, (label, runs) in enumerate(found.items()):
        draw(axes, runs, f"{label} ({len(runs)} runs)", OTHER_COLORS[i % len(OTHER_COLORS)])
    xlabel = {"global_step": "environment steps", "seconds": "seconds of training"}.get(args.x, args.x)
    axes.set(xlabel=xlabel, ylabel="mean return of the last 20 episodes", title=args.title)
    axes.legend(frameon=False)
    save(figure, args.out)


if __name__ == "__main__":
    main()
