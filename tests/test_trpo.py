"""The mathematics of trpo.py, against explicit matrices, closed forms and numbers that can be checked by hand."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trpo
from tests.helpers import ENVIRONMENTS, make_agent, make_batch, plain, policy_params, vector, watch_steps


def make(env_id="CartPole-v1", **flags):
    """Agent, optimizer, batch and flags, away from the nearly uniform policy of the beginning."""
    agent, args = make_agent(trpo, env_id, hidden_sizes=(4,), **flags)
    with torch.no_grad():
        agent.actor[-1].weight.mul_(50)
    return agent, trpo.Adam(agent.critic.parameters(), args), make_batch(trpo, agent), args


def gradient_of_kl(agent, pi, params):
    """Gradient of KL(old || new) where both are pi, as a vector that can be differentiated again."""
    kl = agent.distribution(pi.params.detach()).kl(pi).mean()
    return torch.cat([x.flatten() for x in torch.autograd.grad(kl, params, create_graph=True)])


# Surrogate and its two approximations


def test_surrogate_by_hand():
    old_pi = trpo.Categorical(torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]]).log())
    pi = trpo.Categorical(torch.tensor([[[0.6, 0.4]], [[0.5, 0.5]]]).log())
    act, adv = torch.tensor([[0], [0]]), torch.tensor([10.0, -3.0])
    # ratios 0.6 / 0.5 and 0.5 / 0.25
    assert trpo.surrogate(pi, old_pi, act, adv).item() == pytest.approx((1.2 * 10 - 2 * 3) / 2)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_the_gradient_of_the_surrogate_is_the_policy_gradient(env_id):
    agent, _, (obs, act, adv, *_), _ = make(env_id)
    params, pi = policy_params(agent), agent.policy(obs)
    g = trpo.policy_gradient(trpo.surrogate(pi, agent.distribution(pi.params.detach()), act, adv), params)
    plain = torch.autograd.grad((agent.policy(obs).log_prob(act) * adv).mean(), params)
    torch.testing.assert_close(g, torch.cat([x.flatten() for x in plain]), atol=1e-6, rtol=1e-4)


def explicit_hessian(agent, obs):
    """Second derivatives of the mean KL(old || new) in all parameters of the policy, as a matrix."""
    agent = deepcopy(agent)
    agent.actor = plain(agent.actor)  # functional_call cannot exchange the parameters that an MLP has at hand
    names = [name for name, _ in agent.named_parameters() if not name.startswith("critic")]
    params, old_pi = policy_params(agent), agent.distribution(agent.policy(obs).params.detach())

    class Policy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.agent = agent

        def forward(self):
            return old_pi.kl(self.agent.policy(obs)).mean()

    def kl(flat):
        parts = flat.split([p.numel() for p in params])
        return torch.func.functional_call(
            Policy(), {f"agent.{name}": x.view_as(p) for name, p, x in zip(names, params, parts)}, ()
        )

    return torch.autograd.functional.hessian(kl, vector(params))


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_fisher_vector_product_is_a_product_with_the_hessian_of_the_kl(env_id):
    agent, _, (obs, *_), _ = make(env_id)
    params = policy_params(agent)
    kl_grad = gradient_of_kl(agent, agent.policy(obs), params)
    H = explicit_hessian(agent, obs)
    for _ in range(3):
        x = torch.randn(len(H))
        product = trpo.fisher_vector_product(kl_grad, params, x, damping=0.3)
        torch.testing.assert_close(product, H @ x + 0.3 * x, atol=1e-4, rtol=1e-3)
    assert torch.linalg.eigvalsh(H).min() > -1e-4


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_near_the_old_policy_the_kl_is_quadratic(env_id):
    agent, _, (obs, *_), _ = make(env_id)
    params, pi = policy_params(agent), agent.policy(obs)
    old_pi = agent.distribution(pi.params.detach())
    x = torch.randn(len(vector(params)))
    x *= 0.03 / x.norm()
    Hx = trpo.fisher_vector_product(gradient_of_kl(agent, pi, params), params, x, damping=0.0)
    torch.nn.utils.vector_to_parameters(vector(params) + x, params)
    assert old_pi.kl(agent.policy(obs)).mean().item() == pytest.approx((x @ Hx / 2).item(), rel=0.1)


# Natural gradient


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_conjugate_gradient_solves_n_equations_in_n_iterations(seed, n):
    rng = np.random.default_rng(seed)
    root, b = rng.normal(size=(n, n)), torch.as_tensor(rng.normal(size=n))
    A = torch.as_tensor(root @ root.T + np.eye(n))
    torch.testing.assert_close(trpo.conjugate_gradient(A.mv, b, n), torch.linalg.solve(A, b), atol=1e-4, rtol=1e-4)


def test_conjugate_gradient_by_hand():
    # The first iteration goes along b, as far as is best: b b'b / b'Ab = (1, 1) * 2 / 4.
    A, b = torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([1.0, 1.0])
    assert trpo.conjugate_gradient(A.mv, b, 1).tolist() == [0.5, 0.5]
    assert trpo.conjugate_gradient(A.mv, b, 2).tolist() == pytest.approx([1, 1 / 3])


def test_the_step_ends_on_the_boundary_and_no_other_gains_more():
    torch.manual_seed(0)
    root, g = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    H = root @ root.T + torch.eye(6)
    step = trpo.natural_gradient_step(H.mv, g, 0.01, 6)
    assert (step @ H @ step / 2).item() == pytest.approx(0.01)
    others = torch.randn(1000, 6, dtype=torch.float64)
    others *= (0.02 / torch.einsum("ni,ij,nj->n", others, H, others)).sqrt()[:, None]
    assert g @ step > (others @ g).max()


@pytest.mark.parametrize(
    ("H", "g"),
    [
        (torch.eye(2), torch.zeros(2)),
        (-torch.eye(2), torch.ones(2)),
        (torch.zeros(2, 2), torch.ones(2)),
        (torch.eye(2) * float("nan"), torch.ones(2)),
    ],
    ids=["zero gradient", "negative curvature", "no curvature", "nan"],
)
def test_without_a_natural_gradient_there_is_no_step(H, g):
    assert trpo.natural_gradient_step(H.mv, g, 0.01, 10).tolist() == [0, 0]


# Line search: one parameter x, from 0, with a step of 1 that is halved


@pytest.mark.parametrize(
    ("gain", "kl", "fraction"),
    [
        (lambda x: x, lambda x: 0, 1.0),
        (lambda x: x, lambda x: x**2, 0.5),  # 1 > 0.3, 0.25 < 0.3
        (lambda x: x * (0.4 - x), lambda x: 0, 0.25),  # no gain at 1 and 0.5
        (lambda x: x if x < 1 else float("nan"), lambda x: 0, 0.5),
        (lambda x: x, lambda x: 0 if x < 1 else float("nan"), 0.5),
        (lambda x: -x, lambda x: 0, 0.0),
        (lambda x: 0.0, lambda x: 0, 0.0),  # equal is no gain
        (lambda x: x, lambda x: 1, 0.0),
        (lambda x: float("nan") if x else 0.0, lambda x: 0, 0.0),
    ],
    ids="full kl gain nan_gain nan_kl worse equal far all_nan".split(),
)
def test_line_search_takes_the_longest_step_that_gains_within_the_region_or_none(gain, kl, fraction):
    param = torch.nn.Parameter(torch.tensor([0.0]))
    found = trpo.line_search(lambda: (gain(param.item()), kl(param.item())), [param], torch.ones(1), 0.3, 0.5, 4)
    assert found == fraction
    assert param.item() == fraction


# The update


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("max_kl", [0.001, 0.01, 0.1])
def test_an_accepted_step_improves_the_surrogate_and_stays_in_the_trust_region(env_id, max_kl):
    agent, optimizer, batch, args = make(env_id, max_kl=max_kl)
    obs, act, adv, *_ = batch
    old_pi = agent.distribution(agent.policy(obs).params.detach())
    metrics = trpo.update(agent, optimizer, batch, 1e-3, args.max_kl, args)
    assert 0 < metrics["step_fraction"] <= 1
    kl = old_pi.kl(agent.policy(obs)).mean().item()
    assert max_kl / 10 < kl <= max_kl
    assert metrics["kl"] == pytest.approx(kl)
    standard = (adv - adv.mean()) / adv.std()
    assert trpo.surrogate(agent.policy(obs), old_pi, act, standard) > 0


def test_when_no_step_is_accepted_the_policy_stays_to_the_bit_and_the_values_are_still_fitted():
    agent, optimizer, batch, args = make("Pendulum-v1", max_kl=100, line_search_steps=1)  # far too long a step
    policy, values = vector(policy_params(agent)), vector(agent.critic.parameters())
    metrics = trpo.update(agent, optimizer, batch, 1e-3, args.max_kl, args)
    assert metrics["step_fraction"] == 0
    assert torch.equal(vector(policy_params(agent)), policy)
    assert not torch.equal(vector(agent.critic.parameters()), values)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_equal_or_undefined_advantages_leave_the_policy_alone(value):
    agent, optimizer, batch, args = make()
    batch = batch._replace(adv=torch.full((64,), value))
    policy = vector(policy_params(agent))
    assert trpo.update(agent, optimizer, batch, 1e-3, args.max_kl, args)["step_fraction"] == 0
    assert torch.equal(vector(policy_params(agent)), policy)


def test_the_optimizer_fits_the_values_alone(tmp_path, spy, monkeypatch):
    agent, optimizer, batch, args = make(value_epochs=50)
    before = ((agent.value(batch.obs) - batch.ret) ** 2).mean()
    trpo.update(agent, optimizer, batch, 1e-3, args.max_kl, args)
    assert ((agent.value(batch.obs) - batch.ret) ** 2).mean() < before

    sizes = spy(trpo.Adam, "step", note=lambda optimizer, loss, lr: len(optimizer.vector))
    moved = watch_steps(trpo, spy, monkeypatch)
    flags = {"num_envs": 4, "num_steps": 16, "total_timesteps": 128, "eval_episodes": 1}
    agent = trpo.train(trpo.Args(env_id="Pendulum-v1", value_epochs=3, run_dir=str(tmp_path), **flags))
    assert set(sizes) == {len(vector(agent.critic.parameters()))}
    assert moved == [[False, True]] * 3 * 2  # [policy, critic], in two rollouts


@pytest.mark.parametrize(("anneal_kl", "radii"), [(True, [0.02, 0.015, 0.01, 0.005]), (False, [0.02] * 4)])
def test_the_trust_region_shrinks_to_nothing_over_the_run(tmp_path, spy, anneal_kl, radii):
    """Over 4 rollouts of 64 steps."""
    seen = spy(trpo, "update", note=lambda agent, optimizer, batch, lr, max_kl, args: max_kl)
    flags = {"num_envs": 4, "num_steps": 16, "total_timesteps": 256, "eval_episodes": 1}
    trpo.train(trpo.Args(max_kl=0.02, anneal_kl=anneal_kl, run_dir=str(tmp_path), **flags))
    assert seen == pytest.approx(radii)
