"""Reinforcement learning from human feedback (RLHF): from texts and rankings to a policy.

1. finetune: a transformer learns to write restaurant reviews, from texts of an artificial language.
   It is the reference, and stays as it is.
2. compare: it writes several responses to each prompt, and a judge ranks them, with noise.
3. fit_reward: a reward model learns to give scores that predict the rankings.
4. improve: the policy, at first the reference, learns to write what scores high and is not too
   improbable under the reference. It maximizes J = E[score] - beta KL(policy || reference).
With --rounds, stages 2 to 4 follow again, with the rankings of all rounds. As in Ziegler et al.
(2019), arXiv:1909.08593, Stiennon et al. (2020), arXiv:2009.01325, and Ouyang et al. (2022),
arXiv:2203.02155. There are five ways to take the last step, of which the first trains nothing:
- best-of-n: of n responses of the reference, return the one that scores highest
- ppo: a critic predicts, before each word, the rewards to come
- rloo: other responses to the prompt are the baseline (Ahmadian et al. 2024, arXiv:2402.14740)
- grpo: scores standardized per prompt, KL in the loss (Shao et al. 2024, arXiv:2402.03300). So it
  does not maximize J, which is printed for comparison only, and its beta has another unit
- dpo: no reward model; fit the policy to the rankings (Rafailov et al. 2023, arXiv:2305.18290)

The models see only texts and rankings. But the language is a grammar and the judge a function, both
in this file, so the best possible loss, accuracy and J can be computed. They are printed beside
those that were reached.

What changed from ppo.py, which is for environments: an episode is one response to a prompt, a step
one word, undiscounted. The observation is the text so far. The score comes after the last word, and
in ppo and rloo each word costs beta log(pi / pi_ref), since the reward model is accurate only on
texts like those it was trained on. With --kl-coef 0 the policy finds texts that this model overrates:
in score.png, its score rises while the judge's falls (Gao et al. 2023, arXiv:2210.10760).

Not in the papers:
- PPO's advantages minus their mean, over their standard deviation plus 0.1, in each minibatch, so
  that noise near 0 is not blown up
- several clipped steps of RLOO on a rollout, with a ratio for each word, because sampling is slow
- GRPO's loss a mean over all words, so that a word counts the same in long and short responses
- GRPO's reference the same in all rounds, as in the other algorithms
- all pairs of a ranking in DPO, as in the loss of the reward model
- a score of at most -1, not of -1, for a response cut off, so that none gains by not stopping
Left out: the pretraining term in Eq. 2 of Ouyang et al., clipped value losses, weights shared by
policy and critic, low-rank adapters, a sampling temperature.

Shapes: B texts of L words, a prompt of P and a response of up to T; R rankings of K responses.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["matplotlib>=3.8", "torch>=2.8", "tqdm>=4.66", "tyro>=0.9.1"]
# ///

import copy
import csv
import importlib
import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import nn
from tqdm import tqdm

ADV_STD_EPS = 0.1
TEXTS = 64  # texts or rankings per gradient step in finetune, fit_reward and improve_directly
CHUNK = 500  # rankings, or responses of best-of-n, that are made at once
K_BETA = 0.1  # how fast beta adapts (Ziegler et al. 2019, section 2.2)


@dataclass
class Args:
    algorithm: Literal["best-of-n", "ppo", "rloo", "grpo", "dpo"] = "ppo"  # how to improve the policy
    judge: str = ""  # "my_module:function", from the text of prompt and response to a number
    num_comparisons: int = 8_000  # rankings per round
    num_ranked: int = 2  # K, responses in a ranking
    label_noise: float = 1.0  # scale of the noise in the rankings; 0: none
    rounds: int = 1  # rounds of compare, fit_reward and improve
    best_of: int = 16  # n of best-of-n
    kl_coef: float = 0.2  # beta, price of a nat; the reference's scores have standard deviation 1
    kl_target: float = 0.0  # if positive, adapt beta (not that of the printed J) to this KL, in nats
    dpo_beta: float = 0.25  # beta of dpo; its unit is the noise of the rankings, not the score's deviation
    group_size: int = 4  # responses to the same prompt in rloo and grpo
    frozen_layers: int = 0  # after finetune, freeze the embeddings and this many blocks; 0: nothing
    sft_steps: int = 600  # gradient steps of finetune
    sft_learning_rate: float = 3e-3  # Adam's step size in finetune, before warmup and decay
    reward_epochs: int = 4  # passes over the rankings, in fit_reward and in dpo
    reward_learning_rate: float = 3e-3  # Adam's step size in fit_reward
    iterations: int = 40  # rollouts per round
    batch_size: int = 256  # responses per rollout
    clip_coef: float = 0.2  # eps: the ratio is clipped to [1 - eps, 1 + eps]
    update_epochs: int = 2  # passes over each rollout
    num_minibatches: int = 4  # minibatches per pass, one gradient step each
    gae_lambda: float = 0.95  # lambda of GAE; smaller: less variance, more error from the critic
    max_grad_norm: float = 1.0  # clip gradients to this norm
    d_model: int = 64  # D, width of the transformers
    num_layers: int = 2  # blocks of each transformer
    num_heads: int = 4  # H, attention heads of each block

    seed: int = 1  # on one machine, the same seed and flags give the same run, bit for bit
    learning_rate: float | None = None  # Adam's step size in improve; default 5e-4, for dpo 1e-4
    device: str = "cpu"  # cpu, cuda, cuda:1
    run_dir: str = ""  # output folder; default runs/rlhf__<algorithm>__<seed>__<time>
    resume: str = ""  # checkpoint.pt to continue, with its flags; it is written after each stage
    prompt: str = ""  # with --resume of a finished run: only answer this, such as "how was the soup ?"
    eval_responses: int = 2_400  # responses of policy and reference in the final evaluation

    def __post_init__(self):
        restore_flags(self)
        check_flags(self)
        load_judge(self.judge)  # before any training


# The language: reviews of up to three sentences. The judge is the owner of the restaurant.

GRAMMAR = {  # the alternatives of a symbol are equally likely; ASKED is the dish in the prompt
    "PROMPT": "how was the ASKED ? | you liked the ASKED ? | what about the ASKED ?",
    "RESPONSE": "SHORT | SHORT SHORT | SHORT SHORT SHORT | LONG | LONG SHORT | SHORT LONG | LONG LONG",
    "SHORT": "the DISH was TASTE . | the STAFF was MANNER . | the PLACE was LOOK . | i will RETURN .",
    "LONG": "the DISH was TASTE LINK TASTE . | the STAFF was MANNER LINK MANNER . | "
    + "the PLACE was LOOK LINK LOOK .",
    "RETURN": "come back soon | never come back",
    "LINK": "and | but",
    "TASTE": "FLAVOR | ADVERB FLAVOR",
    "MANNER": "CHARACTER | ADVERB CHARACTER",
    "LOOK": "STYLE | ADVERB STYLE",
    "ADVERB": "very | quite | not",
    "DISH": "ASKED | ASKED | ASKED | ASKED | soup | salad | bread | fish | rice | cake | pasta | steak",
    "STAFF": "waiter | cook | owner",
    "PLACE": "room | garden | table",
    "FLAVOR": "tasty | fresh | warm | superb | stale | salty | cold | bland",
    "CHARACTER": "kind | polite | quick | funny | rude | slow | bored | loud",
    "STYLE": "clean | cozy | bright | quiet | dirty | dark | noisy | shabby",
}
GOOD = "tasty fresh warm kind polite quick funny clean cozy bright quiet soon"
BAD = "stale salty cold bland rude slow bored loud dirty dark noisy shabby never"
PRAISE = dict.fromkeys(GOOD.split(), 1) | dict.fromkeys(BAD.split(), -1)
PRAISE["superb"] = 2
EMPHASIS = {"very": 1.5, "quite": 0.75, "not": -0.5}

RULES = {symbol: [rule.split() for rule in rules.split("|")] for symbol, rules in GRAMMAR.items()}
DISHES = [dish for (dish,) in RULES["DISH"] if dish != "ASKED"]
QUESTIONS = [" ".join(words) for words in RULES["PROMPT"]]
ALL_PROMPTS = [question.replace("ASKED", dish) for question in QUESTIONS for dish in DISHES]
SYMBOLS = " ".join(GRAMMAR.values()).replace("|", "").split()
VOCABULARY = ["<eos>", *sorted({symbol for symbol in SYMBOLS if not symbol.isupper()})]
WORD_ID = {word: i for i, word in enumerate(VOCABULARY)}
EOS, PAD = 0, -1  # PAD follows <eos>; it is not in the vocabulary, so no model can produce it
NUM_WORDS, PROMPT_WORDS = len(VOCABULARY), 5
MAX_WORDS = 19  # T: the longest response of the language, and <eos>
LENGTH = PROMPT_WORDS + MAX_WORDS


def expand(symbol, dish):
    """Random words of the language for a symbol of the grammar."""
    if symbol not in RULES:
        return [dish if symbol == "ASKED" else symbol]
    return [word for part in random.choice(RULES[symbol]) for word in expand(part, dish)]


@lru_cache(100_000)
def likelihood(symbols, words, dish):
    """Probability that symbols expand to exactly these words, by any derivation; 0: none does."""
    if not symbols:
        return float(not words)
    if len(words) < len(symbols):
        return 0.0  # no symbol expands to nothing
    first, *rest = symbols
    if first not in RULES:
        matches = words[0] == (dish if first == "ASKED" else first)
        return likelihood(tuple(rest), words[1:], dish) if matches else 0.0
    derivations = [likelihood((*rule, *rest), words, dish) for rule in RULES[first]]
    return sum(derivations) / len(derivations)


def log_likelihood(text):
    """Log-probability of the response, given the prompt; -inf if it is not grammatical."""
    prompt, _, response = text.partition(" ? ")
    prob = likelihood(("RESPONSE",), tuple(response.split()), prompt.split()[3])
    return math.log(prob) if prob else -math.inf


def restaurant_judge(text):
    """Praise, which saturates; 1 for being about the dish; less for repetition, errors, length."""
    prompt, _, response = text.partition(" ? ")
    dish = prompt.split()[3]
    *sentences, rest = response.split(".")
    claims, praise, broken = [], 0.0, bool(rest.strip())
    for sentence in sentences:
        words = (*sentence.split(), ".")
        if not likelihood(("SHORT",), words, dish) and not likelihood(("LONG",), words, dish):
            broken += 1
            continue
        for previous, word in pairwise(words):
            if word in PRAISE:
                praise += PRAISE[word] * EMPHASIS.get(previous, 1)
                claims.append((words[1], word))
    on_topic = any(subject == dish for subject, _ in claims)
    repeated = len(claims) - len(set(claims))
    excess = max(0, len(response.split()) - 12)
    return 2 * math.tanh(praise / 2) + on_topic - repeated - broken - 0.15 * excess


def encode(texts, length=PROMPT_WORDS):
    """Texts as rows of word numbers, padded to length: [B, length]."""
    rows = [[WORD_ID[word] for word in text.split()] for text in texts]
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


def decode(rows):
    """The texts of rows [B, L], without <eos> and padding."""
    return [" ".join(VOCABULARY[i] for i in row if i > EOS) for row in rows.tolist()]


def speak(size):
    """Random prompts with responses of the language: as texts, and as rows [B, L]."""
    texts = []
    for prompt in random.choices(ALL_PROMPTS, k=size):
        response = expand("RESPONSE", prompt.split()[3])
        texts.append(" ".join([prompt, *response]))
    return texts, encode([f"{text} <eos>" for text in texts], LENGTH)


def judge_all(judge, rows):
    """The judge's scores of texts: [B, L] -> [B]."""
    return torch.tensor([float(judge(text)) for text in decode(rows)])


def is_action(text):
    """Which words of texts [B, L] are actions, words of the response and <eos>: [B, T]."""
    return text[:, PROMPT_WORDS:] != PAD


# The mathematics. The actions of a response are its words and <eos>; padding counts nowhere.


def preference_loss(score):
    """Negative log-likelihood of the pairs in rankings; score [B, K], best first -> [].

    One wins against another with probability sigmoid(difference) (Ouyang et al. 2022, Eq. 1).
    """
    better, worse = torch.triu_indices(score.shape[1], score.shape[1], 1)
    return -nn.functional.logsigmoid(score[:, better] - score[:, worse]).mean()


def rank(score, noise):
    """Noisy rankings of [B, K], as indices, best first: Plackett-Luce; for K = 2, Bradley-Terry."""
    gumbel = -torch.empty_like(score).exponential_().log()  # the order of score + gumbel is Plackett-Luce
    return (score + noise * gumbel).argsort(1, descending=True)


def pair_accuracy(score, judge_score, noise):
    """Share of noisy pairs whose order score [B, K] predicts, and the highest possible."""
    one, other = torch.triu_indices(score.shape[1], score.shape[1], 1)
    prob = torch.sigmoid((judge_score[:, one] - judge_score[:, other]) / max(noise, 1e-9))
    predicted = torch.where(score[:, one] > score[:, other], prob, 1 - prob)
    return predicted.mean().item(), torch.max(prob, 1 - prob).mean().item()


def token_rewards(score, log_ratio, actions, beta):
    """The score [B] for the last action, -beta log(pi / pi_ref) for each: [B, T].

    Their expected sum is J (Ziegler et al. 2019, Eq. 2).
    """
    last = actions.sum(1) - 1
    return (-beta * log_ratio).scatter_add(1, last[:, None], score[:, None])


def gae(rew, val, lam):
    """Generalized advantage estimates, undiscounted, [B, T] (Schulman et al. 2016, Eq. 16).

    Nothing is masked: rewards and values are 0 after the last action, also of a response cut off.
    """
    delta = rew + nn.functional.pad(val[:, 1:], (0, 1)) - val
    adv, trace = torch.zeros_like(delta), 0
    for t in reversed(range(delta.shape[1])):
        adv[:, t] = trace = delta[:, t] + lam * trace
    return adv


def leave_one_out(ret, group_size):
    """RLOO: return of each response minus the mean of the others to the same prompt, [B] -> [B]."""
    groups = ret.view(-1, group_size)
    return (groups - groups.mean(1, keepdim=True)).flatten() * group_size / (group_size - 1)


def group_standardize(score, group_size):
    """GRPO: each score, standardized among those of responses to the same prompt, [B] -> [B]."""
    groups = score.view(-1, group_size)
    std, mean = torch.std_mean(groups, 1, keepdim=True)
    return ((groups - mean) / (std + 1e-4)).flatten()


def clip_objective(ratio, adv, eps):
    """No incentive to move the ratio outside [1 - eps, 1 + eps]; ratio, adv [B] -> [].

    Schulman et al. (2017), arXiv:1707.06347, Eq. 7.
    """
    return torch.min(ratio * adv, ratio.clamp(1 - eps, 1 + eps) * adv).mean()


def k3(log_ratio):
    """Estimate of KL(pi || pi_ref) from log(pi / pi_ref) of actions by pi (GRPO's Eq. 4).

    Schulman (2020), "Approximating KL Divergence", joschu.net/blog/kl-approx.html.
    """
    return (-log_ratio).exp() - 1 + log_ratio


def dpo_loss(log_ratio, beta):
    """Preference loss of the scores for which pi is optimal, beta log(pi / pi_ref); [B, K] -> [].

    They lack a constant for each prompt, which no comparison shows (Rafailov et al. 2023, Eq. 7).
    """
    return preference_loss(beta * log_ratio)


def adapt_kl_coef(beta, kl, kl_target):
    """beta for the next rollout, given the KL of this one (Ziegler et al. 2019, section 2.2)."""
    return beta * (1 + K_BETA * min(max(kl / kl_target - 1, -0.2), 0.2))


def optimum(score, logp, ref_logp, beta):
    """The highest possible J, averaged over prompts; arguments [prompts, samples].

    With Z = E_ref[exp(score / beta)] and pi* = pi_ref exp(score / beta) / Z,
    J(pi) = E_pi[score - beta log(pi / pi_ref)] = beta log Z - beta KL(pi || pi*): pi* is the best
    policy, and beta log Z its J (Rafailov et al. 2023, Eq. 4). Z is estimated by importance sampling:
    half of the samples are the reference's, half the policy's, which if trained well is close to pi*
    and so finds the large terms.
    """
    log_mixture = torch.logaddexp(logp, ref_logp) - math.log(2)
    log_weight = ref_logp + score / beta - log_mixture
    return beta * (log_weight.logsumexp(1).mean() - math.log(score.shape[1]))


def win_rate(score, other):
    """Share of pairs of the same prompt that score wins, both [prompts, samples]; a tie is half."""
    difference = score.unsqueeze(2) - other.unsqueeze(1)
    return (difference.sign().mean().item() + 1) / 2


def shuffled_rows(num_rows, epochs, size):
    """The row numbers of minibatches; the rows are reshuffled in every epoch."""
    return torch.cat([torch.randperm(num_rows) for _ in range(epochs)]).split(size)


def fit(run, args, model, learning_rate, steps, loss_of):
    """Minimize loss_of(step) by steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-5, fused=True)
    for step in run.steps(steps):
        set_learning_rate(optimizer, learning_rate, step, steps)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        run.report(loss=loss, grad_norm=grad_norm)


def set_learning_rate(optimizer, highest, step, steps):
    """Linear warmup in the first tenth of a stage, times a linear decay to 0."""
    factor = min(10 * (step + 1) / steps, 1) * (1 - step / steps)
    optimizer.param_groups[0]["lr"] = highest * factor


# The stages. run.stage calls each as stage(run, args, ...); it returns what it made.


def finetune(run, args):
    """The reference: a model that has learned the language from its texts."""
    model = Transformer(NUM_WORDS, args)

    def loss_of(step):
        _, text = speak(TEXTS)
        return -model.log_prob(text)[is_action(text)].mean()

    fit(run, args, model, args.sft_learning_rate, args.sft_steps, loss_of)
    texts, text = speak(1_000)
    words = is_action(text).sum()
    with torch.no_grad():
        nats = -model.log_prob(text).sum() / words
    entropy = -sum(map(log_likelihood, texts)) / words
    print(f"finetune: {nats:.3f} nats per word of new texts; the language has {entropy:.3f}")
    return model


def compare(run, args, policy, reference, judge):
    """Rankings of responses by the judge, with noise, best first: [R, K, L].

    Policy and reference take turns; in the first round they are the same.
    """
    rankings = []
    for start in run.steps(0, args.num_comparisons, CHUNK):
        size = min(CHUNK, args.num_comparisons - start)
        prompts = encode(random.choices(ALL_PROMPTS, k=size))
        turns = [policy, reference] * args.num_ranked
        texts = [model.sample(prompts) for model in turns[: args.num_ranked]]
        texts = torch.stack(texts, 1)  # [B, K, L]
        judge_score = judge_all(judge, texts.flatten(0, 1)).view(size, args.num_ranked)
        order = rank(judge_score, args.label_noise)
        rankings.append(texts.take_along_dim(order[..., None], 1))
        run.report(judge_score=judge_score)
    return torch.cat(rankings)


def fit_reward(run, args, reference, rankings):
    """The reward model: its scores predict the rankings.

    It starts from the reference, with a new last layer. At the end the scores of the reference's
    responses get mean 0 and variance 1 (Ziegler et al. 2019).
    """
    model = copy.deepcopy(reference)
    model.head = nn.Linear(args.d_model, 1)
    rows = shuffled_rows(len(rankings), args.reward_epochs, TEXTS)

    def loss_of(step):
        score = model.after_last_action(rankings[rows[step]].flatten(0, 1))
        return preference_loss(score.view(-1, args.num_ranked))

    fit(run, args, model, args.reward_learning_rate, len(rows), loss_of)
    with torch.no_grad():
        text = reference.sample(encode(random.choices(ALL_PROMPTS, k=4_000)))
        std, mean = torch.std_mean(model.after_last_action(text))
        model.head.weight /= std
        model.head.bias.copy_((model.head.bias - mean) / std)
    return model


def score_responses(reward_model, text):
    """Scores by the reward model, [B, L] -> [B], and at most -1 without <eos>.

    Otherwise the policy may learn not to stop (Huang et al. 2024, arXiv:2403.17031).
    """
    score = reward_model.after_last_action(text)
    return torch.where((text == EOS).any(1), score, score.clamp(max=-1))


@dataclass
class BestOfN:
    """The policy that returns the best of n responses of the reference (Stiennon et al. 2020)."""

    reference: nn.Module
    reward_model: nn.Module
    n: int

    def sample(self, prompts):
        """Texts that begin with the prompts: [B, P] -> [B, L]."""
        best = []
        for part in prompts.split(math.ceil(CHUNK / self.n)):
            text = self.reference.sample(part.repeat_interleave(self.n, 0))
            score = score_responses(self.reward_model, text).view(-1, self.n)
            rows = self.n * torch.arange(len(part)) + score.argmax(1)
            best.append(text[rows])
        return torch.cat(best)

    def kl(self, reference, text):
        """An upper bound of KL(policy || reference), the same for each text: [B]."""
        bound = math.log(self.n) - (self.n - 1) / self.n
        return torch.full((len(text),), bound)


def improve(run, args, policy, reference, reward_model, judge):
    """PPO, RLOO and GRPO: sample responses, score them, update the policy.

    The critic starts from the reward model (Stiennon et al. 2020). RLOO and GRPO do not use it.
    """
    policy, critic = copy.deepcopy(policy), copy.deepcopy(reward_model)
    params = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(params, eps=1e-5, fused=True)
    beta, group_size = args.kl_coef, 1 if args.algorithm == "ppo" else args.group_size
    for step in run.steps(args.iterations):
        set_learning_rate(optimizer, args.learning_rate or 5e-4, step, args.iterations)

        # Collect responses of the current policy.
        prompts = random.choices(ALL_PROMPTS, k=args.batch_size // group_size)
        text = policy.sample(encode(prompts).repeat_interleave(group_size, 0))

        # Estimate advantages: how much better than expected was each word?
        with torch.no_grad():
            metrics = describe(text, policy, reference, reward_model, judge)
            logp, ref_logp = policy.log_prob(text), reference.log_prob(text)
            adv, ret = advantages(critic, text, metrics["score"], logp - ref_logp, beta, args)

        # Update the policy, and with PPO the critic.
        batch = text, adv, ret, logp, ref_logp
        metrics |= update(policy, critic, optimizer, batch, beta, args)
        run.report(kl_coef=beta, **metrics)
        if args.kl_target:
            beta = adapt_kl_coef(beta, metrics["kl"].mean().item(), args.kl_target)
    return policy


def advantages(critic, text, score, log_ratio, beta, args):
    """Advantages and targets of the critic, [B, T] each; score [B], log(pi / pi_ref) [B, T]."""
    if args.algorithm == "ppo":
        val = critic.values(text)
        adv = gae(token_rewards(score, log_ratio, is_action(text), beta), val, args.gae_lambda)
        return adv, adv + val
    if args.algorithm == "rloo":
        adv = leave_one_out(score - beta * log_ratio.sum(1), args.group_size)
    else:
        adv = group_standardize(score, args.group_size)
    adv = adv[:, None].expand_as(log_ratio)  # the same for all words of a response
    return adv, torch.zeros_like(adv)


def update(policy, critic, optimizer, batch, beta, args):
    """Maximize the clipped objective in epochs of minibatches of texts; returns metrics."""
    params, losses = optimizer.param_groups[0]["params"], []
    size = args.batch_size // args.num_minibatches
    for rows in shuffled_rows(args.batch_size, args.update_epochs, size):
        text, adv, ret, logp_old, ref_logp = (column[rows] for column in batch)
        actions, logp = is_action(text), policy.log_prob(text)
        ratio, adv = (logp - logp_old).exp()[actions], adv[actions]
        value_loss = kl_loss = torch.zeros(())
        if args.algorithm == "ppo":
            adv = (adv - adv.mean()) / (adv.std() + ADV_STD_EPS)
            value_loss = nn.functional.mse_loss(critic.values(text)[actions], ret[actions]) / 2
        if args.algorithm == "grpo":  # at pi = pi_old, its gradient is that of KL(pi_ref || pi) for each word
            kl_loss = k3(logp - ref_logp)[actions].mean()
        policy_loss = -clip_objective(ratio, adv, args.clip_coef)
        loss = policy_loss + value_loss + beta * kl_loss

        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(params, args.max_grad_norm)
        optimizer.step()
        losses.append(torch.stack([policy_loss, value_loss, grad_norm]).detach())
    names = "policy_loss", "value_loss", "grad_norm"
    return dict(zip(names, torch.stack(losses).mean(0).tolist()))


def improve_directly(run, args, policy, reference, rankings):
    """DPO: fit the policy itself to the rankings."""
    policy = copy.deepcopy(policy)
    rows = shuffled_rows(len(rankings), args.reward_epochs, TEXTS)

    def loss_of(step):
        text = rankings[rows[step]].flatten(0, 1)
        with torch.no_grad():
            ref_logp = reference.log_prob(text)
        log_ratio = (policy.log_prob(text) - ref_logp).sum(1)
        return dpo_loss(log_ratio.view(-1, args.num_ranked), args.dpo_beta)

    fit(run, args, policy, args.learning_rate or 1e-4, len(rows), loss_of)
    return policy


def train(args):
    """Train a policy and return it; its results are in the run's folder. Raises InputError."""
    setup_torch(args)
    judge, run = load_judge(args.judge), Run(args)
    # run.stage calls a stage and saves what it returns, or takes that from the checkpoint.
    reference = run.stage(finetune)
    policy, rankings, reward_model = reference, [], None
    for _ in range(args.rounds):
        rankings.append(run.stage(compare, policy, reference, judge))
        if args.algorithm == "dpo":
            policy = run.stage(improve_directly, policy, reference, torch.cat(rankings))
            continue
        reward_model = run.stage(fit_reward, reference, torch.cat(rankings))
        if args.algorithm == "best-of-n":
            policy = BestOfN(reference, reward_model, args.best_of)
        else:
            policy = run.stage(improve, policy, reference, reward_model, judge)
    if args.prompt:
        print(*answers([args.prompt] * 3, reference, policy, judge), sep="")
    else:
        results = evaluate(args, policy, reference, reward_model, judge)
        run.finish(results, answers(ALL_PROMPTS, reference, policy, judge))
    return policy


# The models.


class Transformer(nn.Module):
    """Reads a text; its outputs after each word are logits of the next one, or a score or value."""

    def __init__(self, outputs, args):
        super().__init__()
        D, H = args.d_model, args.num_heads
        self.word, self.position = nn.Embedding(NUM_WORDS, D), nn.Embedding(LENGTH, D)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(D, H, 4 * D, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(args.num_layers)
        )
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, outputs)
        nn.init.normal_(self.word.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, text):
        """[B, L] -> [B, L, outputs]."""
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)  # no look at later words
        words = text.clamp(min=0)  # padding reads as <eos>; it comes last, so no action sees it
        x = self.word(words) + self.position(torch.arange(length))  # [B, L, D]
        for layer in self.layers:
            x = layer(x, mask, is_causal=True)
        return self.head(self.norm(x))

    def before_each_action(self, text):
        """Outputs before each action, given the words up to there: [B, L] -> [B, T, outputs]."""
        return self(text[:, :-1])[:, PROMPT_WORDS - 1 :]

    def after_last_action(self, text):
        """The only output after a whole response: [B, L] -> [B]."""
        last = (text != PAD).sum(1) - 1
        return self(text)[torch.arange(len(text)), last, 0]

    def log_prob(self, text):
        """Log-probability of each action, 0 for padding: [B, L] -> [B, T]."""
        logits, act = self.before_each_action(text), text[:, PROMPT_WORDS:]
        return -nn.functional.cross_entropy(logits.mT, act, reduction="none", ignore_index=PAD)

    def values(self, text):
        """Expected sum of the rewards from each action on, 0 for padding: [B, L] -> [B, T]."""
        return self.before_each_action(text).squeeze(2) * is_action(text)

    def kl(self, reference, text):
        """KL(policy || reference) of the next word, summed over the actions: [B, L] -> [B]."""
        pi, ref = (x.before_each_action(text).log_softmax(2) for x in (self, reference))
        kl = (pi.exp() * (pi - ref)).sum(2)  # [B, T]
        return (kl * is_action(text)).sum(1)

    @torch.no_grad()
    def sample(self, prompts):
        """Texts that begin with the prompts: [B, P] -> [B, L]."""
        text = nn.functional.pad(prompts, (0, MAX_WORDS), value=PAD)
        unfinished = torch.ones(len(text), dtype=torch.bool)
        for t in range(PROMPT_WORDS, LENGTH):
            logits = self(text[unfinished, :t])[:, -1]
            text[unfinished, t] = logits.softmax(1).multinomial(1).squeeze(1)
            unfinished &= text[:, t] != EOS
            if not unfinished.any():
                break
        return text


# Evaluation.


def means(metrics):
    """Means of tensors, and numbers, by name."""
    tensors = {name: torch.as_tensor(x) for name, x in metrics.items()}
    return {name: x.double().mean().item() for name, x in tensors.items()}


@torch.no_grad()
def describe(text, policy, reference, reward_model, judge):
    """Metrics of texts by a policy, {name: [B]}. Nothing is learned from the judge's score here."""
    grammatical = torch.tensor([math.isfinite(log_likelihood(x)) for x in decode(text)])
    metrics = {"score": score_responses(reward_model, text)} if reward_model else {}
    metrics |= {"judge_score": judge_all(judge, text), "kl": policy.kl(reference, text)}
    return metrics | {"length": is_action(text).sum(1), "grammatical": grammatical}


@torch.no_grad()
def evaluate(args, policy, reference, reward_model, judge):
    """Means over responses of reference and policy to all prompts; win rate; the best possible."""
    repeats = max(2, args.eval_responses // len(ALL_PROMPTS))
    prompts = encode(ALL_PROMPTS).repeat_interleave(repeats, 0)
    before, after = {}, {}
    for table, actor in (before, reference), (after, policy):
        text = actor.sample(prompts)
        table |= describe(text, actor, reference, reward_model, judge)
        if args.algorithm in ("ppo", "rloo", "grpo"):
            table["J"] = table["score"] - args.kl_coef * table["kl"]
            table["logp"] = policy.log_prob(text).sum(1)
            table["ref_logp"] = reference.log_prob(text).sum(1)

    def column(key, *tables):
        """[prompts, samples]."""
        columns = [table[key].view(-1, repeats) for table in tables]
        return torch.cat(columns, 1).double()

    results = {"reference": means(before), "policy": means(after)}
    judge_score = column("judge_score", before)
    results["judge_std"] = judge_score.std().item()
    results["win_rate"] = win_rate(column("judge_score", after), judge_score)
    if reward_model:
        accuracy = pair_accuracy(column("score", before), judge_score, args.label_noise)
        results["accuracy"], results["accuracy_optimum"] = accuracy
    if "J" in after and args.kl_coef > 0:  # otherwise the optimum is the highest score of any text
        both = [column(key, before, after) for key in ("score", "logp", "ref_logp")]
        results["J_optimum"] = optimum(*both, args.kl_coef).item()
    return results


def answers(prompts, reference, policy, judge):
    """For each prompt, a text with responses of reference and policy, and the judge's scores."""
    columns = []
    for actor in reference, policy:
        text = actor.sample(encode(prompts))
        columns += judge_all(judge, text).tolist(), decode(text[:, PROMPT_WORDS:])
    form = "{}\n    before {:5.1f}  {}\n    after  {:5.1f}  {}\n"
    return [form.format(*row) for row in zip(prompts, *columns)]


# From here on: pictures, folders, checkpoints, flags.


class InputError(ValueError):
    """Invalid flag or checkpoint; the message names it and says what is accepted."""


def draw(rows, path):
    """The scores of reward model and judge against KL, as in Gao et al. (2023)."""
    from matplotlib.figure import Figure  # takes a second

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    kl = [math.sqrt(abs(row["kl"])) for row in rows]
    for name, style in ("score", ".--"), ("judge_score", ".-"):
        if name in rows[0]:
            axes.plot(kl, [row[name] for row in rows], style, label=name)
    axes.set(xlabel="square root of KL to the reference (nats)", ylabel="mean")
    axes.legend()
    figure.savefig(path)


class Run:
    """Folder, stages, checkpoints and metrics of a run."""

    def __init__(self, args):
        self.args, self.number = args, 0  # of the stage
        self.made, self.rows, self.seconds = [], [], 0.0  # made: what the stages returned
        if args.resume:
            saved = load(args.resume)
            self.made, self.rows, self.seconds = saved["made"], saved["rows"], saved["seconds"]
        self.start = time.perf_counter() - self.seconds
        name = f"runs/rlhf__{args.algorithm}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        self.folder = Path(args.run_dir or (Path(args.resume).parent if args.resume else name))
        self.checkpoint = self.folder / "checkpoint.pt"
        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = args.resume and self.folder.samefile(Path(args.resume).parent)
        if self.checkpoint.exists() and not resumed:
            raise InputError(f"--run-dir {self.folder}: contains a run; choose another")
        if not args.prompt:  # a question changes nothing
            (self.folder / "args.json").write_text(json.dumps(vars(args), indent=2))
            self.save()
            print(f"--resume {self.checkpoint} continues after the last stage that ended", flush=True)
        self.seed()

    def seed(self):
        """Seed what comes next, so that a resumed run goes on like this one, bit for bit."""
        seed = 1_000 * self.args.seed + self.number
        random.seed(seed)
        torch.manual_seed(seed)

    def stage(self, function, *inputs):
        """What function(self, args, *inputs) returns, or has returned before the checkpoint."""
        self.name = function.__name__
        if self.number == len(self.made):
            made = function(self, self.args, *inputs)
            self.made.append(made.state_dict() if isinstance(made, nn.Module) else made)
            self.save()
        made = rebuild(self.made[self.number], self.args)
        self.number += 1
        self.seed()
        return made

    def save(self):
        """Write checkpoint.pt and metrics.csv."""
        saved = {"args": vars(self.args), "made": self.made, "rows": self.rows}
        torch.save(saved | {"seconds": self.seconds}, f"{self.checkpoint}.new")
        os.replace(f"{self.checkpoint}.new", self.checkpoint)  # atomic: one is always whole
        with open(self.folder / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(name for row in self.rows for name in row))
            writer.writeheader()
            writer.writerows(self.rows)

    def steps(self, *bounds):
        """Yield the steps of a stage, a range, with a bar."""
        self.bar = tqdm(range(*bounds), self.name, disable=None)
        for step in self.bar:
            self.step = step
            yield step

    def report(self, **metrics):
        """Add a row of metrics, means of tensors. Raises FloatingPointError."""
        self.seconds = time.perf_counter() - self.start
        row = means(metrics)
        if not all(map(math.isfinite, row.values())):
            hint = f"a smaller learning rate may help; last good checkpoint: {self.checkpoint}"
            raise FloatingPointError(f"step {self.step} of {self.name}: {row} not finite; {hint}")
        place = {"stage": self.name, "step": self.step, "seconds": self.seconds}
        self.rows.append(place | row)
        shown = {name: row[name] for name in ("loss", "score", "kl") if name in row}
        self.bar.set_postfix(shown, refresh=False)

    def finish(self, results, samples):
        """Write eval.json, samples.txt and score.png, and print the results."""
        before, after = results["reference"], results["policy"]
        text = json.dumps(results | {"seconds": self.seconds}, indent=2)
        (self.folder / "eval.json").write_text(text)
        (self.folder / "samples.txt").write_text("".join(samples))
        path = [row for row in self.rows if "kl" in row]
        draw([before, *path, after], self.folder / "score.png")
        print(*samples[::5], sep="")
        for name in "judge_score", "score", "kl", "J", "length", "grammatical":
            if name in after:
                print(f"{name:16}{before[name]:7.2f} -> {after[name]:.2f}")
        for name in "J_optimum", "accuracy", "accuracy_optimum":
            if name in results:
                print(f"{name:16}{results[name]:7.2f}")
        print(f"eval: wins {results['win_rate']:.1%} against the reference ({self.folder})")


def rebuild(made, args):
    """Rankings, or a model with frozen layers, from what the checkpoint has."""
    if isinstance(made, torch.Tensor):
        return made.to(args.device)
    model = Transformer(len(made["head.bias"]), args)
    model.load_state_dict(made)
    if args.frozen_layers:
        for module in [model.word, model.position, *model.layers[: args.frozen_layers]]:
            module.requires_grad_(False)
    return model


def setup_torch(args):
    """Choose torch's device and its number of threads. Raises InputError."""
    try:
        torch.set_default_device(torch.zeros(1, device=args.device).device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # more slow small networks down


def restore_flags(args):
    """With --resume, all flags but a few are the checkpoint's. Raises InputError for others."""
    if args.resume:
        saved = load(args.resume)["args"]
        for name in saved.keys() - {"resume", "run_dir", "prompt", "device"}:
            if getattr(args, name) not in (getattr(Args, name), saved[name]):
                flag = f"--{name.replace('_', '-')} {saved[name]}"
                raise InputError(f"--resume {args.resume}: made with {flag}, which cannot change")
            setattr(args, name, saved[name])


def check_flags(args):
    """Raise InputError for flags that make no sense."""
    low = {"num_comparisons": TEXTS, "num_ranked": 2, "group_size": 2}
    low |= {"seed": 0, "frozen_layers": 0}
    for name, value in vars(args).items():
        least = low.get(name, int(isinstance(getattr(Args, name), int)))
        if isinstance(value, (int, float)) and not value >= least:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    grouped = args.algorithm in ("rloo", "grpo")
    wrong = {
        "--num-heads must divide --d-model": args.d_model % args.num_heads,
        "--num-minibatches must divide --batch-size": args.batch_size % args.num_minibatches,
        "--group-size must divide --batch-size": grouped and args.batch_size % args.group_size,
        "--kl-target needs a positive --kl-coef": args.kl_target and not args.kl_coef,
        "--learning-rate must be positive": args.learning_rate == 0,
        "--prompt needs --resume": args.prompt and not args.resume,
        f"--prompt: one of {', '.join(ALL_PROMPTS)}": args.prompt not in ("", *ALL_PROMPTS),
    }
    for sentence, condition in wrong.items():
        if condition:
            raise InputError(sentence)


def load_judge(path):
    """The function of "my_module:function", or the default. Raises InputError."""
    if not path:
        return restaurant_judge
    module, _, function = path.partition(":")
    try:
        judge = getattr(importlib.import_module(module), function)
        if not math.isfinite(judge(f"{ALL_PROMPTS[0]} the soup was tasty .")):
            raise ValueError("not a finite number")
    except Exception as error:
        expected = "expected my_module:function, from a text to a number"
        raise InputError(f"--judge {path}: {error}; {expected}") from error
    return judge


def load(path):
    """Contents of a checkpoint of this script. Raises InputError for any other file."""
    try:  # weights_only refuses files that run code
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        flags = saved["args"].keys()
    except Exception as error:
        raise InputError(f"--resume {path}: not a checkpoint ({type(error).__name__})") from error
    if flags != Args.__dataclass_fields__.keys():
        raise InputError(f"--resume {path}: a checkpoint of another script or version")
    return saved


def main():
    """Command line. Exit status: 2 wrong input, 1 numbers that are not finite, 130 Ctrl-C."""
    try:
        train(tyro.cli(Args, description=__doc__))
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, FloatingPointError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, FloatingPointError) else 2)


if __name__ == "__main__":
    main()
