"""rlhf.py: the stages on a tiny language whose expectations are sums, and equations by hand.

The tiny language has 4 words and <eos>, and responses of at most 3 actions: 85 responses to the one prompt.
"""

import itertools
import math
import random
from types import SimpleNamespace

import pytest
import torch

import rlhf
from rlhf import EOS, PAD
from tests.helpers import vector

BETA = 0.5
SIZES = {"d_model": 16, "num_heads": 2}
PROMPT = " ".join([rlhf.VOCABULARY[1]] * rlhf.PROMPT_WORDS)

# [85, 3]: 1 with no word, 4 with one, 16 with two, each with its <eos>, and 64 with three, cut off.
ALL = [words for length in range(4) for words in itertools.product([1, 2, 3, 4], repeat=length)]
ACT = torch.tensor([([*words, EOS] + [PAD] * 2)[:3] for words in ALL])
OBS = rlhf.encode([PROMPT] * 85)


def make_agent(**flags):
    """An agent whose policy is its reference; noise in the weights makes it far from uniform."""
    args = rlhf.Args(**SIZES | {"kl_coef": BETA, "num_comparisons": 64} | flags)
    torch.manual_seed(0)
    agent = rlhf.Agent(args, num_words=5, max_words=3)
    shake(agent, 0.3)
    agent.reference.load_state_dict(agent.actor.state_dict())
    return agent, args


@torch.no_grad()
def shake(model, noise):
    for p in model.parameters():
        p += noise * torch.randn_like(p)


def weights(*models):
    return torch.cat([vector(model.parameters()) for model in models])


def log_probs(actor):
    """Log-probabilities of all responses, [85]."""
    return actor.policy(OBS, ACT).log_prob(ACT).sum(1)


def exact_kl(agent):
    logp, ref_logp = log_probs(agent.actor), log_probs(agent.reference)
    return (logp.exp() * (logp - ref_logp)).sum()


def exact_J(agent, reward):
    """J = E[reward] - beta KL(policy || reference), and its optimum, beta log E_ref[exp(reward / beta)]."""
    J = (log_probs(agent.actor).exp() * reward).sum() - BETA * exact_kl(agent)
    return J, BETA * (log_probs(agent.reference) + reward / BETA).logsumexp(0)


# The stages, on the tiny language


@pytest.fixture
def run_stages(monkeypatch, tmp_path):
    """run_stages(agent, args, stage, ...) runs the stages as train does."""
    monkeypatch.setattr(rlhf, "ALL_PROMPTS", [PROMPT])
    monkeypatch.setattr(rlhf, "MAX_WORDS", 3)
    folders = itertools.count()

    def run_stages(agent, args, *stages):
        args.run_dir = str(tmp_path / str(next(folders)))
        run = rlhf.Run(args, agent)
        for stage in run.stages(stages):
            stage(agent, run, args)

    return run_stages


def random_judge(agent, seed=1):
    """Give the agent a judge with random scores of the 85 responses, at most -1 without <eos>; returns them."""
    reward = torch.randn(85, generator=torch.Generator().manual_seed(seed))
    cut_off = (ACT != EOS).all(1)
    reward[cut_off] = (reward[cut_off] - 2).clamp(max=-1)
    score = dict(zip(rlhf.decode(ACT), reward.tolist()))
    agent.judge = lambda text: score[text.removeprefix(f"{PROMPT} ")]
    return reward


@pytest.mark.parametrize(("algorithm", "share"), [("ppo", 0.9), ("rloo", 0.9), ("grpo", 0.4), ("dpo", 0.5)])
def test_each_algorithm_raises_the_exact_objective_towards_its_optimum(run_stages, algorithm, share):
    """All from the same state. GRPO has another objective, and DPO sees no more than 1,024 noisy pairs."""
    flags = {"reward": "judge", "learning_rate": 1e-2, "iterations": 10, "num_comparisons": 1024}
    agent, args = make_agent(algorithm=algorithm, **flags)
    reward = random_judge(agent)
    before, optimum = exact_J(agent, reward)
    assert optimum - before > 1
    run_stages(agent, args, *([rlhf.compare, rlhf.improve_directly] if algorithm == "dpo" else [rlhf.improve]))
    assert before + share * (optimum - before) < exact_J(agent, reward)[0] < optimum


def test_where_all_responses_score_the_same_grpo_returns_to_the_reference(run_stages):
    agent, args = make_agent(algorithm="grpo", reward="judge", learning_rate=5e-3, iterations=10, batch_size=128)
    agent.judge = lambda text: -1.0
    shake(agent.actor, 0.1)
    before = exact_kl(agent).item()
    run_stages(agent, args, rlhf.improve)
    assert before > 0.05 and exact_kl(agent) < 0.3 * before


def test_the_reward_model_learns_the_judges_scores_and_the_critic_starts_from_it(run_stages):
    agent, args = make_agent(num_comparisons=1024)
    reward = random_judge(agent)
    run_stages(agent, args, rlhf.compare, rlhf.fit_reward)
    with torch.no_grad():
        score = agent.reward_model.after_last_action(OBS, ACT)
        prob = log_probs(agent.reference).exp()
    assert torch.equal(weights(agent.critic), weights(agent.reward_model))
    mean = (prob * score).sum()
    assert mean.abs() < 0.1 and (prob * (score - mean) ** 2).sum().sqrt().item() == pytest.approx(1, abs=0.1)
    centered = reward - (prob * reward).sum()
    assert (prob * score * centered).sum() / (prob * centered**2).sum().sqrt() > 0.7  # correlation


def test_finetune_learns_the_language_without_the_judge_and_all_models_start_from_its_weights(tmp_path, capsys):
    args = rlhf.Args(**SIZES, sft_steps=60, sft_learning_rate=1e-2, run_dir=str(tmp_path))
    torch.manual_seed(0)
    agent = rlhf.Agent(args)
    agent.judge, run = None, rlhf.Run(args, agent)
    for stage in run.stages([rlhf.finetune]):
        stage(agent, run, args)
    nats_per_word = float(capsys.readouterr().out.split()[1])
    assert nats_per_word < 2.5 < math.log(rlhf.NUM_WORDS)
    assert torch.equal(weights(agent.reference), weights(agent.actor))
    for model in agent.critic, agent.reward_model:
        assert torch.equal(weights(model.word, model.blocks), weights(agent.actor.word, agent.actor.blocks))


@pytest.mark.parametrize("algorithm", ["ppo", "dpo"])
def test_after_the_rankings_nothing_learns_from_the_judge(run_stages, algorithm):
    learned = []
    for other_judge in False, True:
        agent, args = make_agent(algorithm=algorithm, iterations=2, batch_size=32, reward_epochs=1)
        random_judge(agent)
        run_stages(agent, args, rlhf.compare)
        frozen = weights(agent.reference, agent.reward_model)
        if other_judge:
            random_judge(agent, seed=2)
        run_stages(agent, args, rlhf.improve_directly if algorithm == "dpo" else rlhf.improve)
        assert torch.equal(weights(agent.reference, agent.reward_model), frozen)
        learned.append(weights(agent.actor))
    assert torch.equal(*learned) and not torch.equal(learned[0], weights(agent.reference))


def test_from_the_second_round_on_every_other_response_is_the_policys(run_stages):
    agent, args = make_agent(rounds=2, label_noise=0.0)
    agent.judge = lambda text: float(len(text.split()))
    with torch.no_grad():
        agent.actor.head.bias[1:] += 20  # the policy says three words, the reference may end earlier
        agent.reference.head.bias[EOS] += 20
    run_stages(agent, args, rlhf.compare, rlhf.compare)
    length = (agent.rankings != PAD).sum(2)  # [128, 2], the highest score first
    assert (length[:64] == 1).all() and (length[64:] == torch.tensor([3, 1])).all()


def test_a_kl_target_moves_beta_after_each_rollout(run_stages):
    agent, args = make_agent(kl_target=50.0, iterations=4, batch_size=32)
    random_judge(agent)
    run_stages(agent, args, rlhf.improve)
    assert agent.kl_coef.item() == pytest.approx(BETA * (1 - 0.2 * 32 / rlhf.KL_HORIZON) ** 4)
    assert rlhf.adapt_kl_coef(0.1, 6.6, 6.0, 256) == pytest.approx(0.101)  # 10 % too much, in a tenth of the horizon


def test_the_learning_rate_rises_for_a_tenth_of_a_stage_and_then_falls_to_0(tmp_path):
    agent, args = make_agent(run_dir=str(tmp_path))
    optimizer, run = rlhf.adam(2.0, [agent.critic]), rlhf.Run(args, agent)
    run.name = "improve"
    rates = [optimizer.param_groups[0]["lr"] for _ in run.steps(20, optimizer)]
    assert rates == pytest.approx([2 * 1 / 2, *(2 * (1 - step / 20) for step in range(1, 20))])


def test_the_score_is_read_after_the_last_word_and_a_response_that_was_cut_off_gets_at_most_minus_1():
    agent, _ = make_agent()
    texts = [torch.cat([obs, act[act != PAD]])[None] for obs, act in zip(OBS, ACT)]
    raw = torch.stack([agent.reward_model(text)[0, -1, 0] for text in texts])
    score = torch.cat([raw[:21], raw[21:].clamp(max=-1)])
    assert raw[21:].max() > -1 and torch.allclose(agent.score(OBS, ACT), score, atol=1e-5)


# Enumeration


def gradient(objective, agent):
    grads = torch.autograd.grad(objective, list(agent.actor.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def expected_update(agent, adv):
    """Gradient of the clipped objective, each response weighted by its probability."""
    logp = agent.actor.policy(OBS, ACT).log_prob(ACT)
    is_action = ACT != PAD
    weight = (logp.sum(1).exp().detach()[:, None] * is_action.sum()).expand(85, 3)[is_action]  # the objective is a mean
    ratio = (logp - logp.detach()).exp()[is_action]
    return gradient(rlhf.clip_objective(ratio, weight * adv[is_action], 0.2), agent)


@pytest.fixture(scope="module")
def tiny():
    """An agent whose policy is not its reference, a random reward, and the exact gradient of J, in double precision."""
    agent, args = make_agent(gae_lambda=1.0)
    agent.double()
    shake(agent.actor, 0.1)
    reward = torch.randn(85, dtype=torch.float64)
    exact = gradient(exact_J(agent, reward)[0], agent)
    with torch.no_grad():
        ref_logp = agent.reference.policy(OBS, ACT).log_prob(ACT)
        log_ratio = agent.actor.policy(OBS, ACT).log_prob(ACT) - ref_logp
    return SimpleNamespace(agent=agent, args=args, reward=reward, exact=exact, ref_logp=ref_logp, log_ratio=log_ratio)


def test_samples_have_the_probabilities_of_the_policy_and_give_the_optimum(tiny):
    torch.manual_seed(0)
    columns, models = [], [tiny.agent.reference, tiny.agent.actor]
    with torch.no_grad():
        every = torch.stack([tiny.reward, log_probs(tiny.agent.actor), log_probs(tiny.agent.reference)])  # [3, 85]
        for model in models:
            index = (rlhf.sample(model, OBS[:1].expand(10_000, -1), 3)[:, None] == ACT).all(2).int().argmax(1)
            prob, count = log_probs(model).exp(), torch.bincount(index, minlength=85)
            assert prob.sum().item() == pytest.approx(1, abs=1e-12)
            assert ((count - 10_000 * prob).abs() < 5 * (10_000 * prob).sqrt() + 3).all()
            columns.append(every[:, None, index])
        J, optimum = exact_J(tiny.agent, tiny.reward)
        assert J < optimum == pytest.approx(rlhf.optimum(*torch.cat(columns, 2), BETA).item(), abs=0.02)


def test_the_expected_update_of_ppo_is_the_exact_gradient_of_the_objective_whatever_the_critic(tiny):
    """And its targets: with lambda 1 what was received, with lambda 0 the first reward and the next value."""
    with torch.no_grad():
        adv, ret = rlhf.advantages(tiny.agent, OBS, ACT, tiny.reward, tiny.log_ratio, tiny.args)
        _, one_step = rlhf.advantages(tiny.agent, OBS, ACT, tiny.reward, tiny.log_ratio, rlhf.Args(gae_lambda=0.0))
        val = tiny.agent.value(OBS, ACT)
    assert val.std() > 0.1
    assert torch.allclose(expected_update(tiny.agent, adv), tiny.exact, rtol=1e-5)
    assert torch.allclose(ret[:, 0], tiny.reward - BETA * tiny.log_ratio.sum(1))
    assert torch.allclose(one_step[1:, 0], val[1:, 1] - BETA * tiny.log_ratio[1:, 0])  # all but the empty response


def test_the_expected_update_of_rloo_is_the_exact_gradient_of_the_objective(tiny):
    """All pairs of responses, as groups of two, each weighted by the probability of both."""
    args = rlhf.Args(algorithm="rloo", group_size=2)
    pairs = torch.cartesian_prod(torch.arange(85), torch.arange(85)).flatten()
    with torch.no_grad():
        score, log_ratio = tiny.reward[pairs], tiny.log_ratio[pairs]
        adv, _ = rlhf.advantages(tiny.agent, OBS[pairs], ACT[pairs], score, log_ratio, args)
        prob = log_probs(tiny.agent.actor).exp()
        adv = (adv.view(85, 85, 2, 3)[:, :, 0] * prob[:, None]).sum(1)  # expected over the second response of the pair
    assert torch.allclose(expected_update(tiny.agent, adv), tiny.exact, rtol=1e-5)


def test_the_penalty_of_grpo_has_the_gradient_of_the_kl_of_each_word_from_the_reference(tiny):
    """KL(pi_ref || pi), over the texts that pi visits."""
    logp, prob = tiny.agent.actor.policy(OBS, ACT), log_probs(tiny.agent.actor).exp().detach()
    is_action = ACT != PAD
    penalty = prob @ (rlhf.k3(logp.log_prob(ACT) - tiny.ref_logp) * is_action).sum(1)
    kl = prob @ (tiny.agent.reference.policy(OBS, ACT).kl(logp) * is_action).sum(1)
    assert torch.allclose(gradient(penalty, tiny.agent), gradient(kl, tiny.agent), rtol=1e-10)


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
        tiny.agent.judge = lambda text: 0.0
        _, _, metrics = rlhf.assess(tiny.agent, tiny.agent.actor, OBS, ACT)
        prob = log_probs(tiny.agent.actor).exp()
        assert (prob @ metrics["kl"]).item() == pytest.approx(exact_kl(tiny.agent).item())


# Text and updates


def make_batch(agent, filler=0.0):
    """All responses with random advantages and targets, and the filler under the padding."""
    logp = agent.actor.policy(OBS, ACT).log_prob(ACT).detach()
    torch.manual_seed(0)
    adv, ret = torch.randn(2, 85, 3)
    adv[ACT == PAD] = ret[ACT == PAD] = filler
    return rlhf.Batch(OBS, ACT, adv, ret, logp, logp)


def test_nothing_under_the_padding_reaches_the_update():
    moved = []
    for filler in 0.0, math.nan:
        agent, args = make_agent(num_minibatches=1)
        rlhf.update(agent, rlhf.adam(1e-2, [agent.actor, agent.critic]), make_batch(agent, filler), args)
        moved.append(weights(agent))
    assert torch.equal(*moved)


def test_vf_coef_weighs_the_value_loss():
    for vf_coef in 0.0, 0.5:
        agent, args = make_agent(vf_coef=vf_coef)
        optimizer, before = rlhf.adam(1e-2, [agent.actor, agent.critic]), weights(agent.critic)
        losses = [rlhf.update(agent, optimizer, make_batch(agent), args)["value_loss"] for _ in range(3)]
        assert torch.equal(weights(agent.critic), before) == (vf_coef == 0)
    assert losses[-1] < 0.9 * losses[0]


# Equations


def test_preference_loss_by_hand():
    score = torch.tensor([[3.0, 1.0, 0.0]])  # best first: pairs with gaps 2, 3 and 1
    pairs = [math.log(1 + math.exp(-gap)) for gap in (2, 3, 1)]
    assert rlhf.preference_loss(score).item() == pytest.approx(sum(pairs) / 3)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_rankings_are_noisy_as_plackett_luce_says(noise):
    torch.manual_seed(0)
    gold = torch.tensor([1.0, 0.0, -0.5])
    best = torch.bincount(rlhf.rank(gold.expand(40_000, 3), noise)[:, 0]) / 40_000
    assert best.tolist() == pytest.approx((gold / noise).softmax(0).tolist(), abs=0.01)
    assert rlhf.rank(gold.expand(10, 3), 0.0).tolist() == [[0, 1, 2]] * 10


def test_pair_accuracy_by_hand():
    gold = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    right, wrong = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    accuracy, best = rlhf.pair_accuracy(torch.tensor([[5.0, 4.0], [1.0, 0.0]]), gold, 1.0)  # right, then wrong
    assert accuracy.item() == pytest.approx((right + 1 - wrong) / 2)
    assert best.item() == pytest.approx((right + wrong) / 2)


def test_advantages_of_grpo_are_standardized_in_each_group():
    score, std = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), math.sqrt(7)  # std of 1, 2, 6, around 3
    assert rlhf.group_standardize(score, 3).tolist() == pytest.approx([-2 / std, -1 / std, 3 / std, 0, 0, 0], abs=1e-3)


def test_win_rate_by_hand():
    assert rlhf.win_rate(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 3.0]])).item() == (0 + 0 + 1 + 0.5) / 4


# The language


def test_every_text_of_the_language_is_grammatical_and_fits_but_not_every_text():
    random.seed(0)
    prompts, responses, obs, act = rlhf.speak(500)
    assert all(math.isfinite(rlhf.log_likelihood(*pair)) for pair in zip(prompts, responses))
    assert rlhf.log_likelihood("how was the soup ?", "the soup was kind .") == -math.inf
    assert rlhf.decode(act) == responses and rlhf.decode(obs) == prompts
    assert (act == EOS).sum(1).eq(1).all() and (act != PAD).all(1).any()  # the longest fits exactly


def test_the_generator_draws_texts_as_often_as_the_language_says():
    random.seed(0)
    words = [" ".join(rlhf.expand("SHORT", "cake")) for _ in range(40_000)]
    for text in "i will come back soon .", "the soup was tasty .", "the cake was not stale .":
        prob = rlhf.likelihood(("SHORT",), tuple(text.split()), "cake")
        assert words.count(text) == pytest.approx(40_000 * prob, abs=5 * math.sqrt(40_000 * prob))
    assert sum(rlhf.likelihood(("SHORT",), tuple(text.split()), "cake") for text in set(words)) == pytest.approx(1)


def test_the_judge_by_hand():
    for response, gold in {
        "the soup was tasty .": 2 * math.tanh(0.5) + 1,  # about the dish
        "the cake was tasty .": 2 * math.tanh(0.5),
        "the soup was very superb .": 2 * math.tanh(1.5) + 1,
        "the soup was not cold .": 2 * math.tanh(0.25) + 1,  # faint praise
        "the soup was cold .": -2 * math.tanh(0.5) + 1,
        "the cook was kind . the cook was kind .": 2 * math.tanh(1) - 1,  # repeats itself
        "the cook was tasty .": -1.0,  # broken
        "i will come back soon . the soup": 2 * math.tanh(0.5) - 1,  # ends in the middle
        "i will come back soon . the cook was kind . the cook was quick .": 2 * math.tanh(1.5) - 0.15 * 4,  # long
        "": 0.0,
    }.items():
        assert rlhf.judge(f"how was the soup ? {response}") == pytest.approx(gold)
