"""The evidence for rlhf.py: five algorithms on fresh seeds, and what happens when a reward model is trusted too much.

    python benchmarks/rlhf.py                # all runs that have no row in rlhf.csv yet, one after the other
    python benchmarks/rlhf.py table ppo      # only those with both words in their row
    python benchmarks/plot.py --readme       # the tables and the picture of rlhf.csv

Interrupt it at any time: finished runs keep their rows. Runs of one seed share the stages before improve through
--resume, which continues bit for bit, so each is the run that `python rlhf.py --seed ...` with its flags would be.
The defaults were chosen on seeds 1 to 3, never on those here.
"""

import csv
import json
import math
import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # before this folder: this file has the name of the script that it imports
import rlhf  # noqa: E402

RESULTS = ROOT / "benchmarks/rlhf.csv"
FOLDER = ROOT / "runs/rlhf-evidence"
COLUMNS = "experiment seed algorithm num_comparisons kl_coef point kl gold score win_rate grammatical J J_reference"
COLUMNS = [*COLUMNS.split(), "J_optimum", "gold_reference", "gold_std", "accuracy", "accuracy_best", "seconds"]

TABLE_SEEDS = range(101, 111)
TABLE = {"best-of-n": {}, "ppo": {}, "rloo": {}, "grpo": {"kl_coef": 0.3}, "dpo": {}}  # flags other than the defaults
PATH_SEEDS = (111, 112, 113)
PATHS = [(num_comparisons, kl_coef) for num_comparisons in (2_000, 500, 8_000) for kl_coef in (0.0, 0.2, 0.05)]
SAMPLES = 1_024  # responses of the reference to each prompt, for best-of-n and the optimal frontier


def known():
    """Rows of all finished runs."""
    return list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []


def keep(rows):
    """Append rows to the results."""
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: shown(x) for name, x in row.items()})


def shown(value):
    """A value as the results have it."""
    return f"{value:.5g}" if isinstance(value, float) else value


def base(seed, num_comparisons=8_000):
    """Checkpoint of a run in which only the last stage is left."""
    folder = FOLDER / f"{seed}-{num_comparisons}"
    checkpoint = folder / "checkpoint.pt"
    flags = {"seed": seed, "num_comparisons": num_comparisons, "run_dir": str(folder)}
    args = rlhf.Args(**flags, resume=str(checkpoint) if checkpoint.exists() else "")
    rlhf.setup_torch(args)
    run = rlhf.Run(args)
    reference = run.stage(rlhf.finetune)
    rankings = run.stage(rlhf.compare, reference, reference, rlhf.restaurant_judge)
    run.stage(rlhf.fit_reward, reference, rankings)
    return checkpoint


def train(name, checkpoint, **flags):
    """Continue from a checkpoint with other flags; returns eval.json and the rows of improve in metrics.csv."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    saved = rlhf.load(checkpoint)
    saved["args"] |= flags  # rlhf.py refuses other flags; it cannot know that these had no effect yet
    if flags.get("algorithm") == "dpo":
        del saved["made"][2:]  # it has no reward model
    torch.save(saved, folder / "start.pt")
    rlhf.train(rlhf.Args(resume=str(folder / "start.pt"), run_dir=str(folder)))
    (folder / "start.pt").unlink()
    (folder / "checkpoint.pt").unlink()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return json.loads((folder / "eval.json").read_text()), [row for row in rows if row["stage"].startswith("improve")]


def final_row(result):
    """Columns of one eval.json; best-of-n has no optimum beside its J, dpo no score."""
    after, before = result["policy"], result["reference"]
    row = {name: after.get(name, "") for name in ("kl", "score", "grammatical", "J")}
    row |= {"gold": after["judge_score"], "gold_reference": before["judge_score"], "gold_std": result["judge_std"]}
    row |= {"win_rate": result["win_rate"], "J_reference": before.get("J", ""), "seconds": result["seconds"]}
    row |= {"J_optimum": result.get("J_optimum", ""), "accuracy": result.get("accuracy", "")}
    return row | {"accuracy_best": result.get("accuracy_optimum", "")}


def table(done):
    """The algorithms with their defaults, grpo with a larger beta."""
    for algorithm, flags in TABLE.items():
        for seed in TABLE_SEEDS:
            key = {"experiment": "table", "seed": seed, "algorithm": algorithm, "num_comparisons": 8_000}
            if skip(done, key):
                continue
            result, _ = train(f"{seed}-{algorithm}", base(seed), algorithm=algorithm, **flags)
            keep([key | {"kl_coef": flags.get("kl_coef", 0.2), "point": "end"} | final_row(result)])


def paths(done):
    """PPO for several sizes of the reward model's data and several beta: where it is at each iteration."""
    for seed in PATH_SEEDS:
        for num_comparisons, kl_coef in PATHS:
            key = {"experiment": "paths", "seed": seed, "algorithm": "ppo", "num_comparisons": num_comparisons}
            key["kl_coef"] = kl_coef
            if skip(done, key):
                continue
            name = f"{seed}-{num_comparisons}-{kl_coef}"
            result, steps = train(name, base(seed, num_comparisons), kl_coef=kl_coef, iterations=60)
            names = {"kl": "kl", "gold": "judge_score", "score": "score", "grammatical": "grammatical"}
            rows = [{ours: float(step[name]) for ours, name in names.items()} for step in steps]
            rows = [key | {"point": i} | row for i, row in enumerate(rows)]
            keep([*rows, key | {"point": "end"} | final_row(result)])


@torch.no_grad()
def selection(done):
    """Without training: the best of n responses of the reference, and the optimal policies, by reweighting them."""
    for seed in PATH_SEEDS:
        for num_comparisons in sorted({n for n, _ in PATHS}):
            key = {"experiment": "selection", "seed": seed, "num_comparisons": num_comparisons}
            if skip(done, key):
                continue
            score, gold = reference_samples(base(seed, num_comparisons))
            keep([key | row for row in [*best_of_n(score, gold), *frontier(score, gold)]])


def reference_samples(checkpoint):
    """Scores of the reward model and of the judge for responses of the reference, [prompts, SAMPLES] each."""
    made, args = rlhf.load(checkpoint)["made"], rlhf.Args(resume=str(checkpoint))
    reference, reward_model = rlhf.rebuild(made[0], args), rlhf.rebuild(made[2], args)
    columns = []
    for prompt in rlhf.ALL_PROMPTS:
        text = reference.sample(rlhf.encode([prompt] * SAMPLES))
        judge_score = rlhf.judge_all(rlhf.restaurant_judge, text)
        columns.append(torch.stack([rlhf.score_responses(reward_model, text), judge_score]))
    return torch.stack(columns, 1).double()


def best_of_n(score, gold):
    """Means of the response with the highest score among n; its KL is log n - (n - 1) / n (Stiennon et al. 2020)."""
    for n in (2**i for i in range(int(math.log2(score.shape[1])) + 1)):
        best = score.view(len(score), -1, n).max(2)
        chosen = gold.view(len(gold), -1, n).gather(2, best.indices[..., None])
        kl = math.log(n) - (n - 1) / n
        means = {"score": best.values.mean().item(), "gold": chosen.mean().item()}
        yield {"algorithm": "best of n", "point": n, "kl": kl} | means


def frontier(score, gold):
    """Means of pi_ref exp(score / beta) / Z while at least 20 samples of a prompt count."""
    for kl_coef in (3.0, 2.0, 1.5, 1.2, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2):
        weight = (score / kl_coef).softmax(1)
        if (1 / (weight**2).sum(1)).mean() < 20:
            return
        kl = (weight * (weight * score.shape[1]).clamp(min=1e-30).log()).sum(1).mean()
        means = {"score": (weight * score).sum(1).mean().item(), "gold": (weight * gold).sum(1).mean().item()}
        yield {"algorithm": "optimal", "point": "", "kl_coef": kl_coef, "kl": kl.item()} | means


def skip(done, key):
    """Whether a run has its row already, or is not asked for on the command line."""
    key = {name: str(shown(value)) for name, value in key.items()}
    known = any(all(row[name] == value for name, value in key.items()) for row in done)
    return known or not set(sys.argv[1:]) <= set(key.values())


if __name__ == "__main__":
    for experiment in table, paths, selection:
        experiment(known())
