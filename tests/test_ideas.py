"""The pictures of docs/ideas.md show what they say: the facts behind each, from the functions that draw them."""

import importlib
import math
import sys

import numpy as np
import pytest
import torch

from tests.helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # after the scripts: both folders have a rlhf.py
ideas = importlib.import_module("ideas")


def test_each_form_of_the_policy_gradient_has_less_variance_than_the_one_before():
    variances = list(ideas.gradient_variance().values())
    assert variances == sorted(variances, reverse=True)
    assert variances == pytest.approx([175.3, 91.1, 4.6, 2.0], abs=0.1)


@pytest.mark.parametrize(("adv", "flat"), [(1.0, [1.2, 1.5, 2.0]), (-1.0, [0.0, 0.5, 0.8])])
def test_the_clipped_objective_is_flat_on_one_side_only(adv, flat):
    ratios = [0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0]
    found = dict(zip(ratios, ideas.clipped(ratios, adv)))
    assert [found[ratio] for ratio in flat] == pytest.approx([1.2 if adv > 0 else -0.8] * 3)
    rest = [ratio for ratio in ratios if ratio not in flat]
    assert [found[ratio] for ratio in rest] == pytest.approx([adv * ratio for ratio in rest])


def test_as_lambda_grows_bias_falls_to_0_and_variance_grows_so_the_best_is_in_between():
    bias, variance = ideas.bias_and_variance()
    assert (np.diff(bias) < 0).all() and (np.diff(variance) > 0).all()
    assert bias[-1] == pytest.approx(0, abs=1e-20)
    best = ideas.LAMBDAS[(bias + variance).argmin()]
    assert best == pytest.approx(0.6)


@pytest.mark.slow
def test_trpo_stays_within_its_limit_and_takes_larger_steps_than_a2c():
    kls = {name: ideas.kl_per_update(name, 8_192, seed=1) for name in ("a2c", "trpo", "ppo")}
    assert {name: len(found) for name, found in kls.items()} == {"a2c": 32, "trpo": 4, "ppo": 4}
    assert 0.005 < min(kls["trpo"]) < max(kls["trpo"]) <= 0.02
    assert 0 < np.median(kls["a2c"]) < min(kls["ppo"]) / 5
    assert max(kls["ppo"]) < 0.1


def test_the_divergence_of_an_update_is_that_of_the_policies_before_and_after_it(monkeypatch):
    """Here an update adds log 3 to the logit of one of two actions, which were equally probable."""

    def update(agent, *_):
        with torch.no_grad():
            agent.actor[-1].bias += torch.tensor([math.log(3), 0.0])
        return {}

    monkeypatch.setattr(ideas.ppo, "update", update)
    monkeypatch.setattr(ideas.ppo, "network", zero_head(ideas.ppo.network))
    (kl,) = ideas.kl_per_update("ppo", 2_048, seed=1)
    assert kl == pytest.approx(math.log(0.5 / 0.75) / 2 + math.log(0.5 / 0.25) / 2)


def zero_head(network):
    def changed(*arguments):
        layers = network(*arguments)
        torch.nn.init.zeros_(layers[-1].weight)
        return layers

    return changed


def test_without_bootstrapping_the_value_is_that_of_a_few_steps():
    curves = [ideas.value_at_a_time_limit(terminal, lam=1.0) for terminal in (False, True)]
    cut = np.mean([(1 - 0.9**steps) / (1 - 0.9) for steps in range(1, 11)])  # steps left: 1 to 10
    assert [curve[-1] for curve in curves] == pytest.approx([10, cut], rel=1e-3)
    assert ideas.value_at_a_time_limit(terminal=True)[-1] == pytest.approx(cut, rel=0.02)  # lambda = 0.98


@pytest.mark.parametrize("actions", [1, 2, 8])
def test_the_maximum_is_too_high_the_smaller_of_two_critics_is_not(actions):
    largest, other, smaller = ideas.target_bias(actions)
    q = torch.randn(2, 200_000, actions, generator=torch.Generator().manual_seed(0))
    best = q[0].argmax(-1, keepdim=True)
    chosen = q.gather(-1, best.expand(2, -1, 1))[..., 0]
    sampled = [chosen[0].mean().item(), chosen[1].mean().item(), chosen.amin(0).mean().item()]
    assert [largest, other, smaller] == pytest.approx(sampled, abs=0.01)
    assert smaller <= 0 <= largest + 1e-9
    if actions == 2:
        assert (largest, smaller) == pytest.approx((1 / math.sqrt(math.pi), -1 / math.sqrt(4 * math.pi)))


@pytest.mark.parametrize("name", ideas.PICTURES)
def test_a_picture_is_a_small_file_that_the_page_shows(name):
    path = ROOT / f"docs/ideas/{name}.png"
    assert f"(ideas/{name}.png)" in (ROOT / "docs/ideas.md").read_text()
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 40_000


@pytest.mark.slow
def test_every_picture_can_be_drawn(tmp_path, monkeypatch):
    (tmp_path / "docs/ideas").mkdir(parents=True)
    monkeypatch.setattr(ideas, "ROOT", tmp_path)
    monkeypatch.setattr(ideas, "kl_per_update", lambda name, steps, seed: [0.01, 0.02])
    monkeypatch.setattr(sys, "argv", ["ideas.py"])
    ideas.main()
    assert {path.stem for path in tmp_path.glob("docs/ideas/*.png")} == ideas.PICTURES.keys()
