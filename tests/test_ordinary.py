"""What is ordinary in PyTorch works in a copied script: each test changes an agent or a run as a reader would."""

import importlib
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Beta, Independent, Normal
from torch.nn.utils import parametrizations, prune

from tests.helpers import CONTINUOUS, FAMILY, SCRIPTS, SHORT, VARIANTS, make_agent, make_batch, make_penalty, vector

every_script = pytest.mark.parametrize("name", SCRIPTS)


def output(agent, obs):
    """The action values or, as one number a row, policy and value."""
    if hasattr(agent, "critics"):
        return agent.q(obs, torch.zeros(len(obs), 1)).detach()
    if hasattr(agent, "q"):
        return agent.q(obs).detach()
    with torch.no_grad():
        return agent.policy(obs).log_prob(torch.zeros(len(obs), 1, dtype=torch.long)) + 10 * agent.value(obs)


def body(agent):
    """A network that every step trains."""
    if hasattr(agent, "critics"):
        return agent.critics[0].layers
    return agent.network if hasattr(agent, "network") else agent.critic


def observations(agent):
    return torch.randn(5, *agent.obs_norm.mean.shape)


class Replay(list):
    """What an update samples the same batches from again and again."""

    def sample(self, args, agent):
        return self


class Trainee:
    """An agent, and a function that does one update of it on a fixed batch."""

    def __init__(self, name):
        module = importlib.import_module(name)
        self.agent, args = make_agent(module, **{"update_epochs": 1, "num_minibatches": 1} if name == "ppo" else {})
        agent, adam = self.agent, partial(torch.optim.Adam, lr=0.01, eps=1e-5, fused=True)
        if name == "dqn":
            obs, act, ret = torch.randn(64, 4), torch.randint(2, (64,)), torch.randn(64)
            batch = module.Batch(obs, act, ret, obs, torch.ones(64, dtype=torch.bool), torch.ones(64))
            args.learning_starts = 1
            arguments = adam(agent.network.parameters()), Replay([batch])
            self.loss = lambda: (agent.q(obs).gather(-1, act[:, None])[:, 0] - ret).square().mean().item()
        elif name in CONTINUOUS:
            obs, act, ret = torch.randn(64, 3), torch.rand(64, 1), torch.randn(64)
            batch = module.Batch(obs, act, ret, obs, torch.ones(64, dtype=torch.bool), torch.ones(64))
            args.learning_starts = 1
            actor = agent.policy_parameters() if name == "sac" else agent.actor.parameters()
            arguments = adam(actor), adam(agent.critics.parameters()), Replay([batch])
            self.loss = lambda: (agent.q(obs, act) - ret).square().mean().item()
        else:
            batch = make_batch(module, agent)
            optimizers = adam(agent.policy_parameters()), adam(agent.critic.parameters())
            arguments = {"ppo": (adam(agent.parameters()), make_penalty(), batch), "trpo": (optimizers[1], batch, 0.01)}
            arguments = arguments.get(name, (*optimizers, batch))
            self.loss = lambda: (agent.value(batch.obs) - batch.ret).square().mean().item()
        self.update = lambda: module.update(agent, *arguments, args)

    def learns(self, updates=20):
        before = self.loss()
        for _ in range(updates):
            self.update()
        return self.loss() < 0.9 * before


BETWEEN = {
    "gradients set to None": lambda agent: agent.zero_grad(),
    "another precision and back": lambda agent: agent.double().float(),
    "a copy": deepcopy,
    "a second optimizer of one layer": lambda agent: torch.optim.Adam(body(agent)[0].parameters()),
}


@every_script
@pytest.mark.parametrize("between", BETWEEN)
def test_the_loss_falls_whatever_is_done_to_the_agent_in_between(name, between):
    trainee = Trainee(name)
    BETWEEN[between](trainee.agent)
    assert trainee.learns()


@every_script
def test_a_layer_that_is_frozen_later_stays_as_it_is(name):
    trainee = Trainee(name)
    trainee.update()  # Adam has momentum now
    layer = body(trainee.agent)[0].requires_grad_(False)
    before = vector(layer.parameters())
    assert trainee.learns()
    assert torch.equal(vector(layer.parameters()), before)


def test_a_layer_of_trpos_policy_may_be_frozen():
    trainee = Trainee("trpo")
    trainee.agent.actor[0].requires_grad_(False)
    frozen, trained = (vector(trainee.agent.actor[i].parameters()) for i in (0, -1))
    trainee.update()
    assert torch.equal(vector(trainee.agent.actor[0].parameters()), frozen)
    assert not torch.equal(vector(trainee.agent.actor[-1].parameters()), trained)


@pytest.mark.parametrize("name", ["a2c", "ppo"])
def test_a_critic_that_is_frozen_later_stays_as_it_is(name):
    trainee = Trainee(name)
    trainee.update()
    critic, actor = (vector(part.parameters()) for part in (trainee.agent.critic, trainee.agent.actor))
    trainee.agent.critic.requires_grad_(False)
    trainee.update()
    assert torch.equal(vector(trainee.agent.critic.parameters()), critic)
    assert not torch.equal(vector(trainee.agent.actor.parameters()), actor)


def replace(network):
    network[-1] = nn.utils.skip_init(nn.Linear, network[-1].in_features, network[-1].out_features)
    nn.init.ones_(network[-1].weight)
    nn.init.ones_(network[-1].bias)


def load_assigned(network):
    saved = {name: torch.full_like(x, 0.5) for name, x in network.state_dict().items()}
    network.load_state_dict(saved, assign=True)


CHANGES = {
    "a layer is replaced": replace,
    "a hook doubles a layer": lambda network: network[0].register_forward_hook(lambda layer, x, y: 2 * y),
    "spectral norm": lambda network: parametrizations.spectral_norm(network[0]),
    "pruning": lambda network: prune.l1_unstructured(network[0], "weight", 0.5),
    "weights are loaded with assign=True": load_assigned,
}


@every_script
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_gives_other_outputs(name, change):
    agent, _ = make_agent(importlib.import_module(name))
    obs = observations(agent)
    before = output(agent, obs)
    CHANGES[change](body(agent))
    assert (output(agent, obs) - before).abs().max() > 1e-3


@every_script
def test_quantized_layers_are_used(name):
    agent, _ = make_agent(importlib.import_module(name))
    quantized = torch.ao.quantization.quantize_dynamic(deepcopy(agent), {nn.Linear}, torch.qint8)
    obs = observations(agent)
    difference = (output(quantized, obs) - output(agent, obs)).abs().max()
    assert 0 < difference < 1


@every_script
def test_functional_call_uses_the_parameters_it_is_given(name):
    agent, _ = make_agent(importlib.import_module(name))
    network = body(agent)
    x = torch.randn(5, network[0].in_features)
    zeros = {key: torch.zeros_like(param) for key, param in network.named_parameters()}
    assert torch.func.functional_call(network, zeros, x).abs().max() == 0


@pytest.mark.slow
@every_script
@pytest.mark.parametrize("learning_rate", [None, 3e-4])
def test_the_learning_rate_that_is_given_is_the_step_taken_for_images_too(tmp_path, monkeypatch, name, learning_rate):
    """Without one, a quarter of that for vectors; dqn.py an eighth."""
    module, rates = importlib.import_module(name), set()
    step = torch.optim.Adam.step

    def watched(optimizer):
        rates.add(optimizer.param_groups[0]["lr"])
        return step(optimizer)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    defaults = {"vpg": [2.5e-4], "a2c": [2.5e-4, 7.5e-4], "trpo": [7.5e-4], "ppo": [2.5e-4], "dqn": [2.5e-4]}
    defaults = (defaults | {"ddpg": [2.5e-4], "sac": [2.5e-4]})[name]
    expected = defaults if learning_rate is None else [learning_rate, *defaults[1:]]
    small = {"num_envs": 2, "num_steps": 4, "total_timesteps": 8, "anneal_lr": False, "eval_episodes": 0}
    replay = {"learning_starts": 8, "batch_size": 4}
    small |= {"ppo": {"num_minibatches": 1}, "dqn": replay, "ddpg": replay, "sac": replay}.get(name, {})
    env_id = "ProbeContinuousImage-v0" if name in CONTINUOUS else "ProbeImage-v0"
    flags = {"env_id": env_id, "learning_rate": learning_rate, "run_dir": str(tmp_path)}
    module.train(module.Args(**small | flags))
    assert sorted(rates) == pytest.approx(sorted(expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2c", "ppo"])
def test_actor_and_critic_can_share_a_trunk(tmp_path, monkeypatch, name):
    """Reward 1 for the right action, -1 for the wrong one, in episodes of one step."""
    module = importlib.import_module(name)

    class Shared(module.ActorCritic):
        def __init__(self, obs_space, act_space, args):
            super().__init__(obs_space, act_space, args)
            self.critic = nn.Sequential(*self.actor[:-1], self.critic[-1])

    monkeypatch.setattr(module, "ActorCritic", Shared)
    flags = {"env_id": "ProbeRewardFromBoth-v0", "total_timesteps": 20_480, "run_dir": str(tmp_path)}
    agent = module.train(module.Args(**flags))
    assert agent.act([[1.0, 0.0], [-1.0, 0.0]], greedy=True).tolist() == [1, 0]


def beta(pi):
    """From 0 to 1, with the mean of a Gaussian as its only parameter."""
    return Independent(Beta(1 + pi.mean.exp(), 1 + (-pi.mean).exp()), 1)


@pytest.mark.parametrize("variant", [x for x in VARIANTS if x.split()[0] in FAMILY and "async" not in x])
@pytest.mark.parametrize("kind", ["normal", pytest.param("beta", marks=pytest.mark.slow)])
def test_the_policy_may_return_a_distribution_of_torch(tmp_path, monkeypatch, variant, kind):
    """Normal distributions give the same log-probabilities as the script's own; Beta distributions train as well."""
    name, flags = VARIANTS[variant]
    module = importlib.import_module(name)
    own = module.ActorCritic.policy

    def policy(agent, obs):
        pi = own(agent, obs)
        return Independent(Normal(pi.mean, pi.std), 1) if kind == "normal" else beta(pi)

    agent, _ = make_agent(module, "Pendulum-v1")
    obs, act = torch.randn(7, 3), torch.rand(7, 1)
    expected = agent.policy(obs)
    monkeypatch.setattr(module.ActorCritic, "policy", policy)
    if kind == "normal":
        torch.testing.assert_close(agent.policy(obs).log_prob(act), expected.log_prob(act))
        torch.testing.assert_close(agent.policy(obs).entropy(), expected.entropy())
    start = vector(agent.actor.parameters())
    trained = module.train(module.Args(env_id="Pendulum-v1", run_dir=str(tmp_path), **SHORT | flags))
    assert not torch.equal(vector(trained.actor.parameters()), start)


def test_trpo_knows_the_divergence_of_torchs_distributions():
    import trpo

    a, b = torch.randn(2, 7, 3)
    log_std = torch.randn(3)
    ours = trpo.kl_divergence(trpo.Gaussian(a, log_std), trpo.Gaussian(b, log_std + 1))
    theirs = Independent(Normal(a, log_std.exp()), 1), Independent(Normal(b, (log_std + 1).exp()), 1)
    torch.testing.assert_close(trpo.kl_divergence(*theirs), ours)
