"""The recipes of docs/recipes.md fit the scripts of today, train for a few thousand steps, and do what they say."""

import importlib.util
import math
import re
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ppo
from tests.environments import Probe, RewardFromBoth
from tests.helpers import ROOT, evaluation, metrics

pytestmark = pytest.mark.slow
SECTIONS = re.findall(r"^## (.*)\n([\s\S]*?)(?=^## |\Z)", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
DIFFS = {title: block for title, text in SECTIONS for block in re.findall(r"```diff\n([\s\S]*?)```", text)}
PYTHON = {title: re.findall(r"```python\n([\s\S]*?)```", text) for title, text in SECTIONS}
SMALL = {"num_envs": 4, "num_steps": 64, "total_timesteps": 2_048, "eval_episodes": 1}  # 8 rollouts


def name_of(diff):
    return re.match(r"--- (\w+)\.py\n\+\+\+ \1\.py\n@@", diff)[1]


def apply(diff, text):
    """The text after the change; each hunk must fit one place, whatever its line number says."""
    for hunk in re.split(r"^@@ .*\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in kinds) for kinds in (" -", " +"))
        assert text.count(old) == 1, f"fits {text.count(old)} places:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """recipe("A dueling head"): the changed script as a module."""

    def load(title):
        diff = DIFFS[title]
        path = tmp_path / f"{name_of(diff)}.py"
        path.write_text(apply(diff, (ROOT / path.name).read_text()))
        spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def register(monkeypatch):
    """register(environment class, ...) as New-v0."""

    def install(entry_point, **kwargs):
        monkeypatch.delitem(gym.registry, "New-v0", raising=False)
        gym.register("New-v0", entry_point, **kwargs)
        return "New-v0"

    yield install
    gym.registry.pop("New-v0", None)


@pytest.mark.parametrize("title", DIFFS)
def test_a_recipe_is_short_and_patch_applies_it_too(tmp_path, title):
    diff = DIFFS[title]
    assert len(diff.splitlines()) <= 35
    path = tmp_path / f"{name_of(diff)}.py"
    shutil.copy(ROOT / path.name, path)
    if not shutil.which("patch"):
        pytest.skip("needs the program patch")
    subprocess.run(["patch", "--quiet", path], input=diff, text=True, check=True, cwd=tmp_path)
    assert path.read_text() == apply(diff, (ROOT / path.name).read_text())


def test_every_recipe_is_tried_below():
    tried = re.findall(r'(?:recipe|script)\("(.*?)"', (ROOT / "tests/test_recipes.py").read_text())
    assert {title for title, _ in SECTIONS} == set(tried) - {"A title"}


# Training


def test_the_learning_rate_follows_a_cosine_and_only_weights_decay(tmp_path, spy, recipe):
    script = recipe("AdamW with a cosine schedule")

    def note(optimizer):
        decays = {param.ndim: group["weight_decay"] for group in optimizer.param_groups for param in group["params"]}
        return [group["lr"] for group in optimizer.param_groups], decays

    steps = spy(torch.optim.AdamW, "step", note=note)
    more = {"update_epochs": 1, "num_minibatches": 1, "learning_rate": 0.01, "env_id": "Pendulum-v1"}
    script.train(script.Args(run_dir=str(tmp_path / "run"), **SMALL | more))
    cosine = [0.01 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert [rates for rates, _ in steps] == [pytest.approx([rate, rate]) for rate in cosine]
    assert all(decays == {2: 0.01, 1: 0.0} for _, decays in steps)  # matrices; biases and log_std


def test_the_bonus_falls_and_is_larger_for_what_was_never_seen(tmp_path, spy, recipe):
    script = recipe("Random network distillation")
    saved = spy(script.Run, "save", note=lambda run: run.parts["rnd"])
    rollouts = spy(script, "collect", results=True)
    flags = {"env_id": "MountainCar-v0", "total_timesteps": 20_480, "eval_episodes": 0}
    agent = script.train(script.Args(run_dir=str(tmp_path / "run"), **flags))
    bonus = [float(row["bonus"]) for row in metrics(tmp_path / "run")]
    assert min(bonus) > 0 and bonus[-1] < max(bonus) / 5
    seen, never = rollouts[-1][0].obs.flatten(0, 1), torch.tensor([[-1.2, 0.07]])  # at the left wall, at full speed
    with torch.no_grad():
        pairs = [(saved[-1]["predictor"](x), saved[-1]["target"](x)) for x in map(agent.obs_norm, (seen, never))]
    usual, new = ((ours - theirs).square().mean().item() for ours, theirs in pairs)
    assert new > 5 * usual
    assert usual < pairs[0][1].square().mean().item() / 5  # better than to predict 0


class Graded(RewardFromBoth):
    """Notes the difficulty of each episode."""

    difficulty, seen = 1.0, []
    exec(PYTHON["A curriculum"][0])  # set_difficulty

    def reset(self, seed=None, options=None):
        self.seen.append(self.difficulty)
        return super().reset(seed, options)


def test_the_difficulty_rises_and_a_resumed_run_goes_on_where_it_was(tmp_path, monkeypatch, recipe, register):
    """8 rollouts; the first run is interrupted after the second of them."""
    script = recipe("A curriculum")
    flags = SMALL | {"env_id": register(Graded), "run_dir": str(tmp_path / "run")}
    report, seen = script.Run.report, []

    def interrupted(run, *args):
        report(run, *args)
        if run.step == 512:
            raise KeyboardInterrupt

    monkeypatch.setattr(Graded, "seen", seen)
    monkeypatch.setattr(script.Run, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.train(script.Args(**flags))
    assert sorted(set(seen)) == [0, 0.25]
    seen.clear()
    script.train(script.Args(resume=str(tmp_path / "run/checkpoint.pt"), **flags))
    *training, evaluated = seen
    assert sorted(set(training)) == [0.5, 0.75, 1] and training == sorted(training)
    assert evaluated == 1


class Three(RewardFromBoth):
    action_space = spaces.Discrete(3)


def test_another_environment_starts_with_the_layers_that_fit(tmp_path, spy, capsys, recipe, register):
    first = ppo.train(ppo.Args(env_id="ProbeRewardFromBoth-v0", run_dir=str(tmp_path / "first"), **SMALL))
    script = recipe("Continue on another environment")
    starts = spy(script, "collect", note=lambda agent, *_: {k: x.clone() for k, x in agent.state_dict().items()})
    flags = SMALL | {"env_id": register(Three), "start_from": str(tmp_path / "first/checkpoint.pt")}
    script.train(script.Args(run_dir=str(tmp_path / "run"), **flags))
    own, start = first.state_dict(), starts[0]
    same = {name for name in own if own[name].shape == start[name].shape and torch.equal(own[name], start[name])}
    assert own.keys() - same == {"actor.4.weight", "actor.4.bias", *(x for x in own if x.startswith("reward_norm"))}
    assert "actor.4.weight" in capsys.readouterr().out.split("new:")[1]
    assert start["reward_norm.count"] == 0


# Networks and actions


def test_policy_and_value_share_a_trunk_that_both_losses_train(tmp_path, recipe):
    script = recipe("Your own network with a shared trunk")
    flags = {"env_id": "ProbeRewardFromBoth-v0", "total_timesteps": 20_480, "run_dir": str(tmp_path / "run")}
    agent = script.train(script.Args(**flags))
    assert evaluation(tmp_path / "run")["mean"] == 1
    obs = torch.randn(8, 2)
    for loss in agent.value(obs).sum(), agent.policy(obs).log_prob(torch.zeros(8, 1, dtype=torch.long)).sum():
        (grad,) = torch.autograd.grad(loss, agent.trunk[0].weight)
        assert grad.abs().max() > 0


def test_a_dueling_network_learns_and_its_advantages_have_mean_0(tmp_path, recipe):
    script = recipe("A dueling head")
    flags = {"env_id": "ProbeRewardFromBoth-v0", "total_timesteps": 4_096, "run_dir": str(tmp_path / "run")}
    agent = script.train(script.Args(**flags))
    assert evaluation(tmp_path / "run")["mean"] == 1
    *layers, head = agent.network
    features = torch.nn.Sequential(*layers)(torch.randn(5, 2))
    torch.testing.assert_close(head(features).mean(-1), head.val(features)[:, 0])
    assert not torch.equal(agent.target[-1].val.weight, head.val.weight)


def test_the_samples_of_a_beta_policy_are_within_the_bounds_and_its_density_integrates_to_1(tmp_path, spy, recipe):
    script = recipe("A Beta policy")
    rollouts = spy(script, "collect", results=True)
    agent = script.train(script.Args(env_id="Pendulum-v1", run_dir=str(tmp_path / "run"), **SMALL))
    act = torch.cat([rollout.act.flatten() for rollout, _ in rollouts])
    assert 0.8 < act.abs().max() <= 1
    assert act[:256].std().item() == pytest.approx(0.48, abs=0.05)
    grid = torch.linspace(-1, 1, 2_001)[:, None]
    with torch.no_grad():
        pi = agent.policy(torch.randn(1, 3).expand(2_001, 3))
    density = pi.log_prob(grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-3)
    entropy = -torch.trapezoid(density * density.log(), grid[:, 0]).item()
    assert entropy == pytest.approx(pi.entropy()[0].item(), abs=0.01)
    assert grid[density.argmax()].item() == pytest.approx(pi.mode[0].item(), abs=2e-3)
    assert -1 < agent.act(np.zeros((1, 3)), greedy=True).item() < 1


class Masked(Probe):
    """Half of four moves are legal, others end in an error; the legal move with the larger number pays 1."""

    length, action_space = 5, spaces.Discrete(4)
    observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(4), "state": spaces.Box(-1, 1, (1,))})

    def observe(self):
        self.legal = self.np_random.permutation([0, 0, 1, 1]).astype(np.int8)
        return {"action_mask": self.legal, "state": np.zeros(1, np.float32)}

    def reward(self, act):
        assert self.legal[act], "an illegal move"
        return float(act == np.flatnonzero(self.legal).max())


def test_illegal_actions_are_never_chosen_and_legal_ones_are_learned(tmp_path, recipe, register):
    script, env_id = recipe("Action masks"), register(Masked)
    flags = {"total_timesteps": 8_192, "num_steps": 64, "run_dir": str(tmp_path / "run")}
    agent = script.train(script.Args(env_id=env_id, **flags))
    assert float(metrics(tmp_path / "run")[0]["entropy"]) == pytest.approx(math.log(2), abs=0.05)  # of two legal moves
    assert evaluation(tmp_path / "run")["mean"] >= 4
    pi = agent.policy(torch.tensor([[0.0, 1, 0, 0, 0]]))
    assert pi.log_prob(torch.tensor([[1]])).item() == 0


class Memory(RewardFromBoth):
    """The sign is visible only in the first of two steps; the action of the second is rewarded."""

    length = 2

    def observe(self):
        return np.array([self.sign if self.t == 0 else 0, self.t], np.float32)

    def reward(self, act):
        return super().reward(act) if self.t == 1 else 0.0


def test_with_stacked_observations_the_agent_remembers(tmp_path, recipe, register):
    script, env_id = recipe("Frame stacking"), register(Memory)
    assert script.make_env(env_id).observation_space.shape == (8,)
    script.train(script.Args(env_id=env_id, total_timesteps=20_480, run_dir=str(tmp_path / "run")))
    assert evaluation(tmp_path / "run")["mean"] == 1


# Around the run


def test_tensorboard_gets_the_rows_of_metrics_csv(tmp_path, recipe):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    script = recipe("TensorBoard beside Weights & Biases")
    script.train(script.Args(run_dir=str(tmp_path / "run"), **SMALL))
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    for name in "value_loss", "entropy":
        rows = [(int(row["global_step"]), float(row[name])) for row in metrics(tmp_path / "run")]
        assert [(x.step, x.value) for x in board.Scalars(name)] == [(step, pytest.approx(x)) for step, x in rows]


def test_a_run_without_progress_ends_early_and_its_best_agent_is_kept(tmp_path, spy, recipe):
    script = recipe("Keep the best agent and stop early")
    returns, flags = spy(script, "evaluate", results=True), {"env_id": "ProbeMultiDiscrete-v0", "patience": 3}
    saved = spy(script.Run, "save", note=lambda run: run.agent.actor[0].weight.detach().clone())  # before each of them
    script.train(script.Args(total_timesteps=81_920, checkpoint_every=128, run_dir=str(tmp_path / "run"), **flags))
    *scores, _ = map(np.mean, returns)  # at each rollout of 2,048 steps; the last is the final evaluation
    best = int(np.argmax(scores))
    assert scores[0] < scores[best] and best == len(scores) - 1 - 3
    assert int(metrics(tmp_path / "run")[-1]["global_step"]) == 2_048 * (len(scores) - 1)
    env = script.make_env("ProbeMultiDiscrete-v0")
    kept = script.ActorCritic(env.observation_space, env.action_space, script.Args())
    kept.load_state_dict(script.load(tmp_path / "run/best.pt")["agent"])
    assert np.mean(script.evaluate(kept, env, 20, 2)) == scores[best]
    assert [torch.equal(kept.actor[0].weight, weight) for weight in saved].index(True) == best


@pytest.fixture
def script(tmp_path, monkeypatch):
    """script("A title", old=new): run the section's Python in an empty folder, with some of its text replaced."""
    monkeypatch.chdir(tmp_path)

    def run(title, **changes):
        text, names = PYTHON[title][-1], {}
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        exec(text, names)
        return names

    return run


def test_a_sweep_finds_flags(script):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = script("A sweep with Optuna", **{"n_trials=30": "n_trials=2", "30_000": "4_096", "in 1, 2, 3": "in 1, 2"})
    study = names["study"]
    assert len(study.trials) == 2
    assert set(study.best_params) == {"learning_rate", "1 - gae_lambda", "num_steps"}
    assert study.best_value == max(trial.value for trial in study.trials)


def test_the_exported_agent_acts_as_the_agent(tmp_path, script):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    agent = ppo.train(ppo.Args(run_dir="runs/NAME", **SMALL))
    script("Export to ONNX")
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    (act,) = reference.ReferenceEvaluator("agent.onnx").run(None, {"obs": obs})
    assert act[:, 0].tolist() == agent.act(obs, greedy=True).tolist()
    assert 0 < act.mean() < 1
