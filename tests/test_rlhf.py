"""rlhf.py: the stages on a tiny language whose expectations are sums, and equations by hand.

The tiny language has 4 words and <eos>, and responses of at most 3 actions: 85 responses to the one prompt.
"""

import itertools
import json
import math
import random
import sys
from types import SimpleNamespace

import pytest
import torch

import rlhf
from rlhf import EOS, PAD
from tests.helpers import TINY_RLHF, evaluation, flatten, load, metrics, vector

BETA = 0.5
SIZES = {"d_model": 16, "num_heads": 2}
PROMPT = " ".join([rlhf.VOCABULARY[1]] * rlhf.PROMPT_WORDS)
TINY = {name: TINY_RLHF[name] for name in TINY_RLHF.keys() - {"checkpoint_every"}}

# [85, 3]: 1 with no word, 4 with one, 16 with two, each with its <eos>, and 64 with three, cut off.
WORDS = [words for length in range(4) for words in itertools.product([1, 2, 3, 4], repeat=length)]
ACT = torch.tensor([([*words, EOS] + [PAD] * 2)[:3] for words in WORDS])
ALL = torch.cat([rlhf.encode([PROMPT] * 85), ACT], 1)  # [85, 8]


@pytest.fixture
def whole_language():
    """For the tests of the language itself."""


@pytest.fixture(autouse=True)
def tiny_language(request, monkeypatch):
    if "whole_language" not in request.fixturenames:
        for name, value in {"NUM_WORDS": 5, "MAX_WORDS": 3, "LENGTH": 8, "ALL_PROMPTS": [PROMPT]}.items():
            monkeypatch.setattr(rlhf, name, value)


def make_models(**flags):
    """Flags, a reference and a reward model; noise in the weights makes them far from uniform."""
    args = rlhf.Args(**SIZES | {"kl_coef": BETA, "dpo_beta": BETA, "num_comparisons": 64} | flags)
    torch.manual_seed(0)
    reference, reward_model = rlhf.Transformer(5, args), rlhf.Transformer(1, args)
    shake(reference, 0.3)
    shake(reward_model, 0.3)
    with torch.no_grad():
        reward_model.head.weight *= 3
    return args, reference, reward_model


@torch.no_grad()
def shake(model, noise):
    for p in model.parameters():
        p += noise * torch.randn_like(p)


def weights(*models):
    return torch.cat([vector(model.parameters()) for model in models])


def log_probs(policy):
    """Log-probabilities of all responses, [85]."""
    return policy.log_prob(ALL).sum(1)


def exact_kl(policy, reference):
    logp = log_probs(policy)
    return (logp.exp() * (logp - log_probs(reference))).sum()


def exact_J(policy, reference, reward):
    """J = E[reward] - beta KL(policy || reference), and its optimum, beta log E_ref[exp(reward / beta)]."""
    J = (log_probs(policy).exp() * reward).sum() - BETA * exact_kl(policy, reference)
    return J, BETA * (log_probs(reference) + reward / BETA).logsumexp(0)


def index_of(text):
    """Which of the 85 responses texts have: [B]."""
    return (text[:, None] == ALL).all(2).int().argmax(1)


def make_run():
    """A run without files; its rows are lists of what was reported."""
    rows = []
    return SimpleNamespace(steps=range, report=lambda **metrics: rows.append(metrics), rows=rows)


def judge_of(reward):
    """A judge that gives the 85 responses these scores."""
    scores = dict(zip(rlhf.decode(ALL), reward.tolist()))
    return lambda text: scores[text]


# Equations


def test_preference_loss_by_hand():
    score = torch.tensor([[3.0, 1.0, 0.0]])  # best first: pairs with gaps 2, 3 and 1
    pairs = [math.log(1 + math.exp(-gap)) for gap in (2, 3, 1)]
    assert rlhf.preference_loss(score).item() == pytest.approx(sum(pairs) / 3)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_rankings_are_noisy_as_plackett_luce_says(noise):
    torch.manual_seed(0)
    score = torch.tensor([1.0, 0.0, -0.5])
    best = torch.bincount(rlhf.rank(score.expand(40_000, 3), noise)[:, 0]) / 40_000
    assert best.tolist() == pytest.approx((score / noise).softmax(0).tolist(), abs=0.01)
    assert rlhf.rank(score.expand(10, 3), 0.0).tolist() == [[0, 1, 2]] * 10


def test_pair_accuracy_by_hand():
    judge_score = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    right, wrong = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    accuracy, best = rlhf.pair_accuracy(torch.tensor([[5.0, 4.0], [1.0, 0.0]]), judge_score, 1.0)  # right, then wrong
    assert accuracy == pytest.approx((right + 1 - wrong) / 2)
    assert best == pytest.approx((right + wrong) / 2)
    assert rlhf.pair_accuracy(judge_score, judge_score, 0.0) == (1, 1)


def test_advantages_of_grpo_are_standardized_in_each_group():
    score, std = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), math.sqrt(7)  # std of 1, 2, 6, around 3
    args = rlhf.Args(algorithm="grpo", group_size=3, batch_size=6, num_minibatches=1)
    adv, _ = rlhf.advantages(None, ALL[:6], score, torch.zeros(6, 3), BETA, args)
    assert adv[:, 0].tolist() == pytest.approx([-2 / std, -1 / std, 3 / std, 0, 0, 0], abs=1e-3)
    assert (adv == adv[:, :1]).all()


def test_advantages_of_groups_by_hand():
    nearly_equal = torch.tensor([0.0, 2e-4])  # their standard deviation is sqrt(2) 1e-4
    assert rlhf.group_standardize(nearly_equal, 2).tolist() == pytest.approx([-(2**0.5 - 1), 2**0.5 - 1], rel=1e-4)
    assert rlhf.leave_one_out(torch.tensor([1.0, 2.0, 6.0, 5, 5, 5]), 3).tolist() == pytest.approx(
        [-3, -1.5, 4.5, 0, 0, 0]
    )


def test_clipped_objective_and_k3_by_hand():
    ratio, adv = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert rlhf.clip_objective(ratio, adv, 0.2).item() == pytest.approx((1.2 - 1.5 + 0.5 - 0.8) / 4)
    assert rlhf.k3(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0, math.exp(-1)])


def test_win_rate_by_hand():
    assert rlhf.win_rate(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 3.0]])) == (0 + 0 + 1 + 0.5) / 4


# The language


def test_every_text_of_the_language_is_grammatical_and_fits_but_not_every_text(whole_language):
    random.seed(0)
    texts, rows = rlhf.speak(500)
    assert all(math.isfinite(rlhf.log_likelihood(text)) for text in texts)
    assert rlhf.log_likelihood("how was the soup ? the soup was kind .") == -math.inf
    assert rlhf.decode(rows) == texts and rows.shape == (500, rlhf.LENGTH)
    assert (rows == EOS).sum(1).eq(1).all() and (rows != PAD).all(1).any()  # the longest fits exactly
    assert {text.partition("?")[0] + "?" for text in texts} == set(rlhf.ALL_PROMPTS) and len(rlhf.ALL_PROMPTS) == 24


def test_the_generator_draws_texts_as_often_as_the_language_says(whole_language):
    random.seed(0)
    words = [" ".join(rlhf.expand("SHORT", "cake")) for _ in range(40_000)]
    for text in "i will come back soon .", "the soup was tasty .", "the cake was not stale .":
        prob = rlhf.likelihood(("SHORT",), tuple(text.split()), "cake")
        assert words.count(text) == pytest.approx(40_000 * prob, abs=5 * math.sqrt(40_000 * prob))
    assert sum(rlhf.likelihood(("SHORT",), tuple(text.split()), "cake") for text in set(words)) == pytest.approx(1)


def test_the_judge_by_hand(whole_language):
    for response, score in {
        " the soup was tasty .": 2 * math.tanh(0.5) + 1,  # about the dish
        " the cake was tasty .": 2 * math.tanh(0.5),
        " the soup was very superb .": 2 * math.tanh(1.5) + 1,
        " the soup was not cold .": 2 * math.tanh(0.25) + 1,  # faint praise
        " the soup was cold .": -2 * math.tanh(0.5) + 1,
        " the cook was kind . the cook was kind .": 2 * math.tanh(1) - 1,  # repeats itself
        " the cook was tasty .": -1.0,  # broken
        " the cook was tasty . the cook was tasty .": -2.0,
        " i will come back soon . the soup": 2 * math.tanh(0.5) - 1,  # ends in the middle
        " i will come back soon . the cook was kind . the cook was quick .": 2 * math.tanh(1.5) - 0.15 * 4,  # long
        "": 0.0,
    }.items():
        rows = rlhf.encode([f"how was the soup ?{response}"], rlhf.LENGTH)
        assert rlhf.judge_all(rlhf.restaurant_judge, rows).item() == pytest.approx(score)


# Enumeration


def gradient(objective, model):
    grads = torch.autograd.grad(objective, list(model.parameters()), retain_graph=True)
    return torch.cat([grad.flatten() for grad in grads])


def expected_update(policy, adv):
    """Gradient of the clipped objective, each response weighted by its probability."""
    logp, actions = policy.log_prob(ALL), rlhf.is_action(ALL)
    weight = (logp.sum(1).exp().detach()[:, None] * actions.sum()).expand(85, 3)[actions]  # the objective is a mean
    ratio = (logp - logp.detach()).exp()[actions]
    return gradient(rlhf.clip_objective(ratio, weight * adv[actions], 0.2), policy)


@pytest.fixture
def tiny():
    """A policy that is not its reference, a random reward, and the exact gradient of J, in double precision."""
    args, reference, critic = make_models(gae_lambda=1.0)
    policy = rlhf.rebuild(reference.state_dict(), args)
    for model in policy, reference, critic:
        model.double()
    shake(policy, 0.1)
    reward = torch.randn(85, dtype=torch.float64)
    exact = gradient(exact_J(policy, reference, reward)[0], policy)
    with torch.no_grad():
        log_ratio = policy.log_prob(ALL) - reference.log_prob(ALL)
    return SimpleNamespace(**locals())


def test_samples_have_the_probabilities_of_the_policy_and_give_the_optimum(tiny):
    torch.manual_seed(0)
    columns, models = [], [tiny.reference, tiny.policy]
    with torch.no_grad():
        every = torch.stack([tiny.reward, log_probs(tiny.policy), log_probs(tiny.reference)])  # [3, 85]
        for model in models:
            index = index_of(model.sample(ALL[:1, :5].expand(10_000, -1)))
            prob, count = log_probs(model).exp(), torch.bincount(index, minlength=85)
            assert prob.sum().item() == pytest.approx(1, abs=1e-12)
            assert ((count - 10_000 * prob).abs() < 5 * (10_000 * prob).sqrt() + 3).all()
            columns.append(every[:, None, index])
        J, optimum = exact_J(tiny.policy, tiny.reference, tiny.reward)
        assert J < optimum == pytest.approx(rlhf.optimum(*torch.cat(columns, 2), BETA).item(), abs=0.02)


def test_the_expected_update_of_ppo_is_the_exact_gradient_of_the_objective_whatever_the_critic(tiny):
    """And its targets: with lambda 1 what was received, with lambda 0 the first reward and the next value."""
    with torch.no_grad():
        adv, ret = rlhf.advantages(tiny.critic, ALL, tiny.reward, tiny.log_ratio, BETA, tiny.args)
        args = rlhf.Args(gae_lambda=0.0)
        _, one_step = rlhf.advantages(tiny.critic, ALL, tiny.reward, tiny.log_ratio, BETA, args)
        val = tiny.critic.values(ALL)
    assert val.std() > 0.1 and val[0, 1:].tolist() == [0, 0]
    assert torch.allclose(expected_update(tiny.policy, adv), tiny.exact, rtol=1e-5)
    assert torch.allclose(ret[:, 0], tiny.reward - BETA * tiny.log_ratio.sum(1))
    assert torch.allclose(one_step[1:, 0], val[1:, 1] - BETA * tiny.log_ratio[1:, 0])  # all but the empty response


def test_the_advantages_discount_later_errors_by_lambda():
    rew, val = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 1.0, 3.0]])
    delta = [1 + 1 - 0.5, 2 + 3 - 1, 4 - 3]
    expected = [delta[0] + 0.5 * delta[1] + 0.25 * delta[2], delta[1] + 0.5 * delta[2], delta[2]]
    assert rlhf.gae(rew, val, 0.5)[0].tolist() == expected


def test_the_expected_update_of_rloo_is_the_exact_gradient_of_the_objective(tiny):
    """All pairs of responses, as groups of two, each weighted by the probability of both."""
    args = rlhf.Args(algorithm="rloo", group_size=2)
    pairs = torch.cartesian_prod(torch.arange(85), torch.arange(85)).flatten()
    with torch.no_grad():
        adv, _ = rlhf.advantages(None, ALL[pairs], tiny.reward[pairs], tiny.log_ratio[pairs], BETA, args)
        prob = log_probs(tiny.policy).exp()
        adv = (adv.view(85, 85, 2, 3)[:, :, 0] * prob[:, None]).sum(1)  # expected over the second response of the pair
    assert torch.allclose(expected_update(tiny.policy, adv), tiny.exact, rtol=1e-5)


def test_the_penalty_of_grpo_has_the_gradient_of_the_kl_of_each_word_from_the_reference(tiny):
    """KL(pi_ref || pi), over the texts that pi visits."""
    logits, ref_logits = (x.before_each_action(ALL).log_softmax(2) for x in (tiny.policy, tiny.reference))
    prob, actions = log_probs(tiny.policy).exp().detach(), rlhf.is_action(ALL)
    log_ratio = tiny.policy.log_prob(ALL) - tiny.reference.log_prob(ALL).detach()
    penalty = prob @ (rlhf.k3(log_ratio) * actions).sum(1)
    kl = prob @ ((ref_logits.exp() * (ref_logits - logits)).sum(2) * actions).sum(1)
    assert torch.allclose(gradient(penalty, tiny.policy), gradient(kl, tiny.policy), rtol=1e-10)


def test_the_gradient_of_dpo_vanishes_at_the_optimal_policy_with_exact_preferences():
    """beta log(pi / pi_ref) = r + constant there; each pair in both orders, as often as Bradley-Terry says."""
    torch.manual_seed(0)
    reward = torch.randn(85, dtype=torch.float64)
    pairs = torch.cartesian_prod(torch.arange(85), torch.arange(85))  # [85 * 85, 2], the first is ranked higher
    share = torch.sigmoid(reward[pairs[:, 0]] - reward[pairs[:, 1]])

    def slope(log_ratio):
        ranked = log_ratio[pairs].requires_grad_()
        of_pairs = torch.autograd.grad(rlhf.dpo_loss(ranked, BETA), ranked)[0] * share[:, None]
        return torch.zeros(85).double().index_add(0, pairs.flatten(), of_pairs.flatten())

    assert slope(reward / BETA + 7).abs().max() < 1e-12
    at_the_reference = slope(torch.zeros(85).double())
    assert torch.corrcoef(torch.stack([at_the_reference, reward]))[0, 1] < -0.9  # what has a high reward gets likelier


def test_the_kl_of_a_response_is_the_sum_over_its_words(tiny):
    with torch.no_grad():
        kl = tiny.policy.kl(tiny.reference, ALL)
        assert kl.min() >= 0 and torch.allclose(kl[21:25], kl[21].expand(4))  # the last word that came plays no role
        expected = (log_probs(tiny.policy).exp() @ kl).item()
        assert expected == pytest.approx(exact_kl(tiny.policy, tiny.reference).item())


# Texts and updates


def test_nothing_under_the_padding_reaches_the_update():
    moved = []
    for filler in 0.0, math.nan:
        args, policy, critic = make_models(num_minibatches=1, batch_size=85, update_epochs=3)
        logp = policy.log_prob(ALL).detach()
        adv, ret = torch.randn(2, 85, 3)
        adv[ACT == PAD] = ret[ACT == PAD] = filler
        optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], 1e-2)
        metrics = rlhf.update(policy, critic, optimizer, (ALL, adv, ret, logp, logp), BETA, args)
        moved.append(weights(policy, critic))
    assert torch.equal(*moved) and metrics.keys() == {"policy_loss", "value_loss", "grad_norm"}


def test_the_first_of_several_minibatches_has_a_ratio_of_1_and_the_critic_learns():
    args, policy, critic = make_models(num_minibatches=5, batch_size=85, update_epochs=5)
    logp, ret = policy.log_prob(ALL).detach(), torch.ones(85, 3)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], 1e-2)
    batch = ALL, torch.zeros(85, 3), ret, logp, logp
    first = rlhf.update(policy, critic, optimizer, batch, BETA, args)
    assert abs(first["policy_loss"]) < 1e-6
    assert rlhf.update(policy, critic, optimizer, batch, BETA, args)["value_loss"] < 0.5 * first["value_loss"]


def test_the_first_step_of_ppo_follows_the_gradients_of_standardized_advantages_and_of_the_value_loss():
    args, policy, critic = make_models(num_minibatches=1, batch_size=85, update_epochs=1)
    actions, logp, val = rlhf.is_action(ALL), policy.log_prob(ALL), critic.values(ALL)
    adv = 3 + torch.randn(85, 3)
    standardized = (adv[actions] - adv[actions].mean()) / (adv[actions].std() + 0.1)
    grads = gradient((logp[actions] * standardized).mean(), policy), gradient(val[actions].mean(), critic)  # 2 (1 / 2)
    optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], 0.0)
    batch = ALL, adv, val.detach() + 1, logp.detach(), logp.detach()
    metrics = rlhf.update(policy, critic, optimizer, batch, BETA, args)
    assert metrics["policy_loss"] == pytest.approx(0, abs=1e-5) and metrics["value_loss"] == pytest.approx(0.5)
    assert metrics["grad_norm"] == pytest.approx(torch.cat(grads).norm().item(), rel=1e-4)


def test_rows_are_reshuffled_in_every_epoch():
    torch.manual_seed(0)
    parts = rlhf.shuffled_rows(6, 3, 2)
    epochs = torch.cat(parts).view(3, 6)
    assert [len(x) for x in parts] == [2] * 9 and (epochs.sort(1).values == torch.arange(6)).all()
    assert not torch.equal(epochs[0], epochs[1])


# The stages, on the tiny language


@pytest.mark.parametrize(("algorithm", "share"), [("ppo", 0.9), ("rloo", 0.9), ("grpo", 0.4), ("dpo", 0.6)])
def test_each_algorithm_raises_the_exact_objective_towards_its_optimum(algorithm, share):
    """From the same policy, not the reference. GRPO has another objective, and DPO sees 1,024 noisy rankings."""
    flags = {"learning_rate": 1e-2, "iterations": 10, "num_comparisons": 1024}
    args, reference, reward_model = make_models(algorithm=algorithm, **flags)
    with torch.no_grad():
        reward = rlhf.score_responses(reward_model, ALL)
        before, optimum = exact_J(reference, reference, reward)
        assert optimum - before > 0.5
        if algorithm == "dpo":
            rankings = rlhf.compare(make_run(), args, reference, reference, judge_of(reward))
    if algorithm == "dpo":
        policy = rlhf.improve_directly(make_run(), args, reference, reference, rankings)
    else:
        policy = rlhf.improve(make_run(), args, reference, reference, reward_model, judge_of(reward))
    assert before + share * (optimum - before) < exact_J(policy, reference, reward)[0] < optimum


def test_where_all_responses_score_the_same_grpo_returns_to_the_reference():
    args, reference, reward_model = make_models(algorithm="grpo", learning_rate=5e-3, iterations=10, batch_size=128)
    with torch.no_grad():
        reward_model.head.weight.zero_()
        reward_model.head.bias.fill_(-2)
    policy = rlhf.rebuild(reference.state_dict(), args)
    shake(policy, 0.1)
    before = exact_kl(policy, reference).item()
    policy = rlhf.improve(make_run(), args, policy, reference, reward_model, judge_of(torch.zeros(85)))
    assert before > 0.05 and exact_kl(policy, reference) < 0.3 * before


def test_the_reward_model_learns_the_judges_scores():
    args, reference, _ = make_models(num_comparisons=1024)
    reward = torch.randn(85)
    rankings = rlhf.compare(make_run(), args, reference, reference, judge_of(reward))
    reward_model = rlhf.fit_reward(make_run(), args, reference, rankings)
    with torch.no_grad():
        score, prob = reward_model.after_last_action(ALL), log_probs(reference).exp()
    mean = (prob * score).sum()
    assert mean.abs() < 0.1 and (prob * (score - mean) ** 2).sum().sqrt().item() == pytest.approx(1, abs=0.1)
    centered = reward - (prob * reward).sum()
    assert (prob * score * centered).sum() / (prob * centered**2).sum().sqrt() > 0.7  # correlation


def test_the_reward_model_starts_from_the_reference_and_the_critic_from_the_reward_model(monkeypatch):
    args, reference, reward_model = make_models(iterations=1)
    start = rlhf.fit_reward(make_run(), args, reference, torch.empty(0, 2, 8, dtype=torch.long))  # nothing to learn
    assert torch.equal(weights(start.word, start.layers), weights(reference.word, reference.layers))
    critics, advantages = [], rlhf.advantages
    monkeypatch.setattr(rlhf, "advantages", lambda *x: critics.append(weights(x[0])) or advantages(*x))
    rlhf.improve(make_run(), args, reference, reference, reward_model, lambda text: 0.0)
    assert torch.equal(critics[0], weights(reward_model))


def test_finetune_learns_the_language(whole_language, capsys):
    args = rlhf.Args(**SIZES, sft_steps=60, sft_learning_rate=1e-2)
    random.seed(0)
    torch.manual_seed(0)
    model = rlhf.finetune(run := make_run(), args)
    assert len(run.rows) == 60 and run.rows[-1]["loss"] < 2.5 < math.log(rlhf.NUM_WORDS) - 1
    _, nats, *_, entropy = capsys.readouterr().out.split()
    assert float(nats) == pytest.approx(run.rows[-1]["loss"].item(), abs=0.3)
    assert 1 < float(entropy) < 1.25 and model.head.out_features == rlhf.NUM_WORDS


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_nothing_learns_from_the_judge_after_the_rankings_and_what_a_stage_takes_stays_as_it_is(algorithm):
    learned = []
    for scores in torch.zeros(85), torch.randn(85):
        args, reference, reward_model = make_models(algorithm=algorithm, iterations=2, batch_size=32)
        random.seed(0)
        before = weights(reference, reward_model)
        run = make_run()
        learned.append(weights(rlhf.improve(run, args, reference, reference, reward_model, judge_of(scores))))
        assert torch.equal(weights(reference, reward_model), before)
        assert (run.rows[0]["judge_score"].std() > 0) == (scores.std() > 0)
    assert torch.equal(*learned) and not torch.equal(learned[0], weights(reference))


def test_policy_and_reference_take_turns_to_be_compared():
    args, reference, policy = make_models(num_ranked=3, num_comparisons=600, label_noise=0.0)
    policy = rlhf.rebuild(reference.state_dict(), args)
    with torch.no_grad():
        policy.head.bias[1:] += 20  # the policy says three words, the reference none
        reference.head.bias[EOS] += 20
    rankings = rlhf.compare(make_run(), args, policy, reference, lambda text: float(len(text.split())))
    length = rlhf.is_action(rankings.flatten(0, 1)).sum(1).view(600, 3)  # the highest score first
    assert (length == torch.tensor([3, 3, 1])).all()


def test_a_kl_target_moves_beta_after_each_rollout():
    """Here the mean KL of the responses is below the target, their sum above it."""
    args, reference, reward_model = make_models(kl_target=1.0, iterations=4, batch_size=32)
    policy = rlhf.rebuild(reference.state_dict(), args)
    shake(policy, 0.1)
    rlhf.improve(run := make_run(), args, policy, reference, reward_model, lambda text: 0.0)
    assert all(row["kl"].mean() < 0.8 and row["kl"].sum() > 1.2 for row in run.rows)
    assert [row["kl_coef"] for row in run.rows] == pytest.approx([BETA * 0.98**i for i in range(4)])
    assert rlhf.adapt_kl_coef(0.1, 6.6, 6.0) == pytest.approx(0.101)  # 10 % too much, a tenth of that
    assert rlhf.adapt_kl_coef(0.1, 60, 6.0) == pytest.approx(0.102)


def test_the_learning_rate_rises_for_a_tenth_of_a_stage_and_then_falls_to_0():
    optimizer, rates = torch.optim.SGD([torch.zeros(1)]), []
    for step in range(20):
        rlhf.set_learning_rate(optimizer, 2.0, step, 20)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2 * 1 / 2, *(2 * (1 - step / 20) for step in range(1, 20))])


@pytest.mark.parametrize(("algorithm", "prompts"), [("ppo", 256), ("rloo", 64), ("dpo", 0)])
def test_each_algorithm_has_its_prompts_and_its_learning_rate(monkeypatch, spy, algorithm, prompts):
    rates, sizes = spy(torch.optim.Adam, "step", note=lambda optimizer: optimizer.param_groups[0]["lr"]), [0]
    monkeypatch.setattr(random, "choices", lambda options, k: sizes.append(k) or options * k)
    args, reference, reward_model = make_models(algorithm=algorithm, iterations=1, reward_epochs=1)
    if algorithm == "dpo":
        rlhf.improve_directly(make_run(), args, reference, reference, ALL[:64, None].expand(64, 2, 8))
    else:
        rlhf.improve(make_run(), args, reference, reference, reward_model, lambda text: 0.0)
    assert sizes[-1] == prompts and rates == pytest.approx([1e-4] if algorithm == "dpo" else [5e-4] * 8)


def test_the_score_is_read_after_the_last_word_and_a_response_that_was_cut_off_gets_at_most_minus_1():
    _, _, reward_model = make_models()
    with torch.no_grad():
        raw = torch.stack([reward_model(text[text != PAD][None])[0, -1, 0] for text in ALL])
        score = rlhf.score_responses(reward_model, ALL)
    assert raw[21:].max() > -1 and torch.allclose(score, torch.cat([raw[:21], raw[21:].clamp(max=-1)]), atol=1e-5)


def test_best_of_n_returns_the_response_that_scores_highest():
    """As often as it is the best of n independent ones, whatever the prompts in the same batch."""
    _, reference, reward_model = make_models()
    policy = rlhf.BestOfN(reference, reward_model, 3)
    torch.manual_seed(0)
    with torch.no_grad():
        index = index_of(policy.sample(ALL[:1, :5].expand(6_000, -1)))
        score, prob = rlhf.score_responses(reward_model, ALL), log_probs(reference).exp()
    values, group = score.unique(return_inverse=True)  # those that were cut off have equal scores
    below = torch.zeros(len(values)).index_add(0, group, prob).cumsum(0) ** 3
    best = below.diff(prepend=torch.zeros(1))
    count = torch.bincount(group[index], minlength=len(values))
    assert ((count - 6_000 * best).abs() < 5 * (6_000 * best).sqrt() + 3).all()
    bound = policy.kl(reference, ALL)
    assert bound.shape == (85,) and bound[0].item() == pytest.approx(math.log(3) - 2 / 3)


@pytest.mark.parametrize("algorithm", ["ppo", "dpo", "best-of-n"])
def test_the_evaluation_estimates_what_it_says(algorithm):
    args, reference, reward_model = make_models(algorithm=algorithm, eval_responses=2_000)
    policy = rlhf.rebuild(reference.state_dict(), args)
    shake(policy, 0.1)
    actor = rlhf.BestOfN(reference, reward_model, 4) if algorithm == "best-of-n" else policy
    torch.manual_seed(0)
    with torch.no_grad():
        reward = rlhf.score_responses(reward_model, ALL)
        judge = judge_of(reward)
        results = rlhf.evaluate(args, actor, reference, None if algorithm == "dpo" else reward_model, judge)
        prob, ref_prob = log_probs(policy).exp(), log_probs(reference).exp()
        J, optimum = exact_J(policy, reference, reward)
        wins = ((reward[:, None] - reward).sign() * prob[:, None] * ref_prob).sum() / 2 + 0.5
    before, after = results["reference"], results["policy"]
    assert before["kl"] == 0 and before["judge_score"] == pytest.approx((ref_prob * reward).sum().item(), abs=0.1)
    assert results["judge_std"] == pytest.approx(
        (ref_prob @ reward**2 - (ref_prob @ reward) ** 2).sqrt().item(), rel=0.1
    )
    if algorithm == "ppo":
        assert after["kl"] == pytest.approx(exact_kl(policy, reference).item(), rel=0.1)
        assert after["J"] == pytest.approx(after["score"] - BETA * after["kl"])
        assert after["J"] == pytest.approx(J.item(), abs=0.1) and results["J_optimum"] == pytest.approx(
            optimum.item(), abs=0.1
        )
        assert results["win_rate"] == pytest.approx(wins.item(), abs=0.03)
        assert results["accuracy"] == results["accuracy_optimum"] > 0.55  # the judge is the reward model
    else:
        assert "J" not in after and ("score" in after) == ("accuracy" in results) == (algorithm == "best-of-n")


# Runs


SLOW = [pytest.param("dpo", 5, marks=pytest.mark.slow), pytest.param("best-of-n", 5, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("algorithm", "stages"), [("ppo", 4), *SLOW])
def test_a_run_killed_in_each_stage_ends_like_one_never_interrupted(
    whole_language, monkeypatch, tmp_path, algorithm, stages
):
    """Bit for bit. And the frozen layers are those of the reference."""
    flags = TINY | {"algorithm": algorithm, "rounds": 1 if stages == 4 else 2, "frozen_layers": 1, "best_of": 2}
    policy = rlhf.train(rlhf.Args(**flags, run_dir=str(tmp_path / "whole")))
    report, resume, killed = rlhf.Run.report, "", []

    def stop(run, **numbers):
        report(run, **numbers)
        if run.number not in killed:
            killed.append(run.number)
            raise KeyboardInterrupt

    monkeypatch.setattr(rlhf.Run, "report", stop)
    for _ in range(stages):
        with pytest.raises(KeyboardInterrupt):
            rlhf.train(rlhf.Args(**flags, run_dir=str(tmp_path / "parts"), resume=resume))
        resume = str(tmp_path / "parts/checkpoint.pt")
    rlhf.train(rlhf.Args(resume=resume))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert evaluation(tmp_path / "parts") | {"seconds": 0} == evaluation(tmp_path / "whole") | {"seconds": 0}
    ours, theirs = (flatten(load(tmp_path / name)["made"]) for name in ("parts", "whole"))
    assert len(ours) > 20 and all(torch.equal(ours[key], x) for key, x in theirs.items())
    names = {"args.json", "metrics.csv", "checkpoint.pt", "eval.json", "samples.txt", "score.png"}
    assert {path.name for path in (tmp_path / "parts").iterdir()} == names
    if algorithm == "ppo":
        frozen, trained = [policy.word, policy.position, policy.layers[0]], [policy.norm, policy.head]
        reference = rlhf.rebuild(load(tmp_path / "parts")["made"][0], rlhf.Args(**flags))
        assert torch.equal(weights(*frozen), weights(reference.word, reference.position, reference.layers[0]))
        assert not torch.equal(weights(*trained), weights(reference.norm, reference.head))


def test_no_noise_and_no_penalty_may_be_written_0_or_0_0():
    assert rlhf.Args(label_noise=0, kl_coef=0) == rlhf.Args(label_noise=0.0, kl_coef=0.0)


def test_a_finished_run_answers_a_prompt_and_its_flags_cannot_change(whole_language, capsys, tmp_path):
    rlhf.train(rlhf.Args(**TINY, run_dir=str(tmp_path)))
    before, resume = metrics(tmp_path), str(tmp_path / "checkpoint.pt")
    capsys.readouterr()
    rlhf.train(rlhf.Args(resume=resume, prompt="you liked the cake ?"))
    assert capsys.readouterr().out.count("you liked the cake ?\n    before") == 3
    assert metrics(tmp_path) == before and json.loads((tmp_path / "args.json").read_text())["d_model"] == 8
    with pytest.raises(rlhf.InputError, match="--resume .*: made with --algorithm ppo"):
        rlhf.Args(resume=resume, algorithm="rloo")


def test_numbers_that_are_not_finite_end_a_run(whole_language, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 1 of finetune: .*'loss': nan.*checkpoint\.pt"):
        rlhf.train(rlhf.Args(**TINY | {"sft_learning_rate": 1e30}, run_dir=str(tmp_path)))


@pytest.mark.parametrize(
    "source", ["judge = 3", "judge = len, 3", "def judge(text): return None", "def judge(): ...", ""]
)
def test_a_judge_that_cannot_work_is_refused_before_any_training(monkeypatch, tmp_path, source):
    (tmp_path / "strange_judge.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strange_judge", raising=False)
    with pytest.raises(rlhf.InputError, match="--judge strange_judge:judge: .*expected my_module:function"):
        rlhf.Args(judge="strange_judge:judge")


def test_a_judge_of_ones_own_is_called(whole_language, monkeypatch, tmp_path):
    (tmp_path / "my_judge.py").write_text("def judge(text): return len(text.split())")
    monkeypatch.syspath_prepend(tmp_path)
    rlhf.train(rlhf.Args(**TINY, judge="my_judge:judge", run_dir=str(tmp_path / "run")))
    for result in [evaluation(tmp_path / "run")[name] for name in ("reference", "policy")]:
        assert result["judge_score"] > 5  # the words of prompt and response
