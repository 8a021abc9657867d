"""The mathematics of vpg.py: all four weights psi give the gradient, and each has less variance than the last.

Nothing is sampled here. Episodes of a small decision process are enumerated with their probabilities, so that means and
variances are exact.
"""

import itertools

import numpy as np
import pytest
import torch

import vpg
from tests.helpers import column, flags, make_agent, make_batch, update, watch_steps

FORMS = "total-return", "reward-to-go", "baseline", "gae"


def psi(form, rew, val, next_val, terminated, done, gamma, lam):
    """Of scaled rewards. The rollout's own rewards are not scaled, and not to be used."""
    rollout = vpg.Rollout(None, None, None, None, terminated, done)
    return vpg.compute_psi(form, rollout, rew, val, next_val, gamma, lam)


class Enumeration:
    """All episodes of 3 steps in a process with 2 states and 2 actions, under a softmax policy; a column for each.

    The next state is 1 with probability MOVE[state][action], and REWARD[state][action] is paid.
    """

    T, MOVE, REWARD = 3, [[0.1, 0.7], [0.4, 0.8]], [[3.0, 5.0], [6.0, 2.0]]

    def __init__(self):
        self.theta = torch.tensor([[0.3, -0.2], [-0.5, 0.4]], dtype=torch.float64, requires_grad=True)
        self.log_pi = self.theta.log_softmax(-1)
        states, actions, worlds = [], [], []
        for path in itertools.product([0, 1], repeat=2 * self.T):
            acts, nexts = path[: self.T], path[self.T :]
            states.append((0, *nexts))
            actions.append(acts)
            moves = [self.MOVE[s][a] for s, a in zip(states[-1], acts)]
            worlds.append(np.prod([p if s == 1 else 1 - p for p, s in zip(moves, nexts)]))
        self.state, self.act = torch.tensor(states).T, torch.tensor(actions).T  # [T + 1, 64], [T, 64]
        self.log_prob = self.log_pi[self.state[:-1], self.act]  # [T, 64]
        self.probability = torch.tensor(worlds) * self.log_prob.sum(0).exp()  # [64]
        self.rew = torch.tensor(self.REWARD, dtype=torch.float64)[self.state[:-1], self.act]
        self.done = torch.zeros_like(self.act, dtype=torch.bool)
        self.done[-1] = True

    def gradient(self, gamma):
        """Exact gradient of the expected discounted return."""
        ret = sum(gamma**t * self.rew[t] for t in range(self.T))
        return torch.autograd.grad((self.probability * ret).sum(), self.theta, retain_graph=True)[0].flatten()

    def values(self, gamma):
        """Exact values [T + 1, 64] of the states visited, by dynamic programming."""
        move, rew, pi = torch.tensor(self.MOVE), torch.tensor(self.REWARD), self.log_pi.exp().detach()
        table = torch.zeros(self.T + 1, 2, dtype=torch.float64)
        for t in reversed(range(self.T)):
            following = (1 - move) * table[t + 1, 0] + move * table[t + 1, 1]
            table[t] = (pi * (rew + gamma * following)).sum(-1)
        return torch.stack([table[t, self.state[t]] for t in range(self.T + 1)])

    def mean_and_variance(self, form, gamma, lam=0.0):
        """Of the gradient that one episode gives, over all episodes."""
        val = self.values(gamma)
        weight = psi(form, self.rew, val[:-1], val[1:], self.done, self.done, gamma, lam)
        scores = (weight * self.log_prob).sum(0)
        episodes = [torch.autograd.grad(x, self.theta, retain_graph=True)[0].flatten() for x in scores]
        gradients, probability = torch.stack(episodes), self.probability.detach()[:, None]
        mean = (probability * gradients).sum(0)
        return mean, (probability * (gradients - mean) ** 2).sum()


@pytest.mark.parametrize("form", FORMS)
def test_each_weight_gives_the_exact_gradient_of_the_expected_return(form):
    world = Enumeration()
    assert world.probability.sum().item() == pytest.approx(1)
    mean, _ = world.mean_and_variance(form, gamma=1.0)
    torch.testing.assert_close(mean, world.gradient(gamma=1.0))


def test_each_weight_has_less_variance_than_the_one_before():
    world = Enumeration()
    variances = [world.mean_and_variance(form, gamma=1.0)[1].item() for form in FORMS]
    assert variances == sorted(variances, reverse=True)
    assert variances[0] > 10 * variances[2]


def test_only_the_total_return_stays_exact_under_a_discount():
    """Discounted from each step on, late steps count as much as early ones: gamma^t is missing."""
    world = Enumeration()
    exact = world.gradient(gamma=0.5)
    torch.testing.assert_close(world.mean_and_variance("total-return", gamma=0.5)[0], exact)
    biased = world.mean_and_variance("reward-to-go", gamma=0.5)[0]
    assert (biased - exact).norm() > 0.1 * exact.norm()
    for form in ("baseline", "gae"):
        torch.testing.assert_close(world.mean_and_variance(form, gamma=0.5)[0], biased)


def test_with_gamma_to_the_t_reward_to_go_is_exact_too():
    world = Enumeration()
    weight = vpg.reward_to_go(world.rew, world.done, 0.5) * 0.5 ** torch.arange(3)[:, None]
    exact = world.gradient(gamma=0.5)
    scores = (world.probability.detach() * (weight * world.log_prob).sum(0)).sum()
    torch.testing.assert_close(torch.autograd.grad(scores, world.theta)[0].flatten(), exact)


def test_a_wrong_critic_leaves_the_baseline_exact_and_biases_gae():
    world = Enumeration()
    values = world.values
    world.values = lambda gamma: values(gamma) + torch.tensor([[2.0], [-3.0], [5.0], [0.0]]) * world.state
    torch.testing.assert_close(world.mean_and_variance("baseline", gamma=1.0)[0], world.gradient(gamma=1.0))
    assert (world.mean_and_variance("gae", gamma=1.0)[0] - world.gradient(gamma=1.0)).norm() > 0.1


# The weights by hand: two episodes in one environment, of 2 steps and 1, discounted by 1/2


REW, DONE, NEVER = column(1, 2, 8), flags(0, 1, 1), flags(0, 0, 0)


@pytest.mark.parametrize(
    ("form", "weights"),
    [
        ("total-return", [1 + 2 / 2, 1 + 2 / 2, 8]),
        ("reward-to-go", [1 + 2 / 2, 2, 8]),
        ("baseline", [2 - 10, 2 - 20, 8 - 30]),
        ("gae", [(1 + 20 / 2 - 10) + 1 / 4 * (2 - 20), 2 - 20, 8 - 30]),
    ],
)
def test_weights_by_hand(form, weights):
    val, next_val = column(10, 20, 30), column(20, 99, 99)  # 99: a terminal state has value 0 whatever V says
    weight = psi(form, REW, val, next_val, DONE, DONE, 0.5, 0.5)
    assert weight.flatten().tolist() == weights


def test_without_a_critic_a_time_limit_ends_the_return_and_with_one_it_does_not():
    val, next_val = column(0, 0, 0), column(0, 100, 100)
    cut = {form: psi(form, REW, val, next_val, NEVER, DONE, 0.5, 1.0) for form in FORMS}
    assert cut["total-return"].flatten().tolist() == [2, 2, 8]
    assert cut["reward-to-go"].flatten().tolist() == [2, 2, 8]
    assert cut["baseline"].flatten().tolist() == [1 + 1 + 25, 2 + 50, 8 + 50]
    assert torch.equal(cut["gae"], cut["baseline"])  # lambda = 1
    assert vpg.reward_to_go(REW, NEVER, 0.5).flatten().tolist() == [1 + 2 / 2 + 8 / 4, 2 + 8 / 2, 8]


# Whole episodes


def test_an_episode_counts_if_it_began_in_time():
    done = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)  # [5 steps, 3]
    used = vpg.started_before(3, done)  # so an episode may begin at steps 0, 1 and 2
    assert used.T.int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert vpg.started_before(5, done).all()


FEW = {"num_envs": 3, "num_steps": 20, "total_timesteps": 600, "eval_episodes": 1}
ENDLESS = {"env_id": "ProbeTimeLimit-v0", "gamma": 1.0}  # episodes of 10 steps, reward 1 at each


@pytest.mark.parametrize("form", FORMS)
def test_only_the_forms_without_a_critic_play_episodes_to_their_end(tmp_path, spy, form):
    rollouts = spy(vpg, "compute_psi", note=lambda form, rollout, *_: rollout.done)
    batches = spy(vpg, "update", note=lambda *args: args[3])
    reports = spy(vpg.Run, "report", note=lambda run, rollout, metrics: rollout.done)
    vpg.train(vpg.Args(form=form, run_dir=str(tmp_path), **FEW))
    assert len(rollouts) > 1
    for done, batch, reported in zip(rollouts, batches, reports):
        used = vpg.started_before(20, done)
        assert len(batch.psi) == used.sum()
        assert torch.equal(reported, done & used)
        if form in vpg.WITHOUT_CRITIC:
            last = used.int().sum(0) - 1
            assert used[:20].all()  # nothing that could be used is thrown away
            assert done[last, range(3)].all()  # and nothing used is incomplete
            assert len(done) == last.max() + 1
            assert batch.obs[:3].abs().max() <= 0.05  # as CartPole starts: each rollout begins with new episodes
        else:
            assert len(done) == 20
            assert used.all()


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_written_only_when_it_is_due(tmp_path, spy, form):
    """The forms without a critic reset the environments before each rollout, which takes no checkpoint.

    Here an environment takes 20 steps in a rollout and 200 in all; checkpoints are due before the first, after 80 and
    160, and at the end. There are 3 environments.
    """
    saved = spy(vpg.Run, "save", note=lambda run: run.step)
    vpg.train(vpg.Args(form=form, run_dir=str(tmp_path), checkpoint_every=80, **FEW | ENDLESS))
    assert saved == [0, 240, 480, 600]


# The update


def make(**more):
    """Agent, batch, flags; gradients are not clipped."""
    agent, args = make_agent(vpg, max_grad_norm=float("inf"), **more)
    return agent, make_batch(vpg, agent), args


def test_the_policy_takes_one_step_along_the_score_weighted_by_standardized_psi():
    agent, batch, args = make()
    before = [p.clone() for p in agent.actor.parameters()]
    batch = batch._replace(psi=5 + 3 * batch.psi)  # now the mean is 5 and the standard deviation 2.7
    objective = (agent.policy(batch.obs).log_prob(batch.act) * (batch.psi - 5) / (2.7 + 0.1)).mean()
    gradient = torch.autograd.grad(objective, list(agent.actor.parameters()))
    metrics = update(vpg, agent, batch, args, lr=0.1)
    assert metrics["policy_loss"] == pytest.approx(-objective.item(), abs=1e-6)
    assert metrics["entropy"] == pytest.approx(np.log(2), abs=0.01)  # two actions, nearly uniform at first
    for p, start, g in zip(agent.actor.parameters(), before, gradient):
        torch.testing.assert_close(p, start + 0.1 * g)


def test_the_values_take_several_steps_towards_the_returns():
    agent, batch, args = make(value_epochs=3)
    reference = make()[0].critic
    for _ in range(3):
        loss = ((reference(batch.obs).squeeze(-1) - batch.ret) ** 2).mean()
        for p, g in zip(reference.parameters(), torch.autograd.grad(loss, list(reference.parameters()))):
            p.data -= 0.1 * g
    update(vpg, agent, batch, args, lr=0.1)
    for ours, theirs in zip(agent.critic.parameters(), reference.parameters()):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_steps_of_the_policy_move_no_value_and_steps_of_the_values_no_action(tmp_path, spy, monkeypatch, env_id):
    """In two rollouts of one step on the policy and three on the values, in what order they are taken."""
    moved = watch_steps(vpg, spy, monkeypatch)
    vpg.train(vpg.Args(env_id=env_id, value_epochs=3, run_dir=str(tmp_path), **FEW | {"total_timesteps": 120}))
    assert moved == ([[True, False]] + [[False, True]] * 3) * 2  # [policy, critic]


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_without_a_critic_fit_none(form):
    agent, batch, args = make(form=form)
    before = [p.clone() for p in agent.critic.parameters()]
    metrics = update(vpg, agent, batch, args)
    untouched = all(map(torch.equal, before, agent.critic.parameters()))
    assert untouched == (metrics["value_loss"] == 0) == (form in vpg.WITHOUT_CRITIC)
