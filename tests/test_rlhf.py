"""The mathematics of rlhf.py, proven by enumeration, and the pipeline, run as a user runs it."""

import math
from types import SimpleNamespace

import pytest
import torch

import rlhf
from rlhf import EOS, PAD

# A language of 4 words and <eos>, responses of at most 3 words: 85 responses, which can be enumerated.

SIZES = {"d_model": 16, "num_layers": 2, "num_heads": 2}
BETA = 0.5


def tiny_args(**flags):
    return rlhf.Args(**SIZES, kl_coef=BETA, **flags)


def all_responses():
    """[85, 4]: 1 + 4 + 16 + 64 responses, each with its <eos>, padded. Longer ones end without."""
    responses = [[]]
    for words in responses:
        if len(words) < 3:
            responses += [[*words, word] for word in range(1, 5)]
    return torch.tensor([words + [EOS] * (len(words) < 3) + [PAD] * (2 - len(words)) for words in responses])


ACT = all_responses()
OBS = torch.full((85, 1), 1)  # every prompt is word 1


def tiny_agent(seed=0, scale=1.0, **flags):
    """Policy and critic with random weights, large enough for distributions far from uniform."""
    torch.manual_seed(seed)
    agent = rlhf.Agent(tiny_args(**flags), num_words=5, prompt_words=1, max_words=3).double()
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(scale * 0.3 * torch.randn_like(p))
    return agent


def response_logp(actor):
    return rlhf.next_words(actor, OBS, ACT).log_prob(ACT).sum(-1)


def rewards():
    torch.manual_seed(7)
    return torch.randn(85, dtype=torch.float64)


def test_probabilities_of_all_responses_sum_to_1():
    assert ACT.shape == (85, 3)
    assert response_logp(tiny_agent().actor).exp().sum().item() == pytest.approx(1, abs=1e-12)


def gradient(objective, params):
    grads = torch.autograd.grad(objective, params, allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


def relative_error(x, exact):
    return ((x - exact).norm() / exact.norm()).item()


def exact_gradient(agent, reference, reward):
    """Of E[r] - beta KL(pi || ref), by autograd over all responses."""
    logp = response_logp(agent.actor)
    objective = (logp.exp() * (reward - BETA * (logp - response_logp(reference.actor).detach()))).sum()
    return gradient(objective, list(agent.actor.parameters()))


def expected_update(agent, adv, extra_loss=None):
    """Expected gradient that update follows at ratio 1: each response counts by its probability."""
    is_word = ACT != PAD
    logp = rlhf.next_words(agent.actor, OBS, ACT).log_prob(ACT)
    prob = logp.sum(-1, keepdim=True).exp().detach()
    ratio = (logp - logp.detach()).exp()
    weight = (prob * is_word.sum()).expand_as(ACT)[is_word]  # the objective is a mean over all words
    objective = rlhf.clip_objective(ratio[is_word], weight * adv[is_word], 0.2)
    if extra_loss is not None:
        objective = objective - (weight * extra_loss(logp)[is_word]).mean()
    return gradient(objective, list(agent.actor.parameters()))


@pytest.fixture(scope="module")
def tiny():
    agent, reference = tiny_agent(1), tiny_agent(0)
    with torch.no_grad():
        logp, ref_logp = (rlhf.next_words(x.actor, OBS, ACT).log_prob(ACT) for x in (agent, reference))
    reward = rewards()
    return SimpleNamespace(
        agent=agent, reference=reference, reward=reward, logp=logp, ref_logp=ref_logp, log_ratio=logp - ref_logp,
        exact=exact_gradient(agent, reference, reward),
    )


def test_expected_ppo_update_is_the_exact_gradient_of_the_objective_with_any_critic(tiny):
    args = tiny_args(gae_lambda=1.0)
    with torch.no_grad():
        adv, _ = rlhf.advantages(tiny.agent, OBS, ACT, tiny.reward, tiny.log_ratio, args)
    assert relative_error(expected_update(tiny.agent, adv), tiny.exact) < 1e-5


def test_expected_rloo_update(tiny):
    R = tiny.reward - BETA * tiny.log_ratio.sum(-1)
    adv = R[:, None].expand_as(ACT)
    assert relative_error(expected_update(tiny.agent, adv), tiny.exact) < 1e-5


def test_k3_in_the_reward_and_loss_do_not(tiny):
    args = tiny_args(gae_lambda=1.0)
    # k3 in the reward
    rew = tiny.reward - BETA * rlhf.k3(tiny.log_ratio).sum(-1)
    print('k3 in reward', relative_error(expected_update(tiny.agent, rew[:, None].expand_as(ACT)), tiny.exact))
    plain = tiny.reward[:, None].expand_as(ACT)
    loss = lambda logp: BETA * rlhf.k3(logp - tiny.ref_logp)
    print('k3 in loss', relative_error(expected_update(tiny.agent, plain, loss), tiny.exact))
    def kl_loss(logp):
        pi, ref = tiny.agent.policy(OBS, ACT), rlhf.next_words(tiny.reference.actor, OBS, ACT)
        return BETA * pi.kl(ref)
    print('kl per token in loss', relative_error(expected_update(tiny.agent, plain, kl_loss), tiny.exact))
    pi_kl = (tiny.logp.sum(-1).exp() * tiny.log_ratio.sum(-1)).sum()
    print('KL', pi_kl)
