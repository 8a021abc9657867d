"""Draw learning curves: the interquartile mean over runs, with a 95 % bootstrap confidence interval.

    python benchmarks/plot.py "runs/*"               # your own runs, one curve for each environment and script
    python benchmarks/plot.py "with=runs/a-*" "without=runs/b-*" --x seconds --out curves.png
    python benchmarks/plot.py --readme               # this project's pictures, and the tables of its pages

A pattern names folders that runs have written; with a label before it, all its runs make one curve. The interquartile
mean leaves out, at each point, the lowest and the highest quarter of the runs, rounded down (Agarwal et al. 2021,
arXiv:2108.13264): of four runs or more, a single failed one hardly moves it, and it varies less than the median.
"""

import csv
import glob
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro
from scipy import stats
from train import ABLATION, BASELINES, TASKS, threshold_of  # beside this file

HERE = Path(__file__).parent
ROOT = HERE.parent
DOCUMENTS = ROOT / "README.md", HERE / "README.md", ROOT / "docs/details.md"
# Color-blind readers can tell these apart.
COLORS = {"vpg": "#e69f00", "a2c": "#56b4e9", "trpo": "#009e73", "ppo": "#d55e00", "dqn": "#0072b2"}
COLORS |= {"ddpg": "#cc79a7", "sac": "#000000"}
SCRIPTS = list(COLORS)
PEERS = {"ours": "ours", "sb3": "Stable-Baselines3", "sbx": "SBX", "cleanrl": "CleanRL", "floor": "floor"}
plt.switch_backend("Agg")  # needs no display


@dataclass
class Args:
    patterns: tyro.conf.Positional[tuple[str, ...]] = ()  # folders of runs, or "label=folders"
    x: str = "global_step"  # or seconds
    out: str = "curves.svg"  # .svg, .png or .pdf
    readme: bool = False  # rewrite the pictures in benchmarks/ and the tables of its pages


# Data


def iqm(y, axis=0):
    """Interquartile mean over the runs, the mean of the middle half: y [runs, ...]."""
    return stats.trim_mean(y, 0.25, axis=axis)


def align(runs, points, log=False):
    """Curves on one grid, from where all have begun to where the first ends: x [points], y [runs, points]."""
    space = np.geomspace if log else np.linspace
    grid = space(max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs), points)
    return grid, np.stack([np.interp(grid, x, y) for x, y in runs])


def groups(patterns, x="global_step"):
    """{label: runs} of patterns as on the command line; a run is x and the mean return of the last 20 episodes."""
    found = {}
    for pattern in patterns:
        label, _, folders = pattern.rpartition("=")
        paths = sorted(Path(path) for path in glob.glob(f"{folders}/metrics.csv"))
        if not paths:
            sys.exit(f"plot.py: {pattern}: no folder of a run")
        for path in paths:
            name = " ".join(path.parent.name.split("__")[:2])  # runs/<env>__<script>__<seed>__<time>
            rows = [row for row in table(path.absolute()) if row["episodic_return"]]
            run = [numbers(rows, column) for column in (x, "episodic_return")]
            found.setdefault(label or name, []).append(run)
    return found


def table(path):
    with open(HERE / path, newline="") as file:
        return list(csv.DictReader(file))


def results():
    """Rows of results.csv, each with its curve: {"step": [points], "seconds": [points], "return": [points]}."""
    curves = {row.pop("command"): row for row in table("curves.csv")}
    order = [env for env, *_ in TASKS]
    rows = sorted(table("results.csv"), key=lambda row: (order.index(row["env_id"]), int(row["seed"])))
    for row in rows:
        row["curve"] = {name: np.array(cell.split(), float) for name, cell in curves[row["command"]].items()}
        row["env_id"] = row["env_id"].rpartition(":")[2]  # without a module
    return rows


def select(rows, **wanted):
    """Rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def runs_of(rows, script, env_id="CartPole-v1", variant=""):
    return select(rows, script=script, env_id=env_id, variant=variant)


def distinct(rows, column):
    """The different values of a column, in the order of the rows."""
    return list(dict.fromkeys(row[column] for row in rows))


def numbers(rows, column):
    return np.array([float(row[column]) for row in rows])


# Pictures


def draw(axes, runs, label, color, log=False, band=True, **style):
    """The interquartile mean of some runs and, if band is set, its 95 % confidence interval."""
    x, y = align(runs, points=30, log=log)
    axes.plot(x, iqm(y), color=color, label=label, **style)
    if band and len(runs) > 1:
        resampled = stats.bootstrap((y,), iqm, axis=0, n_resamples=500, method="percentile", rng=0)
        axes.fill_between(x, *resampled.confidence_interval, color=color, alpha=0.2, linewidth=0)


def curves(rows, x="step"):
    return [(row["curve"][x], row["curve"]["return"]) for row in rows]


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
        lines[1::2] = [re.sub(r"\d+\.\d+", lambda n: f"{float(n[0]):.1f}".removesuffix(".0"), x) for x in lines[1::2]]
        Path(path).write_text("".join(lines))


def thousands(x, _=None):
    """A number of steps, "100k" or "1M"; also the form that matplotlib wants for the labels of an axis."""
    return "0" if x == 0 else f"{x / 1000:g}k" if x < 1e6 else f"{x / 1e6:g}M"


def picture_of_cartpole(rows, path):
    """Return against seconds on a log axis: our scripts in color, Stable-Baselines3 in gray."""
    figure, axes = plt.subplots(figsize=(8.5, 4), layout="constrained")
    for (name, color), line in zip(COLORS.items(), ("-", ":", "-.", "--", "-")):
        ours = curves(runs_of(rows, name, variant="timed"), "seconds")
        theirs = curves(runs_of(rows, f"sb3-{name}"), "seconds")
        draw(axes, ours, f"{name}.py", color, log=True, linewidth=2.2, zorder=3)
        if theirs:
            draw(axes, theirs, f"SB3 {name}", "#888888", log=True, band=False, linewidth=1.2, linestyle=line)
    axes.axhline(475, color="black", linewidth=0.8, linestyle=":", zorder=1)
    axes.text(0.21, 478, "solved: 475", fontsize=9, va="bottom")
    axes.set(xscale="log", xlim=(0.2, 100), ylim=(0, 515))
    axes.set(xlabel="seconds of training on one CPU core (log scale)", ylabel="return on CartPole-v1")
    axes.set_xticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, loc="center left", fontsize=9)
    save(figure, path)


def picture_of_pendulum(rows, path):
    """Return against environment steps on a log axis: how much less the off-policy scripts need."""
    figure, axes = plt.subplots(figsize=(8.5, 3.2), layout="constrained")
    for name in "trpo", "ppo", "ddpg", "sac":
        draw(axes, curves(runs_of(rows, name, "Pendulum-v1")), f"{name}.py", COLORS[name], log=True, linewidth=2)
    axes.axhline(-200, color="black", linewidth=0.8, linestyle=":", zorder=1)
    axes.set(xscale="log", xlabel="environment steps (log scale)", ylabel="return on Pendulum-v1")
    axes.set_xticks([3_000, 10_000, 30_000, 100_000], ["3k", "10k", "30k", "100k"])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    save(figure, path)


def picture_of_all(rows, path):
    """Return against steps, a panel for each environment."""
    envs = distinct(rows, "env_id")
    height = (len(envs) + 2) // 3
    figure, panels = plt.subplots(height, 3, figsize=(10, 2.4 * height), layout="constrained")
    for axes, env in zip(panels.flat, envs):
        for name, color in COLORS.items():
            if runs := curves(runs_of(rows, name, env)):
                draw(axes, runs, f"{name}.py", color)
        axes.set_title(env, fontsize=10)
        axes.xaxis.set_major_formatter(thousands)
        axes.tick_params(labelsize=8)
    for axes in panels.flat[len(envs) :]:
        axes.remove()
    lines = [plt.Line2D([], [], color=color, label=f"{name}.py") for name, color in COLORS.items()]
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines), frameon=False)
    figure.supxlabel("environment steps", fontsize=10)
    figure.supylabel("mean return of the last 20 training episodes", fontsize=10)
    save(figure, path)


def picture_of_rlhf(_, path):
    """Score of the reward model and gold score of the judge against the square root of KL, as in Gao et al. (2023)."""
    rows = [row for row in table("rlhf.csv") if row["point"] != "end"]
    sizes = sorted(distinct(rows, "num_comparisons"), key=int)
    figure, panels = plt.subplots(1, len(sizes), figsize=(11, 3.8), sharey=True, layout="constrained")
    for axes, size in zip(panels, sizes):
        here = select(rows, num_comparisons=size)
        for beta, color in zip(("0.2", "0.05", "0"), ("#0072b2", "#e69f00", "#d55e00")):
            draw_path(axes, select(here, experiment="paths", kl_coef=beta), "point", f"PPO, beta {beta}", color)
        for name, column, color in ("best of n", "point", "#777777"), ("optimal", "kl_coef", "#000000"):
            draw_path(axes, select(here, experiment="selection", algorithm=name), column, name, color)
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set(title=f"{int(size):,} comparisons", xlabel="square root of KL to the reference (nats)")
    panels[0].set(ylabel="score", ylim=(-2.2, None))
    title = "dashed: reward model\nsolid: judge"
    panels[0].legend(frameon=False, fontsize=8, loc="lower left", title=title, title_fontsize=8)
    save(figure, path)


def draw_path(axes, rows, column, label, color):
    """Means over seeds at each value of a column; values that some seeds lack are left out."""
    seeds, points = distinct(rows, "seed"), [select(rows, **{column: value}) for value in distinct(rows, column)]
    names = "kl", "score", "gold"
    means = [[numbers(x, name).mean() for name in names] for x in points if len(x) == len(seeds)]
    kl, score, gold = np.array(means).T
    axes.plot(np.sqrt(kl.clip(0)), score, "--", color=color, linewidth=1)
    axes.plot(np.sqrt(kl.clip(0)), gold, color=color, linewidth=1.6, label=label)


PICTURES = {"cartpole": picture_of_cartpole, "pendulum": picture_of_pendulum}
PICTURES |= {"curves": picture_of_all, "rlhf": picture_of_rlhf}


# Tables


def markdown(head, rows):
    """A table of cells that are texts."""
    head, *lines = ("| " + " | ".join(cells) + " |" for cells in [head, *rows])
    return "\n".join([head, "|" + "---|" * head.count(" |"), *lines])


def spread(values, digits=1):
    """Mean over seeds and worst seed."""
    mean, worst = np.round([np.mean(values), min(values)], digits) + 0  # + 0: no -0
    return f"{mean:.{digits}f} ({worst:.{digits}f})"


def steps_of(runs):
    return thousands(int(runs[0]["steps"]))


def table_of_results(rows):
    """Mean over seeds and worst seed, rounded; the most common steps of training, then those of the other scripts."""
    lines = []
    for env in distinct(rows, "env_id"):
        found = {name: runs for name in SCRIPTS if (runs := runs_of(rows, name, env))}
        ((usual, _),) = Counter(map(steps_of, found.values())).most_common(1)
        others = ", ".join(f"{name} {steps_of(runs)}" for name, runs in found.items() if steps_of(runs) != usual)
        means = {name: numbers(runs, "mean") for name, runs in found.items()}
        spreads = {name: spread(x, digits=int(abs(x.mean()) < 10)) for name, x in means.items()}
        cells = [spreads.get(name, "-") for name in SCRIPTS]
        seeds = " or ".join(map(str, sorted({len(runs) for runs in found.values()})))
        lines.append([env, seeds, *cells, f"{usual}; {others}" if others else usual])
    return markdown(["environment", "seeds", *SCRIPTS, "steps"], lines)


def score(runs, threshold):
    """Mean over seeds (worst seed; worst episode), steps, number of seeds, or how many of them reach a threshold."""
    mean, worst = numbers(runs, "mean"), numbers(runs, "worst_episode").min().round() + 0
    seeds = f"seeds: {len(runs)}" if threshold is None else f"{sum(mean >= threshold)} of {len(runs)}"
    return f"{spread(mean)[:-1]}; {worst:.0f}), {steps_of(runs)}, {seeds}"


def table_of_scores(rows):
    """The same in full, with the reward thresholds that Gymnasium registers."""
    lines = []
    for env in distinct(rows, "env_id"):
        threshold, found = threshold_of(env), [runs_of(rows, name, env) for name in SCRIPTS]
        cells = [score(runs, threshold) if runs else "-" for runs in found]
        lines.append([env, "-" if threshold is None else f"{threshold:g}", *cells])
    return markdown(["environment", "threshold", *SCRIPTS], lines)


def table_of_cartpole(groups):
    """Of {label: runs}: median steps and seconds until the last 20 episodes average 475, and the final evaluations.

    The medians are over the runs that get there, if at least half do.
    """
    lines = []
    for label, runs in groups.items():
        final, solved = numbers(runs, "mean"), [row for row in runs if row["solved_step"]]
        steps, seconds = (numbers(solved, name) for name in ("solved_step", "solved_seconds"))
        half = 2 * len(solved) >= len(runs)
        medians = [f"{np.median(steps):,.0f}", f"{np.median(seconds):.1f}"] if half else ["-", "-"]
        run = f"{steps_of(runs)}, {np.median(numbers(runs, 'seconds')):.0f} s"
        below = f"{sum(final < 475)} of {len(runs)}"
        lines.append([label, f"{len(solved)} of {len(runs)}", *medians, run, spread(final), below])
    head = ["", "seeds that reach 475", "steps", "seconds", "a run", "final evaluation, mean (worst seed)"]
    return markdown([*head, "below 475"], lines)


def table_of_speed(rows):
    """Median steps per second of each case and peer; how many times as fast ours are (of the floor: as slow)."""
    lines = []
    for case in distinct(rows, "case"):
        ours, *others = (numbers(select(rows, case=case, peer=peer), "steps_per_second") for peer in PEERS)
        ratios = [x / ours if x is others[-1] else ours / x if len(x) else [] for x in others]
        spreads = [f"; {np.median(x):.2f} ({min(x):.2f} to {max(x):.2f})" if len(x) else "-" for x in ratios]
        cells = [f"{np.median(x):,.0f}{spread}" if len(x) else "-" for x, spread in zip(others, spreads)]
        lines.append([case, str(len(ours)), f"{np.median(ours):,.0f}", *cells])
    return markdown(["steps per second", "rounds", *PEERS.values()], lines)


def table_of_algorithms(rows):
    """The algorithms of rlhf.py at the end: means over seeds, and the worst seed where a target is for each seed."""
    lines = []
    for algorithm in distinct(select(rows, experiment="table"), "algorithm"):
        runs = select(rows, experiment="table", algorithm=algorithm)
        x = {name: numbers(runs, name) for name in runs[0] if runs[0][name][-1:].isdigit()}
        up = (x["gold"] - x["gold_reference"]) / x["gold_std"]
        gain = "-"  # best-of-n has only a bound of its KL, dpo no score
        if "J_optimum" in x:
            gain = f"{((x['J'] - x['J_reference']) / (x['J_optimum'] - x['J_reference'])).mean():.0%}"
        cells = [algorithm, str(len(runs)), f"{x['gold_reference'].mean():.2f} to {x['gold'].mean():.2f}"]
        cells += [spread(up, 2), f"{x['win_rate'].mean():.1%} ({x['win_rate'].min():.1%})", f"{x['kl'].mean():.1f}"]
        lines.append([*cells, gain, f"{x['grammatical'].mean():.1%}"])
    head = ["", "seeds", "judge's score", "in standard deviations (worst seed)", "wins (worst seed)", "KL"]
    return markdown([*head, "of the possible gain in J", "grammatical"], lines)


def table_of_details(rows):
    """Of one script, as it is and with each departure switched off: mean over seeds (worst to best)."""
    envs, lines = distinct(rows, "env_id"), []

    def cell(x):
        mean, worst, best = np.round([x.mean(), x.min(), x.max()]) + 0  # + 0: no -0
        return f"{mean:.0f} ({worst:.0f} to {best:.0f})"

    for variant in distinct(rows, "variant"):
        runs = [numbers(select(rows, env_id=env, variant=variant), "mean") for env in envs]
        lines.append([variant or "as it is", *(cell(x) if len(x) else "-" for x in runs)])
    steps = [f"{env}, {steps_of(select(rows, env_id=env))}" for env in envs]
    return markdown(["", *steps], lines)


def table_of_scripts(text, rows):
    """The README's text with the last two cells of each script's row, lines above the fold and seconds, as today."""

    def row(match):
        lines = re.split("^# From here on", (ROOT / match["file"]).read_text(), flags=re.MULTILINE)[0].count("\n")
        solved = [row for row in runs_of(rows, match["file"][:-3], variant="timed") if row["solved_step"]]
        seconds = f"{np.median(numbers(solved, 'solved_seconds')):.1f}" if solved else "-"
        return f"{match['start']} {lines} | {seconds} |"

    return re.sub(r"^(?P<start>\| \[(?P<file>\w+\.py)\].*\|) [^|]* \| [^|]* \|$", row, text, flags=re.MULTILINE)


def fill(text, rows):
    """A README's text with its tables and numbers as the data say."""
    first = {f"{name}.py": runs for name in SCRIPTS if (runs := runs_of(rows, name, variant="timed"))}
    first |= {f"Stable-Baselines3 {name}": runs_of(rows, f"sb3-{name}") for name in BASELINES}
    tables = {
        "results": table_of_results(rows),
        "scores": table_of_scores(rows),
        "solving": table_of_cartpole(first),
        "ablation": table_of_cartpole(
            {"dqn.py" if x == "timed" else x: runs_of(rows, "dqn", variant=x) for x in ["timed", *ABLATION]}
        ),
        "speed": table_of_speed(table("speed.csv")),
        "algorithms": table_of_algorithms(table("rlhf.csv")),
    }
    details = table("details.csv")
    for name in distinct(details, "script"):
        tables[f"details {name}"] = table_of_details(select(details, script=name))
    for name, content in tables.items():
        marks = rf"(<!-- {name}: python benchmarks/plot.py --readme -->\n).*(<!-- end of {name} -->)"
        text = re.sub(marks, lambda match, new=content: f"{match[1]}\n{new}\n\n{match[2]}", text, flags=re.DOTALL)
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
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, (label, runs) in enumerate(groups(args.patterns, args.x).items()):
        draw(axes, runs, f"{label} ({len(runs)} runs)", f"C{i % 10}")
    xlabel = {"global_step": "environment steps", "seconds": "seconds of training"}.get(args.x, args.x)
    axes.set(xlabel=xlabel, ylabel="mean return of the last 20 episodes")
    axes.legend(frameon=False)
    save(figure, args.out)


if __name__ == "__main__":
    main()
