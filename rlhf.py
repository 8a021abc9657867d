"""Reinforcement learning from human feedback (RLHF): supervised model, rankings, reward model, policy.

Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593; Ouyang et al. (2022),
"Training language models to follow instructions with human feedback", arXiv:2203.02155. In place of PPO also RLOO,
Ahmadian et al. (2024), arXiv:2402.14740; GRPO, Shao et al. (2024), arXiv:2402.03300; DPO, Rafailov et al. (2023),
arXiv:2305.18290.

1. finetune: a small transformer learns to write restaurant reviews, from texts of the language.
2. compare: it writes several responses to each prompt, and a judge ranks them, with noise.
3. fit_reward: a reward model learns to predict the rankings.
4. improve: the policy maximizes J = E[score] - beta KL(policy || reference); the reference is the model of stage 1.
With --rounds, stages 2 to 4 follow again, with the rankings of all rounds; the critic then starts from the reward model
anew, the other models go on from where they are.

The models see only texts and rankings. But the language is a grammar and the judge a function, both in this file, so
the best possible results of stages 1 and 3 are known; that of stage 4 follows from the reference and the score, and is
estimated. Each is printed beside the stage's own.

What changed from ppo.py: an environment becomes a prompt, and a step becomes a word. The observation is the text so
far; an episode is one response, undiscounted; the reward comes from a model, after the last word. As well as the policy
that sampled a batch there is a frozen one, the reference, and each word costs beta log(pi / pi_ref).

Why the penalty: the reward model is accurate only on texts like those it was trained on, and with --kl-coef 0 the
policy finds texts that the reward model overrates (Gao et al. 2023, "Scaling Laws for Reward Model Overoptimization").

GRPO divides scores by their standard deviation in the group: it does not maximize J, and its beta has another unit.

Not as in the papers: a response that was cut off gets its score or -1, whichever is lower; advantages are standardized
in each minibatch, with 0.1 added to the standard deviation; the value loss is not clipped; RLOO takes several clipped
steps on a rollout, with a ratio for each word; GRPO's loss is a mean over words, so that long responses count more, and
its reference stays the same; DPO with K > 2 uses all pairs. Left out: the pretraining term in Eq. 2 of Ouyang et al.,
weights shared by policy and critic, low-rank adapters, a sampling temperature, several workers.

Shapes: B responses of up to T words to prompts of P words; K responses in a ranking; V words in the vocabulary.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "torch>=2.6", "tqdm>=4.66", "tyro>=0.9.1"]
# ///

import csv
import importlib
import json
import math
import os
import random
import sys
import time
from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import nn
from tqdm import tqdm

CHECKPOINT = "rlhf 1"  # script and version of the checkpoint format
ADV_STD_EPS = 0.1  # added to the standard deviation of advantages; large, so that small, noisy ones stay small
Batch = namedtuple("Batch", "obs act adv ret old_logp ref_logp")  # obs [B, P], the rest [B, T]; ret: value targets
UNFINISHED = -1.0  # upper limit of the score of a response that was cut off before <eos>
TEXTS = 64  # texts or rankings per gradient step in finetune, fit_reward and improve_directly
CHUNK = 500  # rankings that compare makes at once
WARMUP = 0.1  # fraction of each stage in which the learning rate increases
KL_HORIZON = 2_560  # with --kl-target, beta changes by about 20 % at most in this many responses
LIMITS = {"num_comparisons": (TEXTS, 100_000), "num_ranked": (2, 10), "group_size": (2, 100)}
LIMITS |= {"seed": (0, 2**32), "frozen_layers": (0, math.inf)}
LIMITS |= {"rounds": (1, 100), "batch_size": (1, 100_000), "eval_responses": (1, 100_000)}
LIMITS |= {"d_model": (1, 4_096), "num_layers": (1, 100)}
LIMITS |= {"clip_coef": (0, 1_000_000), "gae_lambda": (0, 1)}  # other flags: see check_limits


@dataclass
class Args:
    algorithm: Literal["ppo", "rloo", "grpo", "dpo"] = "ppo"  # how the policy is improved
    reward: Literal["model", "judge"] = "model"  # what scores responses; judge: neither rankings nor reward model
    judge: str = ""  # "my_module:function", from the text of prompt and response to a number
    num_comparisons: int = 8_000  # rankings per round
    num_ranked: int = 2  # K, responses in a ranking
    label_noise: float = 1.0  # scale of the noise in the rankings; 0: none
    rounds: int = 1  # rounds of compare, fit_reward and improve
    kl_coef: float = 0.2  # beta, price of a nat; scores of the reference's responses have standard deviation 1
    kl_target: float = 0.0  # if positive, adapt beta until a response has this KL to the reference, in nats; not in dpo
    group_size: int = 4  # responses to the same prompt in rloo and grpo
    frozen_layers: int = 0  # after finetune, freeze the embeddings and this many blocks; 0: train everything
    sft_steps: int = 600  # gradient steps of finetune
    sft_learning_rate: float = 3e-3  # Adam's step size in finetune, before warmup and decay
    reward_epochs: int = 4  # passes over the rankings, by fit_reward and by dpo
    reward_learning_rate: float = 3e-3  # Adam's step size in fit_reward
    iterations: int = 40  # rollouts per round
    batch_size: int = 256  # responses per rollout
    clip_coef: float = 0.2  # eps: the ratio is clipped to [1 - eps, 1 + eps]
    update_epochs: int = 2  # passes over each rollout
    num_minibatches: int = 4  # minibatches per pass, one gradient step each
    gae_lambda: float = 0.95  # lambda of the advantage estimate; 0: most bias, 1: most variance
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 1.0  # clip gradients to this norm
    d_model: int = 64  # D, width of the transformers
    num_layers: int = 2  # blocks of each transformer
    num_heads: int = 4  # H, attention heads of each block

    seed: int = 1  # on one machine, the same seed and flags give the same run, bit for bit
    learning_rate: float = 5e-4  # Adam's step size in improve
    device: str = "cpu"  # cpu, cuda, cuda:1
    run_dir: str = ""  # output folder; default runs/rlhf__<algorithm>__<seed>__<time>
    resume: str = ""  # checkpoint.pt to continue from; its flags are used unless given again
    prompt: str = ""  # with --resume: only answer this, for example "how was the soup ?"
    checkpoint_every: int = 500  # steps between checkpoints; the first is at the start of each stage
    eval_responses: int = 2_400  # responses of policy and reference in the final evaluation


# The language: reviews of up to three sentences. The judge is the owner of the restaurant.

GRAMMAR = {  # the alternatives of a symbol are equally likely; ASKED is the dish in the prompt
    "PROMPT": "how was the ASKED ? | you liked the ASKED ? | what about the ASKED ?",
    "RESPONSE": "SHORT | SHORT SHORT | SHORT SHORT SHORT | LONG | LONG SHORT | SHORT LONG | LONG LONG",
    "SHORT": "the DISH was TASTE . | the STAFF was MANNER . | the PLACE was LOOK . | i will RETURN .",
    "LONG": "the DISH was TASTE LINK TASTE . | the STAFF was MANNER LINK MANNER . | the PLACE was LOOK LINK LOOK .",
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
VALUE = dict.fromkeys("tasty fresh warm kind polite quick funny clean cozy bright quiet soon".split(), 1)
VALUE |= dict.fromkeys("stale salty cold bland rude slow bored loud dirty dark noisy shabby never".split(), -1)
VALUE |= {"superb": 2}
EMPHASIS = {"very": 1.5, "quite": 0.75, "not": -0.5}

RULES = {}
for symbol, rules in GRAMMAR.items():
    RULES[symbol] = [rule.split() for rule in rules.split("|")]
DISHES = [dish for (dish,) in RULES["DISH"] if dish != "ASKED"]
ALL_PROMPTS = [" ".join(prompt).replace("ASKED", dish) for prompt in RULES["PROMPT"] for dish in DISHES]
SYMBOLS = " ".join(GRAMMAR.values()).replace("|", "").split()
VOCABULARY = ["<eos>", *sorted({symbol for symbol in SYMBOLS if not symbol.isupper()})]
WORD_ID = {word: i for i, word in enumerate(VOCABULARY)}
EOS, PAD = 0, -1  # PAD fills the rows after <eos>; it is not in the vocabulary, so no model can produce it
NUM_WORDS, PROMPT_WORDS = len(VOCABULARY), 5
MAX_WORDS = 19  # the longest response of the language, and <eos>


def expand(symbol, dish):
    """Random words of the language for a symbol of the grammar."""
    if symbol not in RULES:
        return [dish if symbol == "ASKED" else symbol]
    return [word for part in random.choice(RULES[symbol]) for word in expand(part, dish)]


@lru_cache(100_000)
def likelihood(symbols, words, dish):
    """Probability that symbols expand to exactly these words, summed over all derivations; 0: not grammatical."""
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


def log_likelihood(prompt, response):
    """Log-probability of a response in the language; -inf if it is not grammatical."""
    prob = likelihood(("RESPONSE",), tuple(response.split()), prompt.split()[3])
    return math.log(prob) if prob else -math.inf


def judge(text):
    """Praise, which saturates; 1 for an answer about the dish; less for repetitions, broken sentences, many words."""
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
            if word in VALUE:
                praise += VALUE[word] * EMPHASIS.get(previous, 1)
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
    """The texts of rows [B, T], without <eos> and padding."""
    return [" ".join(VOCABULARY[i] for i in row if i > EOS) for row in rows.tolist()]


def speak(size):
    """Random prompts and responses of the language: as texts, and as rows [B, P] and [B, T]."""
    prompts = random.choices(ALL_PROMPTS, k=size)
    responses = [" ".join(expand("RESPONSE", prompt.split()[3])) for prompt in prompts]
    return prompts, responses, encode(prompts), encode([f"{response} <eos>" for response in responses], MAX_WORDS)


# The mathematics. The actions of a response are its words and <eos>; padding follows, and counts nowhere.


def preference_loss(score):
    """Negative log-likelihood of the pairs in each ranking; score [B, K], best first (Ouyang et al. 2022, Eq. 1)."""
    better, worse = torch.triu_indices(score.shape[1], score.shape[1], 1)
    return -nn.functional.logsigmoid(score[:, better] - score[:, worse]).mean()


def rank(gold, noise):
    """Random rankings of gold [B, K], as indices, best first: Plackett-Luce; for K = 2, Bradley-Terry."""
    gumbel = -torch.empty_like(gold).exponential_().log()
    return (gold + noise * gumbel).argsort(1, descending=True)


def pair_accuracy(score, gold, noise):
    """Expected share of noisy pairs that score [B, K] predicts, and that gold [B, K] predicts, the highest possible."""
    better, worse = torch.triu_indices(gold.shape[1], gold.shape[1], 1)
    prob = torch.sigmoid((gold[:, better] - gold[:, worse]) / max(noise, 1e-9))  # that the first is ranked higher
    predicted = torch.where(score[:, better] > score[:, worse], prob, 1 - prob)
    return predicted.mean(), torch.max(prob, 1 - prob).mean()


def token_rewards(score, log_ratio, act, beta):
    """-beta log(pi / pi_ref) for each action [B, T], and the score [B] for the last (Ziegler et al. 2019, Eq. 2)."""
    last = (act != PAD).sum(1) - 1
    return (-beta * log_ratio).scatter_add(1, last[:, None], score[:, None])


def gae(rew, val, next_val, terminated, done, gamma, lam):
    """Generalized advantage estimates; arguments and result [T, N] (Schulman et al. 2016, Eq. 16)."""
    delta = rew + gamma * next_val * ~terminated - val  # a terminal state has value 0; a time limit is not terminal
    discount = gamma * lam * (~done).to(delta.dtype)  # no credit flows back from the next episode
    adv, trace = torch.zeros_like(delta), 0
    for t in reversed(range(len(delta))):
        adv[t] = trace = delta[t] + discount[t] * trace
    return adv


def clip_objective(ratio, adv, eps):
    """Surrogate objective without incentive to move the ratio outside [1 - eps, 1 + eps]; ratio, adv [B]."""
    return torch.min(ratio * adv, ratio.clamp(1 - eps, 1 + eps) * adv).mean()


def leave_one_out(ret, group_size):
    """RLOO: return of each response minus the mean of the others to the same prompt, [B] -> [B]."""
    groups = ret.view(-1, group_size)
    return (groups - groups.mean(1, keepdim=True)).flatten() * group_size / (group_size - 1)


def group_standardize(score, group_size):
    """GRPO: score of each response, standardized among the responses to the same prompt, [B] -> [B]."""
    groups = score.view(-1, group_size)
    std, mean = torch.std_mean(groups, 1, keepdim=True)
    return ((groups - mean) / (std + 1e-4)).flatten()


def k3(log_ratio):
    """GRPO: estimate of KL(pi || pi_ref) from log(pi / pi_ref) of actions sampled from pi; never negative."""
    return (-log_ratio).exp() - 1 + log_ratio


def dpo_loss(log_ratio, beta):
    """DPO: preference loss of the reward for which pi is optimal, beta log(pi / pi_ref); log_ratio [B, K] (Eq. 7)."""
    return preference_loss(beta * log_ratio)


def adapt_kl_coef(kl_coef, kl, kl_target, num_responses):
    """beta after some responses with this KL (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / kl_target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * min(num_responses / KL_HORIZON, 1))


def optimum(score, logp, ref_logp, beta):
    """Highest possible J, beta log E_ref[exp(score / beta)], averaged over prompts; arguments [prompts, samples].

    Importance sampling; half of the samples are the reference's and half the policy's. The policy is close to the
    optimal one, so its samples are those with large weights.
    """
    log_mixture = torch.logaddexp(logp, ref_logp) - math.log(2)
    log_weight = ref_logp + score / beta - log_mixture
    return beta * (log_weight.logsumexp(1).mean() - math.log(score.shape[1]))


def win_rate(gold, other):
    """Share of pairs of the same prompt that gold wins, both [prompts, samples]; a tie counts half."""
    difference = gold.unsqueeze(2) - other.unsqueeze(1)
    return (difference.sign().mean() + 1) / 2


# The stages.


def minibatches(batch, epochs, num_minibatches):
    """Yield equal minibatches; the rows are reshuffled in every epoch."""
    for _ in range(epochs):
        rows = torch.randperm(len(batch.obs))
        columns = [column[rows].chunk(num_minibatches) for column in batch]
        yield from map(Batch, *columns)


def update(agent, optimizer, batch, args):
    """Maximize the clipped objective over several epochs of minibatches; returns metrics."""
    losses = []
    for minibatch in minibatches(batch, args.update_epochs, args.num_minibatches):
        obs, act, adv, ret, old_logp, ref_logp = minibatch
        logp, is_action = agent.actor.policy(obs, act).log_prob(act), act != PAD
        ratio, adv = (logp - old_logp).exp()[is_action], adv[is_action]
        value_loss = kl_loss = torch.zeros(())
        if args.algorithm == "ppo":
            adv = (adv - adv.mean()) / (adv.std() + ADV_STD_EPS)
            value_loss = nn.functional.mse_loss(agent.value(obs, act)[is_action], ret[is_action])
        if args.algorithm == "grpo":  # as published; its gradient is that of KL(pi_ref || pi) for each word
            kl_loss = k3(logp - ref_logp)[is_action].mean()
        policy_loss = -clip_objective(ratio, adv, args.clip_coef)
        loss = policy_loss + args.vf_coef * value_loss + agent.kl_coef * kl_loss
        grad_norm = gradient_step(optimizer, loss, args.max_grad_norm)
        losses.append(torch.stack([policy_loss, value_loss, grad_norm]).detach())
    return dict(zip(("policy_loss", "value_loss", "grad_norm"), torch.stack(losses).mean(0)))


def advantages(agent, obs, act, score, log_ratio, args):
    """Advantages and targets of the value function, [B, T] each; score [B], log_ratio = log(pi / pi_ref) [B, T]."""
    if args.algorithm == "ppo":
        padding = act == PAD
        val = agent.value(obs, act) * ~padding
        next_val = nn.functional.pad(val[:, 1:], (0, 1))  # 0 after the last action: here a cut-off is an end as well
        rew = token_rewards(score, log_ratio, act, agent.kl_coef)  # 0 in padding, as are the values
        ended = padding.T
        adv = gae(rew.T, val.T, next_val.T, ended, ended, 1.0, args.gae_lambda).T
        return adv, adv + val
    if args.algorithm == "rloo":
        adv = leave_one_out(score - agent.kl_coef * log_ratio.sum(1), args.group_size)
    else:
        adv = group_standardize(score, args.group_size)
    adv = adv[:, None].expand(act.shape)  # the same for all words of a response
    return adv, torch.zeros_like(adv)


def finetune(agent, run, args):
    """Supervised stage: the policy learns the language, and then all other models start from its weights."""
    optimizer = adam(args.sft_learning_rate, [agent.actor])
    for _ in run.steps(args.sft_steps, optimizer):
        *_, obs, act = speak(TEXTS)
        loss = -agent.actor.policy(obs, act).log_prob(act)[act != PAD].mean()
        run.report(loss=loss, grad_norm=gradient_step(optimizer, loss, args.max_grad_norm))

    agent.reference.load_state_dict(agent.actor.state_dict())
    body = agent.actor.state_dict()
    del body["head.weight"], body["head.bias"]
    agent.critic.load_state_dict(body, strict=False)
    agent.reward_model.load_state_dict(body, strict=False)
    prompts, responses, obs, act = speak(1_000)
    loss = -agent.actor.policy(obs, act).log_prob(act)[act != PAD].mean()
    entropy = -sum(map(log_likelihood, prompts, responses)) / (act != PAD).sum()
    run.print(f"{loss:.3f} nats per word of new texts; the entropy of the language is {entropy:.3f}")


def ranked_responses(agent, actors, size, args):
    """Prompts [B, P], K responses by the actors in turn, best first [B, K, T], and their gold scores [B, K]."""
    obs = encode(random.choices(ALL_PROMPTS, k=size))
    acts = [sample(actors[k % len(actors)], obs, MAX_WORDS) for k in range(args.num_ranked)]
    gold = torch.stack([agent.gold(obs, act) for act in acts], 1)
    order = rank(gold, args.label_noise)
    ranked = torch.stack(acts, 1).take_along_dim(order.unsqueeze(2), 1)
    return obs, ranked, gold.take_along_dim(order, 1)


def compare(agent, run, args):
    """The judge ranks responses of the reference; from the second round on, every other one is the policy's."""
    actors = [agent.actor, agent.reference] if run.round else [agent.reference]
    chunks, agree = torch.arange(args.num_comparisons).split(CHUNK), []
    for step in run.steps(len(chunks)):
        rows = chunks[step] + run.round * args.num_comparisons
        agent.prompts[rows], agent.rankings[rows], gold = ranked_responses(agent, actors, len(rows), args)
        agree += [pair_accuracy(gold, gold, args.label_noise)[1].item()] * len(rows)
        run.report(gold=gold.mean())
    agree = np.mean(agree)
    run.print(f"{args.num_comparisons} rankings of {args.num_ranked}; {agree:.0%} of pairs are as the judge sees them")


def ranking_minibatches(agent, run, optimizer, args):
    """Yield shuffled rankings of all rounds: prompts [B K, P] and responses [B K, T]."""
    num_rankings = args.num_comparisons * (run.round + 1)
    parts = num_rankings // TEXTS
    for step in run.steps(args.reward_epochs * parts, optimizer):
        shuffle = torch.Generator(args.device).manual_seed(args.seed + step // parts)  # the same after a resume
        rows = torch.randperm(num_rankings, generator=shuffle).split(TEXTS)[step % parts]
        obs = agent.prompts[rows].repeat_interleave(args.num_ranked, 0)
        yield obs, agent.rankings[rows].flatten(0, 1)


def fit_reward(agent, run, args):
    """The reward model learns to predict the rankings; then its scores of the reference get mean 0 and variance 1."""
    model = agent.reward_model
    optimizer = adam(args.reward_learning_rate, [model], args.frozen_layers)
    for obs, act in ranking_minibatches(agent, run, optimizer, args):
        loss = preference_loss(model.after_last_action(obs, act).view(-1, args.num_ranked))
        run.report(loss=loss, grad_norm=gradient_step(optimizer, loss, args.max_grad_norm))

    with torch.no_grad():
        obs, act, gold = ranked_responses(agent, [agent.reference], 2_000, args)
        score = model.after_last_action(obs.repeat_interleave(args.num_ranked, 0), act.flatten(0, 1))
        agent.score_std.copy_(score.std())
        model.head.weight /= score.std()
        model.head.bias.copy_((model.head.bias - score.mean()) / score.std())
    agent.critic.load_state_dict(model.state_dict())  # as in Ouyang et al.: better than a random start
    accuracy, best = pair_accuracy(score.view_as(gold), gold, args.label_noise)
    run.print(f"predicts {accuracy:.1%} of new noisy pairs; knowing the judge, one could predict {best:.1%}")


def improve(agent, run, args):
    """PPO, RLOO and GRPO: sample responses, score them, update the policy."""
    models = [agent.actor, agent.critic] if args.algorithm == "ppo" else [agent.actor]
    optimizer = adam(args.learning_rate, models, args.frozen_layers)
    group_size = 1 if args.algorithm == "ppo" else args.group_size
    for _ in run.steps(args.iterations, optimizer):
        # Collect responses of the current policy.
        prompts = random.choices(ALL_PROMPTS, k=args.batch_size // group_size)
        obs = encode(prompts).repeat_interleave(group_size, 0)
        act = sample(agent.actor, obs, MAX_WORDS)

        # Estimate advantages: how much better than expected was each word?
        with torch.no_grad():
            logp, ref_logp, metrics = assess(agent, agent.actor, obs, act)
            adv, ret = advantages(agent, obs, act, metrics["score"], logp - ref_logp, args)

        # Update the policy, and with PPO the critic.
        metrics |= update(agent, optimizer, Batch(obs, act, adv, ret, logp, ref_logp), args)
        run.report(kl_coef=agent.kl_coef, **metrics)
        if args.kl_target:
            kl = metrics["kl"].mean().item()
            agent.kl_coef.fill_(adapt_kl_coef(agent.kl_coef.item(), kl, args.kl_target, args.batch_size))


def improve_directly(agent, run, args):
    """DPO: fit the policy itself to the rankings. The reward model only says what one unit of score is."""
    optimizer = adam(args.learning_rate, [agent.actor], args.frozen_layers)
    for obs, act in ranking_minibatches(agent, run, optimizer, args):
        with torch.no_grad():
            ref_logp = agent.reference.policy(obs, act).log_prob(act)
        log_ratio = (agent.actor.policy(obs, act).log_prob(act) - ref_logp).sum(1)
        loss = dpo_loss(log_ratio.view(-1, args.num_ranked), agent.kl_coef * agent.score_std)
        run.report(loss=loss, grad_norm=gradient_step(optimizer, loss, args.max_grad_norm))


def train(args):
    """Train a policy and return it; the results are in the run's folder. Raises InputError, FloatingPointError."""
    setup(args)
    agent = Agent(args)
    if args.resume:
        restore(agent, args)
    if args.prompt:
        return answer(agent, args.prompt)

    last = improve_directly if args.algorithm == "dpo" else improve
    stages = [last] if args.reward == "judge" else [compare, fit_reward, last]
    with Run(args, agent) as run:  # at its end: evaluate
        for stage in run.stages([finetune, *stages * args.rounds]):
            stage(agent, run, args)
    return agent


# The models.


class Categorical:
    """Distributions of the next word; params: unnormalized log-probabilities [..., V]."""

    def __init__(self, params):
        self.params = params.log_softmax(-1)  # normalized

    def sample(self):
        gumbel = -torch.empty_like(self.params).exponential_().log()
        return (self.params + gumbel).argmax(-1)  # Gumbel-max trick

    def log_prob(self, act):
        """Log-probability of each action, 0 for padding."""
        index = act.clamp(min=0).unsqueeze(-1)
        return self.params.gather(-1, index).squeeze(-1) * (act != PAD)

    def kl(self, other):
        log_ratio = self.params - other.params
        return (self.params.exp() * log_ratio).sum(-1)


class Block(nn.Module):
    """Causal self-attention over L words, then two layers for each word (Vaswani et al. 2017)."""

    def __init__(self, size, num_heads):
        super().__init__()
        self.num_heads, self.norm1, self.norm2 = num_heads, nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.wide, self.narrow = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x, past=None):
        """x [B, L, D] -> x, and keys and values; past: those of the words before, and then L must be 1."""
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1))  # [B, L, 3, H, D / H]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, L, D / H] each
        if past:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v)))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=not past)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))
        return x, (k, v)


class Transformer(nn.Module):
    """Reads a text word by word and gives numbers after each: logits of the next word, or one, a score or a value."""

    def __init__(self, num_words, max_length, outputs, args):
        super().__init__()
        self.word, self.position = nn.Embedding(num_words, args.d_model), nn.Embedding(max_length, args.d_model)
        self.blocks = nn.ModuleList(Block(args.d_model, args.num_heads) for _ in range(args.num_layers))
        self.norm, self.head = nn.LayerNorm(args.d_model), nn.Linear(args.d_model, outputs)
        nn.init.normal_(self.word.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, text, cache=None):
        """[B, L] -> [B, L, outputs]; cache: an empty list at first, which then holds keys and values of the text."""
        past = cache or [None] * len(self.blocks)
        start = past[0][0].shape[2] if cache else 0
        position = torch.arange(start, start + text.shape[1])
        x = self.word(text.clamp(min=0)) + self.position(position)  # padding is on the right: no word attends to it
        for i, block in enumerate(self.blocks):
            x, past[i] = block(x, past[i])
        if cache is not None:
            cache[:] = past
        return self.head(self.norm(x))

    def before_each_action(self, obs, act):
        """Outputs for the prompt and the words before each action of responses: [B, P], [B, T] -> [B, T, outputs]."""
        text = torch.cat([obs, act], 1)
        return self(text[:, :-1])[:, obs.shape[1] - 1 :]

    def after_last_action(self, obs, act):
        """The only output for prompts and whole responses: [B, P], [B, T] -> [B]."""
        output = self(torch.cat([obs, act], 1))
        last = obs.shape[1] + (act != PAD).sum(1) - 1
        return output[torch.arange(len(obs)), last, 0]

    def policy(self, obs, act):
        """Distribution of each action of responses, given the words before it: [B, P], [B, T] -> [B, T, V]."""
        return Categorical(self.before_each_action(obs, act))


@torch.no_grad()
def sample(actor, obs, length):
    """Responses of up to length actions to prompts: [B, P] -> [B, length]."""
    act, cache, text = obs.new_full((len(obs), length), PAD), [], obs
    unfinished = torch.ones(len(obs), dtype=torch.bool)
    for t in range(length):
        word = Categorical(actor(text, cache)[:, -1]).sample()  # [B]
        act[unfinished, t] = word[unfinished]
        unfinished &= word != EOS
        if not unfinished.any():
            break
        text = word[:, None]
    return act


class Agent(nn.Module):
    """All that is learned or collected: policy and value function, reference and reward model, the rankings, beta."""

    def __init__(self, args, num_words=NUM_WORDS, prompt_words=PROMPT_WORDS, max_words=MAX_WORDS):
        super().__init__()
        length = prompt_words + max_words
        self.actor, self.reference = (Transformer(num_words, length, num_words, args) for _ in range(2))
        self.critic, self.reward_model = (Transformer(num_words, length, 1, args) for _ in range(2))
        num_rankings = args.num_comparisons * args.rounds
        self.prompts = nn.Buffer(torch.full((num_rankings, prompt_words), PAD))
        self.rankings = nn.Buffer(torch.full((num_rankings, args.num_ranked, max_words), PAD))
        self.score_std = nn.Buffer(torch.ones(()))  # of the reward model, before its scores were standardized
        self.kl_coef = nn.Buffer(torch.tensor(args.kl_coef))
        self.use_judge = args.reward == "judge"
        module, _, function = args.judge.partition(":")
        try:
            self.judge = getattr(importlib.import_module(module), function) if args.judge else judge
            if not callable(self.judge):
                raise TypeError(f"{function} is not a function")
        except (ValueError, TypeError, ImportError, AttributeError) as error:
            raise InputError(f"--judge {args.judge}: {error}; expected my_module:function") from error

    def value(self, obs, act):
        """Expected sum of the rewards from each action on, given the words before it: [B, P], [B, T] -> [B, T]."""
        return self.critic.before_each_action(obs, act).squeeze(2)

    def gold(self, obs, act):
        """The judge's scores of responses: [B, P], [B, T] -> [B]."""
        texts = map(" ".join, zip(decode(obs), decode(act)))
        return torch.tensor([float(self.judge(text)) for text in texts])

    def score(self, obs, act):
        """What the policy is rewarded for, scores by the reward model or the judge: [B, P], [B, T] -> [B]."""
        score = self.gold(obs, act) if self.use_judge else self.reward_model.after_last_action(obs, act)
        return torch.where((act == EOS).any(1), score, score.clamp(max=UNFINISHED))


def adam(learning_rate, models, frozen_layers=0):
    """Adam for all parameters of models, or for those above the frozen layers."""
    for model in models if frozen_layers else []:
        for module in [model.word, model.position, *model.blocks[:frozen_layers]]:
            module.requires_grad_(False)
    params = [p for model in models for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(params, learning_rate, eps=1e-5, fused=True)


# Evaluation.


def assess(agent, actor, obs, act):
    """Responses of actor: log-probabilities under it and under the reference [B, T], and metrics {name: [B]}."""
    pi, ref = actor.policy(obs, act), agent.reference.policy(obs, act)
    is_action = act != PAD
    log_likelihoods = torch.tensor(list(map(log_likelihood, decode(obs), decode(act))))
    metrics = {
        "score": agent.score(obs, act),
        "gold": agent.gold(obs, act),  # nothing learns from it
        "kl": (pi.kl(ref) * is_action).sum(1),  # sums over all words that could have come next: never negative
        "length": is_action.sum(1).float(),
        "finished": (act == EOS).any(1).float(),
        "grammatical": log_likelihoods.isfinite().float(),
    }
    return pi.log_prob(act), ref.log_prob(act), metrics


@torch.no_grad()
def evaluate(agent, num_responses):
    """Results of reference and policy on all prompts: means, win rate, J and its optimum; and a text of each."""
    repeats = max(1, num_responses // len(ALL_PROMPTS))
    obs = encode(ALL_PROMPTS).repeat_interleave(repeats, 0)
    results, columns, texts = {"kl_coef": agent.kl_coef.item()}, [], [ALL_PROMPTS]
    for name, actor in ("reference", agent.reference), ("policy", agent.actor):
        act = sample(actor, obs, MAX_WORDS)
        _, ref_logp, metrics = assess(agent, actor, obs, act)
        logp = agent.actor.policy(obs, act).log_prob(act)
        score, gold = metrics["score"], metrics["gold"]
        metrics["J"] = score - agent.kl_coef * metrics["kl"]
        results[name] = {key: x.mean().item() for key, x in metrics.items()}
        results[name]["gold_std"] = gold.std().item()
        column = torch.stack([gold, score, logp.sum(1), ref_logp.sum(1)])
        columns.append(column.double().view(4, -1, repeats))  # [4, prompts, samples]
        texts += [gold.tolist()[::repeats], decode(act)[::repeats]]

    results["win_rate"] = win_rate(columns[1][0], columns[0][0]).item()
    if agent.kl_coef > 0:  # otherwise the optimum is the highest score of any text
        _, *both = torch.cat(columns, 2)
        results["J_optimum"] = optimum(*both, agent.kl_coef).item()
    return results, zip(*texts)


def answer(agent, prompt):
    """Print three responses of reference and policy to a prompt."""
    obs = encode([prompt] * 3)
    for name, actor in ("before", agent.reference), ("after", agent.actor):
        for text in decode(sample(actor, obs, MAX_WORDS)):
            print(f"{name:8}{text}")


# From here on: folder, checkpoints, flags.


class InputError(ValueError):
    """Invalid flag or checkpoint; the message names it and says what is accepted."""


class Run:
    """Folder, stages, checkpoints, metrics and evaluation of one run."""

    COLUMNS = "stage step seconds loss grad_norm score gold kl kl_coef length finished grammatical"
    COLUMNS = [*COLUMNS.split(), "policy_loss", "value_loss"]

    def __init__(self, args, agent):
        self.args, self.agent, self.optimizer, self.optimizer_state = args, agent, None, None
        self.stage, self.step, self.seconds, self.metrics_size = 0, 0, 0.0, 0
        if args.resume:
            saved = load(args.resume)
            self.stage, self.step, self.seconds = saved["stage"], saved["step"], saved["seconds"]
            self.metrics_size, self.optimizer_state = saved["metrics_size"], saved["optimizer"]
        self.start = time.perf_counter() - self.seconds
        name = f"runs/rlhf__{args.algorithm}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        self.folder = Path(args.run_dir or (Path(args.resume).parent if args.resume else name))
        self.checkpoint = self.folder / "checkpoint.pt"
        try:
            self.open_files()
        except OSError as error:
            raise InputError(f"--run-dir {self.folder}: {error}") from error

    def open_files(self):
        """Create the folder with args.json and metrics.csv."""
        resume = self.args.resume
        if self.checkpoint.exists() and not (resume and self.checkpoint.samefile(resume)):
            raise InputError(f"--run-dir {self.folder}: contains a run; choose another or --resume {self.checkpoint}")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "args.json").write_text(json.dumps(vars(self.args), indent=2))
        self.metrics = open(self.folder / "metrics.csv", "a", newline="")
        self.metrics.seek(min(self.metrics_size, self.metrics.tell()))
        self.metrics.truncate()  # drop rows after the checkpoint

    def __enter__(self):
        return self

    def __exit__(self, exc_type, *_):
        if exc_type is KeyboardInterrupt:
            print(f"\nstopped in {self.name}; continue with --resume {self.checkpoint}", file=sys.stderr)
        if exc_type is None:
            self.finish()

    def stages(self, stages):
        """Yield the stages that are left; round counts from 0."""
        for number, stage in enumerate(stages):
            self.name, self.round = stage.__name__, stages[:number].count(stage)
            if number == self.stage:
                yield stage
                self.stage, self.step, self.optimizer = number + 1, 0, None

    def steps(self, total, optimizer=None):
        """Yield the steps of a stage that are left; sets the learning rate: linear warmup times linear decay to 0."""
        self.optimizer, state, self.optimizer_state = optimizer, self.optimizer_state, None
        if state:
            optimizer.load_state_dict(state)
        left = range(self.step, total)
        self.bar = tqdm(left, self.name, total, initial=self.step, disable=None)
        for step in self.bar:
            self.step = step
            if step % self.args.checkpoint_every == 0:
                self.save()
            if optimizer:
                factor = min((step + 1) / (WARMUP * total), 1) * (1 - step / total)
                optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * factor
            yield step

    def save(self):
        """Write a checkpoint and reseed, so that a resumed run continues exactly as this one."""
        sequence = np.random.SeedSequence((self.args.seed, self.stage, self.step))
        (seed,) = sequence.generate_state(1).tolist()
        random.seed(seed)
        torch.manual_seed(seed)
        saved = {
            "format": CHECKPOINT,
            "args": vars(self.args),
            "agent": self.agent.state_dict(),
            "optimizer": self.optimizer and self.optimizer.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "metrics_size": self.metrics.tell(),
        }
        try:
            torch.save(saved, f"{self.checkpoint}.new")
        except RuntimeError as error:  # torch does not say why
            raise OSError(f"cannot write {self.checkpoint}.new; the disk is full or the folder gone") from error
        os.replace(f"{self.checkpoint}.new", self.checkpoint)  # atomic, so there is always a complete checkpoint

    def report(self, **metrics):
        """Write a row of metrics. Raises FloatingPointError if one is nan or infinite."""
        self.seconds = time.perf_counter() - self.start
        numbers = {name: value.mean().item() for name, value in metrics.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                hint = f"try a smaller learning rate; check the judge; last good checkpoint: {self.checkpoint}"
                raise FloatingPointError(f"{name} is {value} at step {self.step} of {self.name}; {hint}")
        writer = csv.DictWriter(self.metrics, self.COLUMNS)
        if self.metrics.tell() == 0:
            writer.writeheader()
        writer.writerow({"stage": self.name, "step": self.step, "seconds": self.seconds, **numbers})
        self.metrics.flush()
        shown = {name: value for name, value in numbers.items() if name in ("loss", "score", "kl")}
        self.bar.set_postfix(shown, refresh=False)

    def print(self, result):
        print(f"{self.name}: {result} ({self.seconds:.0f} s)", flush=True)

    def finish(self):
        """Save, evaluate reference and policy, write eval.json and samples.txt, print the results."""
        self.save()
        results, texts = evaluate(self.agent, self.args.eval_responses)
        (self.folder / "eval.json").write_text(json.dumps(results | {"seconds": self.seconds}, indent=2))
        samples = [f"{p}\n    before {g:5.1f}  {b}\n    after  {h:5.1f}  {a}\n" for p, g, b, h, a in texts]
        (self.folder / "samples.txt").write_text("".join(samples))

        before, after, wins = results["reference"], results["policy"], results["win_rate"]
        best = f"; the optimum is about {results['J_optimum']:.2f}" if "J_optimum" in results else ""
        self.print(f"J {before['J']:.2f} -> {after['J']:.2f}{best}. Score {after['score']:.2f}, KL {after['kl']:.1f}")
        print("".join(samples[::5]))
        gold = f"{before['gold']:.2f} -> {after['gold']:.2f}, wins {wins:.0%}"
        print(f"eval: gold {gold}, {after['grammatical']:.0%} grammatical ({self.folder})")


def gradient_step(optimizer, loss, max_grad_norm):
    """Minimize loss by one step, with clipped gradients; returns their norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_grad_norm)
    optimizer.step()
    return norm


def check_limits(args):
    """Raise InputError for a number outside LIMITS; by default integers are at least 1 and floats at least 0."""
    for name, value in vars(args).items():
        default = getattr(Args, name)
        if isinstance(default, (str, bool)) or value is None:
            continue
        whole = isinstance(default, (int, tuple))
        low, high = LIMITS.get(name, (int(whole), math.inf))
        if not all(low <= number <= high for number in np.ravel(value)):  # nan is never within limits
            limits = f"between {low} and {high}" if high < math.inf else f"at least {low}"
            raise InputError(f"--{name.replace('_', '-')} {value}: must be {limits}")


def setup(args):
    """Check the flags, seed torch and choose its device. Raises InputError."""
    check_limits(args)
    groups = [("batch_size", "group_size")] if args.algorithm in ("rloo", "grpo") else []
    for size, part in ("batch_size", "num_minibatches"), ("d_model", "num_heads"), *groups:
        if getattr(args, size) % getattr(args, part):
            flag, other = part.replace("_", "-"), size.replace("_", "-")
            raise InputError(f"--{flag} {getattr(args, part)}: must divide --{other} {getattr(args, size)}")
    if args.algorithm == "dpo" and args.reward == "judge":
        raise InputError("--reward judge: dpo learns from rankings only")
    if args.kl_target and (args.algorithm == "dpo" or not args.kl_coef):
        raise InputError(f"--kl-target {args.kl_target}: needs a positive --kl-coef; not for dpo")
    if args.prompt and not args.resume:
        raise InputError("--prompt: needs --resume and a checkpoint")
    if args.prompt not in ["", *ALL_PROMPTS]:
        raise InputError(f"--prompt {args.prompt}: expected one of {', '.join(ALL_PROMPTS)}")
    try:
        torch.set_default_device(torch.zeros(1, device=args.device).device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))  # more threads slow small networks down
    torch.manual_seed(args.seed)


def load(path):
    """Contents of a checkpoint of this script. Raises InputError for any other file."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # refuses files that run code
        found = saved["format"]
    except Exception as error:
        raise InputError(f"--resume {path}: not a checkpoint ({type(error).__name__})") from error
    if found != CHECKPOINT:
        raise InputError(f"--resume {path}: a checkpoint of {found}, not {CHECKPOINT}")
    return saved


def restore(agent, args):
    """Load what an agent has learned so far. Raises InputError."""
    saved = load(args.resume)
    try:
        agent.load_state_dict(saved["agent"])
    except Exception as error:
        raise InputError(f"--resume {args.resume}: its agent does not fit the flags") from error
    for name in "algorithm", "reward", "frozen_layers":  # with others, stages and optimizers differ
        if getattr(args, name) != saved["args"][name]:
            raise InputError(f"--resume {args.resume}: made with another --{name.replace('_', '-')}")
    if not args.kl_target:
        agent.kl_coef.fill_(args.kl_coef)


def main():
    """Command line. Exit status: 2 invalid input, 1 numbers that are not finite or a full disk, 130 Ctrl-C."""
    try:
        args = tyro.cli(Args, description=__doc__)
        if args.resume:  # the checkpoint's flags, unless given again
            new = {"resume": args.resume, "run_dir": "", "prompt": ""}
            try:
                args = tyro.cli(Args, default=Args(**load(args.resume)["args"] | new))
            except (KeyError, TypeError) as error:
                raise InputError(f"--resume {args.resume}: flags of another version ({error})") from error
        train(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, FloatingPointError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
