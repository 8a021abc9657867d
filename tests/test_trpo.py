"""The equations of trpo.py, against explicit matrices, closed forms and numbers that can be checked by hand."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD

import trpo
from tests.helpers import ENVIRONMENTS, make_agent, make_batch, vector


def make(env_id="CartPole-v1", **flags):
    """Agent, optimizer, batch and flags, away from the nearly uniform policy of the beginning."""
    agent, args = make_agent(trpo, env_id, hidden_sizes=(4,), **{"max_grad_norm": float("inf")} | flags)
    agent.actor[-1].weight.data.mul_(50)
    return agent, SGD(agent.critic.parameters(), lr=0.1), make_batch(trpo, agent), args


@torch.no_grad()
def constant(agent, obs):
    """The agent's policy at present, which stays when its parameters move."""
    return deepcopy(agent).policy(obs)


# Surrogate and constraint, and an approximation of each


def test_surrogate_by_hand():
    pi = trpo.Categorical(torch.tensor([[[0.6, 0.4]], [[0.5, 0.5]]]).log())
    logp_old, act, adv = torch.tensor([0.5, 0.25]).log(), torch.tensor([[0], [0]]), torch.tensor([10.0, -3.0])
    # ratios 0.6 / 0.5 and 0.5 / 0.25
    assert trpo.surrogate(pi, logp_old, act, adv).item() == pytest.approx((1.2 * 10 - 2 * 3) / 2)


def test_kl_by_hand():
    """For each row, the expectation of log old(a) / new(a) under the old policy, summed over components."""
    old = trpo.Categorical(torch.tensor([[[1 / 2, 1 / 2], [1 / 4, 3 / 4]]] * 2).log())
    new = trpo.Categorical(torch.tensor([[[1 / 4, 3 / 4], [1 / 2, 1 / 2]], [[1 / 2, 1 / 2], [1 / 4, 3 / 4]]]).log())
    expected = [(math.log(2) + math.log(2 / 3)) / 2 + (math.log(1 / 2) + 3 * math.log(3 / 2)) / 4, 0]
    assert trpo.kl_divergence(old, new).tolist() == pytest.approx(expected)

    # log(new std / old std) + (old variance + squared distance of the means) / (2 new variance) - 1/2
    old = trpo.Gaussian(torch.tensor([[0.0, 5.0], [0.0, 8.0]]), torch.tensor([1.0, 2.0]).log())
    new = trpo.Gaussian(torch.tensor([[3.0, 5.0], [0.0, 5.0]]), torch.tensor([2.0, 2.0]).log())
    expected = [math.log(2) + (1 + 9) / 8 - 1 / 2, math.log(2) + 1 / 8 - 1 / 2 + 9 / 8]
    assert trpo.kl_divergence(old, new).tolist() == pytest.approx(expected)


def explicit_hessian(agent, obs):
    """Second derivatives of the mean KL(old || new) in all parameters of the policy, as a matrix."""
    pi_old, params = constant(agent, obs), agent.policy_parameters()
    names = {param: name for name, param in agent.named_parameters()}
    agent.forward = lambda: trpo.kl_divergence(pi_old, agent.policy(obs)).mean()

    def kl(x):
        parts = x.split([param.numel() for param in params])
        values = {names[param]: part.view_as(param) for param, part in zip(params, parts)}
        return torch.func.functional_call(agent, values, ())

    return torch.autograd.functional.hessian(kl, vector(params))


def test_a_parameter_that_the_policy_does_not_use_has_gradient_0():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    assert trpo.flat_gradient((used**2).sum(), [used, unused]).tolist() == [2, 2, 0]


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_fisher_vector_product_is_a_product_with_the_hessian_of_the_kl(env_id):
    agent, _, (obs, *_), _ = make(env_id)
    params = agent.policy_parameters()
    kl = trpo.kl_divergence(constant(agent, obs), agent.policy(obs)).mean()
    kl_grad = trpo.flat_gradient(kl, params, create_graph=True)
    H = explicit_hessian(agent, obs)
    x = torch.randn(len(H))
    product = trpo.fisher_vector_product(kl_grad, params, x, 0.3)
    torch.testing.assert_close(product, H @ x + 0.3 * x, atol=1e-4, rtol=1e-3)
    assert torch.linalg.eigvalsh(H).min() > -1e-4


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


def test_conjugate_gradient_ends_when_the_residual_is_nearly_0():
    """Below 1e-10 when squared; another iteration would divide by it."""
    for b, x in (0.9e-5, 0), (1.1e-5, 1.1e-5):
        assert trpo.conjugate_gradient(torch.eye(1).mv, torch.tensor([b]), 10).item() == pytest.approx(x)


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
    [(1.0, 0.0), (-1.0, 1.0), (0.0, 1.0), (float("nan"), 1.0)],
    ids=["zero gradient", "negative curvature", "no curvature", "nan"],
)
def test_without_a_natural_gradient_there_is_no_step(H, g):
    assert trpo.natural_gradient_step(lambda x: H * x, torch.tensor([g, g]), 0.01, 10).tolist() == [0, 0]


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
def test_the_step_is_along_the_natural_gradient_and_ends_in_the_trust_region(env_id):
    """A fraction of sqrt(2 max_kl / x'Hx) x, where H x = g; H is the explicit matrix plus the damping."""
    agent, optimizer, batch, args = make(env_id, cg_iters=100)
    obs, act, adv = batch.obs, batch.act, 3 * batch.adv / (2.7 + 0.1)
    batch, params = batch._replace(adv=5 + 3 * batch.adv), agent.policy_parameters()  # of standard deviation 2.7
    pi_old, before = constant(agent, obs), vector(params)
    g = vector(torch.autograd.grad((agent.policy(obs).log_prob(act) * adv).mean(), params))
    H = explicit_hessian(agent, obs) + 0.1 * torch.eye(len(g))
    x = torch.linalg.solve(H, g)
    x *= (2 * 0.01 / (x @ H @ x)).sqrt()
    metrics = trpo.update(agent, optimizer, batch, 0.01, args)
    assert 0 < metrics["step_fraction"] <= 1
    torch.testing.assert_close(vector(params) - before, metrics["step_fraction"] * x, atol=1e-3, rtol=0.02)

    kl = trpo.kl_divergence(pi_old, agent.policy(obs)).mean().item()
    gain = trpo.surrogate(agent.policy(obs), pi_old.log_prob(act), act, adv).item()
    assert 0.001 < kl <= 0.01
    assert gain > 0
    names = "policy_loss", "entropy", "grad_norm", "kl"
    expected = -gain, pi_old.entropy().mean().item(), g.norm().item(), kl
    assert [metrics[name] for name in names] == pytest.approx(expected, rel=1e-3)


def test_when_no_step_is_accepted_the_policy_stays_to_the_bit_and_the_values_are_still_fitted():
    """By three steps of gradient descent, with gradients clipped to norm 0.7; the first is 0.77."""
    agent, optimizer, batch, args = make("Pendulum-v1", line_search_steps=1, value_epochs=3, max_grad_norm=0.7)
    policy, expected, norms = vector(agent.policy_parameters()), deepcopy(agent), []
    metrics = trpo.update(agent, optimizer, batch, 100, args)  # far too long a step
    assert metrics["step_fraction"] == 0
    assert torch.equal(vector(agent.policy_parameters()), policy)
    params = list(expected.critic.parameters())
    for _ in range(3):
        loss = ((expected.value(batch.obs) - batch.ret) ** 2).mean()
        grads = torch.autograd.grad(loss, params)
        norms.append(vector(grads).norm().item())
        for param, grad in zip(params, grads):
            param.data -= 0.1 * grad / max(norms[-1] / 0.7, 1)
    assert norms[0] > 0.7 > norms[1]
    assert metrics["value_loss"] == pytest.approx(loss.item())
    torch.testing.assert_close(vector(agent.parameters()), vector(expected.parameters()))


@pytest.mark.parametrize(("anneal_kl", "radii"), [(True, [0.02, 0.015, 0.01, 0.005]), (False, [0.02] * 4)])
def test_the_trust_region_shrinks_to_nothing_over_the_run(tmp_path, spy, anneal_kl, radii):
    """In 4 rollouts of 64 steps."""
    seen = spy(trpo, "update", note=lambda agent, optimizer, batch, max_kl, args: max_kl)
    flags = {"num_envs": 4, "num_steps": 16, "total_timesteps": 256, "eval_episodes": 1}
    trpo.train(trpo.Args(max_kl=0.02, anneal_kl=anneal_kl, run_dir=str(tmp_path), **flags))
    assert seen == pytest.approx(radii)
