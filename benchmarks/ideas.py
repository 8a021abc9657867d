"""Draw the pictures of docs/ideas.md, one idea each, from what the scripts' own functions compute.

    python benchmarks/ideas.py       # all of them, in a minute on one core
    python benchmarks/ideas.py clip  # one

tests/test_ideas.py checks the numbers. Only the picture of kl needs training.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from scipy.stats import norm

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # for the scripts and the tests
ppo, trpo, test_vpg = map(importlib.import_module, ["ppo", "trpo", "tests.test_vpg"])

ORANGE, BLUE, GREEN, GRAY = "#d55e00", "#0072b2", "#009e73", "#777777"  # color-blind readers can tell them apart
LAMBDAS = np.linspace(0, 1, 21)
EPISODES = 1_500  # in a batch, in the picture of lambda
plt.switch_backend("Agg")  # needs no display
plt.rcParams |= {"axes.spines.right": False, "axes.spines.top": False, "figure.dpi": 150, "legend.frameon": False}


def gradient_variance():
    """{form: variance of the gradient of one episode} with gamma = 1, lambda = 0; exact, from all episodes."""
    world = test_vpg.Enumeration()
    return {form: world.mean_and_variance(form, gamma=1.0)[1].item() for form in test_vpg.FORMS}


def clipped(ratios, adv, eps=0.2):
    """The clipped objective of one sample at each ratio."""
    return [ppo.clip_objective(torch.tensor([ratio]), torch.tensor([adv]), eps).item() for ratio in ratios]


def bias_and_variance():
    """Squared bias and variance of the gradient at each of LAMBDAS, with a critic that has learned half; [2, 21]."""
    world, points = test_vpg.Enumeration(), []
    exact, half = world.gradient(gamma=1.0), world.values(gamma=1.0) / 2
    world.values = lambda gamma: half
    for lam in LAMBDAS:
        mean, variance = world.mean_and_variance("gae", gamma=1.0, lam=lam)
        points.append([(mean - exact).square().sum().item(), variance.item() / EPISODES])
    return np.array(points).T


def kl_per_update(name, steps, seed):
    """KL(pi_old || pi) of each update on CartPole-v1 in nats, without decay of the step sizes."""
    module, kls = importlib.import_module(name), []
    original = module.update

    def update(agent, *arguments):
        (obs,) = (x.obs for x in arguments if isinstance(x, module.Batch))
        old = trpo.Categorical(agent.policy(obs).logits.detach())
        metrics = original(agent, *arguments)
        kls.append(trpo.kl_divergence(old, agent.policy(obs)).mean().item())
        return metrics

    flags = {"total_timesteps": steps, "seed": seed, "anneal_lr": False, "eval_episodes": 0}
    flags |= {"anneal_kl": False} if name == "trpo" else {}
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(module, "update", update):
        module.train(module.Args(run_dir=folder, **flags))
    return kls


def value_at_a_time_limit(terminal, gamma=0.9, lam=0.98, length=10, iterations=20):
    """V after each iteration V += mean advantage, in a single state with reward 1, if episodes are cut to a length."""
    done = torch.arange(length)[:, None] == length - 1
    rew, curve = torch.ones(length, 1), [0.0]
    for _ in range(iterations):
        val = torch.full((length, 1), curve[-1])
        curve.append(curve[-1] + ppo.gae(rew, val, val, done & terminal, done, gamma, lam).mean().item())
    return curve


def target_bias(actions):
    """Means of three estimates of the largest of so many values, all 0; critics have standard normal errors; exact.

    Of the action that is best for one critic: its value, another critic's (double Q-learning), the smaller one (TD3).
    """
    x, step = np.linspace(-9, 9, 20_001, retstep=True)
    density = actions * norm.pdf(x) * norm.cdf(x) ** (actions - 1)  # of the first critic's maximum
    smaller = x * norm.sf(x) - norm.pdf(x)  # the mean of min(x, second critic)
    return (density * x).sum() * step, 0.0, (density * smaller).sum() * step


def draw_variance(axes):
    bars = axes.barh(*zip(*gradient_variance().items()), color=[GRAY, GRAY, BLUE, BLUE])
    axes.bar_label(bars, fmt="%.1f", padding=4)
    axes.set(xlabel="variance of the gradient of one episode", ylim=(3.6, -0.6))


def draw_clip(*panels):
    ratios = np.linspace(0, 2, 201)
    for axes, adv, sign, side in zip(panels, (1.0, -1.0), "><", ((1.2, 2), (0, 0.8))):
        axes.axvspan(*side, color="#eeeeee", label="gradient 0")
        axes.plot(ratios, adv * ratios, "--", color=GRAY, label="not clipped: $r A$")
        axes.plot(ratios, clipped(ratios, adv), color=ORANGE, linewidth=2.5, label="clipped objective")
        axes.set(title=f"$A {sign} 0$", xlabel=r"ratio $r = \pi(a|s) / \pi_{old}(a|s)$", xticks=[0, 0.8, 1, 1.2, 2])
        axes.legend()
    panels[0].set_ylabel("objective")


def draw_lambda(axes):
    bias, variance = bias_and_variance()
    axes.plot(LAMBDAS, bias, color=ORANGE, label="squared bias")
    axes.plot(LAMBDAS, variance, color=BLUE, label="variance")
    axes.plot(LAMBDAS, bias + variance, color="black", linewidth=2.5, label="mean squared error, their sum")
    axes.set(xlabel=r"$\lambda$", ylabel="error of the policy gradient", ylim=(0, None))
    axes.legend()


def draw_kl(*panels):
    for axes, name, color in zip(panels, ("a2c", "trpo", "ppo"), (BLUE, GREEN, ORANGE)):
        for seed in 101, 102, 103:
            kls = kl_per_update(name, 51_200, seed)
            axes.scatter(np.linspace(0, 51.2, len(kls)), kls, s=200 / len(kls) + 2, color=color, linewidths=0)
        axes.set(title=f"{name}: {len(kls)} updates", xlabel="thousand steps", yscale="log", ylim=(1e-7, 0.2))
    panels[1].axhline(0.02, color="black", linewidth=1, label="--max-kl 0.02")
    panels[1].legend(loc="lower right")
    panels[0].set_ylabel(r"KL$(\pi_{old} \parallel \pi)$ of an update, nats")


def draw_timelimit(axes):
    axes.axhline(10, color=GRAY, linestyle="--", label=r"true value $1 / (1 - \gamma)$")
    axes.plot(value_at_a_time_limit(terminal=False), color=BLUE, linewidth=2.5, label="with bootstrapping")
    axes.plot(value_at_a_time_limit(terminal=True), color=ORANGE, linewidth=2.5, label="without: a terminal state")
    axes.set(xlabel="iterations", ylabel="value of the state", ylim=(0, 11), xticks=range(0, 21, 5))
    axes.legend(loc=(0.55, 0.5))


def draw_twin(axes):
    labels, curves = ("one critic: maximum", "double Q-learning", "TD3: smaller of two"), map(target_bias, range(1, 33))
    for label, color, curve in zip(labels, (ORANGE, GRAY, BLUE), zip(*curves)):
        axes.plot(range(1, 33), curve, "o-", markersize=3, color=color, label=label)
    axes.set(xlabel="number of actions, all of value 0", ylabel="mean of the target")
    axes.legend(loc=(0.6, 0.5))


PICTURES = {"variance": 1, "clip": 2, "lambda": 1, "kl": 3, "timelimit": 1, "twin": 1}  # and their panels


def main():
    for name in sys.argv[1:] or PICTURES:
        figure, panels = plt.subplots(1, PICTURES[name], figsize=(7, 3.2), sharey=name == "kl", layout="constrained")
        globals()[f"draw_{name}"](*np.atleast_1d(panels))
        figure.canvas.draw()
        image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        image.quantize(64).save(ROOT / f"docs/ideas/{name}.png", optimize=True)  # 64 colors: a small file


if __name__ == "__main__":
    main()
