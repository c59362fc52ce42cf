"""The formula on each recipe's page, written out over stored logits, has the gradient that the recipe computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from tests.learn.recipe_inputs import INPUTS
from torch import Tensor

from afterword.config import EPISODE_RECIPES
from afterword.learn.loss.loss_stage import token_losses
from afterword.learn.loss.terms import divisors
from afterword.learn.loss.token_batch import AnswerInfo, Group, Member, Origin, TokenBatch, layout
from afterword.learn.parts.anchors import GOLD
from afterword.learn.parts.contexts import BEGUN, CONTEXTS, Context
from afterword.learn.parts.credit import EpisodeCredit
from afterword.learn.recipes import RECIPES, recipe
from afterword.model.head import Head

V = 40
LENGTHS = [5, 3, 4]
STEPS = 100
FEW: dict[str, dict[str, float]] = {
    "srpo": {"k": 4},
    "episode-sdpo": {"k": 4},
    "episode-hindsight": {"k": 4},
    "hdpo": {"k": 4},
    "sd-zero": {"k": 4},
    "sdpo": {"k": 4},
    "opcd": {"k": 4},
    "revisit-opd": {"k": 4},
    "fast-opd": {"horizon": 2},
    "varreason": {"hold": 0.5},
}
"""Fewer tokens of the support than the page's, for a vocabulary of 40."""
KINDS = {
    "rlsd": "edited",
    "hdpo": "edited",
    "sdpo": "tests",
    **dict.fromkeys(sorted(EPISODE_RECIPES), "outcome"),
    "sdft": "edited",
    "opsd": "edited",
    "opsd-clipped": "edited",
    "varreason": "edited",
    "pi-distill": "edited",
}

_TWO: tuple[Origin, Origin, Origin] = ("student", "privileged", "student")
ORIGINS: dict[str, tuple[Origin, Origin, Origin]] = dict.fromkeys(("hdpo", "sage", "rltf", "nurl", "pope"), _TWO)
ORIGINS["erl"] = ("privileged", "privileged", "student")
ORIGINS["varreason"] = ORIGINS["pi-distill"] = ("privileged",) * 3
ORIGINS["npo"] = ("student", "student", "teacher")
"""Who wrote the three answers, for recipes with several generations."""
UNDER: dict[str, Context] = {
    "hdpo": CONTEXTS["reference"], "sage": CONTEXTS["system"], "rltf": CONTEXTS["next_turn"],
    "nurl": CONTEXTS["system"], "pope": BEGUN, "erl": CONTEXTS["next_turn"],
    "varreason": CONTEXTS["reference"], "pi-distill": CONTEXTS["reference"],
}  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """What the pages' letters stand for, at the N served tokens; `z` are the student's logits."""

    z: Tensor
    t: Tensor
    r: Tensor
    ids: Tensor
    old: Tensor
    reward: Tensor
    gold: Tensor
    wrong: Tensor
    """The second answer: its reward is 0."""
    raw: Tensor
    """The reward minus its mean in the group."""

    @property
    def s(self) -> Tensor:
        return self.z.log_softmax(-1)

    def at(self, logs: Tensor) -> Tensor:
        return logs.gather(1, self.ids[:, None])[:, 0]

    @property
    def rho(self) -> Tensor:
        return (self.at(self.s) - self.old).exp()

    @property
    def gain(self) -> Tensor:
        """log T(y) - log S(y), held."""
        return (self.at(self.t) - self.at(self.s)).detach()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """[N] of log-probabilities; 0 log 0 is 0."""
    return torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum(-1)


def jsd(x: Tensor, y: Tensor) -> Tensor:
    m = ((x.exp() + y.exp()) / 2).log()
    return 0.5 * kl(x, m) + 0.5 * kl(y, m)


def ppo(k: Tokens, advantage: Tensor, high: float = 1.2) -> Tensor:
    return -torch.minimum(k.rho * advantage, k.rho.clamp(0.8, high) * advantage)


def per_answer(losses: Tensor, skip: int = 0) -> Tensor:
    pieces = [piece[skip:] for piece in torch.split(losses, LENGTHS)]
    return torch.stack([piece.mean() for piece in pieces if len(piece)]).mean()


def bucketed(logs: Tensor, at: Tensor) -> Tensor:
    """The tokens `at` and one more for the rest."""
    rest = logs.exp().scatter(1, at, 0.0).sum(-1, keepdim=True).log()
    return torch.cat([logs.gather(1, at), rest], 1)


def following(d: Tensor) -> Tensor:
    return torch.cat([
        torch.tensor([piece[i + 1 :].mean() if i + 1 < len(piece) else 0.0 for i in range(len(piece))])
        for piece in torch.split(d, LENGTHS)
    ]).double()  # fmt: skip


def online(k: Tokens) -> Tensor:
    centred = torch.cat([piece - piece.mean() for piece in torch.split(k.gain, LENGTHS)])
    return per_answer(ppo(k, centred))


def top(logs: Tensor, n: int = 4) -> Tensor:
    return logs.detach().topk(n).indices


def sdpo(k: Tokens) -> Tensor:
    at = top(k.s)
    return (k.rho.detach().clamp(max=2) * jsd(bucketed(k.t, at), bucketed(k.s, at))).mean()


def clipped(k: Tokens) -> Tensor:
    loss = kl(k.t, k.s)
    return (loss * (0.05 / loss.detach()).clamp(max=1)).mean()  # the gradient is scaled down, not dropped


def eopd(k: Tokens) -> Tensor:
    at = top(k.t, 16)
    likely = k.t.gather(1, at).log_softmax(-1)
    doubt = -(k.t.exp() * k.t).sum(-1) > 0.8
    return ppo(k, k.gain).mean() + (doubt * kl(likely, k.s.gather(1, at))).mean()


def stable(k: Tokens) -> Tensor:
    own, loss = ~k.gold, -k.at(k.s)
    return ppo(k, k.gain)[own].mean() + 0.1 * loss[k.gold].mean() + 0.1 * kl(k.s, k.t)[own].mean()


def exopd(k: Tokens) -> Tensor:
    advantage = (1.25 * k.at(k.t) - 0.25 * k.at(k.r) - k.at(k.s)).detach()
    return -(k.rho.detach().clamp(max=5) * advantage * k.at(k.s)).mean()


def reopold(k: Tokens, late: bool) -> Tensor:
    floor = math.log(0.3) / 0.7
    entropy = -(k.s.exp() * k.s).sum(-1).detach()
    fifth = torch.cat([e >= e.topk(max(1, round(0.2 * len(e)))).values[-1] for e in torch.split(entropy, LENGTHS)])
    counted = fifth if late else k.gain >= floor
    return -(counted * k.rho.detach().clamp(max=2) * k.gain.clamp(min=floor) * k.at(k.s)).sum() / counted.sum()


def veto(k: Tokens, beta: float) -> Tensor:
    return kl((k.t + beta * k.s.detach()).log_softmax(-1), k.s).mean()


def follow_ups(k: Tokens) -> Tensor:
    """KL to what lies a quarter beyond T, away from T0; tokens below a hundredth under T are not raised."""
    raised = torch.where(k.t.exp() < 0.01, (0.25 * (k.t - k.r)).clamp(max=0), 0.25 * (k.t - k.r))
    distilled, held = kl((k.t + raised).log_softmax(-1), k.s), -k.at(k.s)
    each = [piece.mean() for piece in torch.split(torch.where(k.gold, held, distilled), LENGTHS)]
    return (each[0] + each[1]) / 2 + 0.3 * each[2]  # the last answer is gold


def rlsd(k: Tokens, mix: float) -> Tensor:
    factor = (k.reward.sign() * k.gain).exp().clamp(0.8, 1.2)
    return ppo(k, k.reward * ((1 - mix) + mix * factor), high=1.28).mean()


def sdar(k: Tokens) -> Tensor:
    gate = (5 * k.gain).sigmoid()
    return ppo(k, k.reward, high=1.28).mean() - 0.01 * (gate * k.at(k.s)).mean() + 0.01 * kl(k.s, k.t).mean()


def srpo(k: Tokens) -> Tensor:
    """One divisor for both: the wrong answer to a solved prompt has a sibling's text, the right ones their reward."""
    at = top(k.s)
    sure = (k.t.exp() * k.t).sum(-1).exp() * k.wrong  # exp(-H(T))
    distilled = (sure * jsd(bucketed(k.t, at), bucketed(k.s, at))).sum() / sure.sum() * k.wrong.sum()
    return (distilled + ppo(k, k.reward, high=1.28)[~k.wrong].sum()) / len(k.wrong)


def scope(k: Tokens) -> Tensor:
    """Right answers with mean log S -1 and -2, the wrong one alone in its half of the group."""
    weight = torch.cat([torch.full((n,), w) for n, w in zip(LENGTHS, (0.537883, 1.0, 1.462117), strict=True)])
    right, wrong = -(weight * k.at(k.s))[~k.wrong].mean(), -(k.gain * k.at(k.s))[k.wrong].mean()
    return right + wrong


def hdpo(k: Tokens) -> Tensor:
    """The second answer was written by the student that knew the solution, the others were not."""
    at = top(k.t)
    likely = torch.cat([k.t.gather(1, at).log_softmax(-1), torch.full_like(k.at(k.t)[:, None], -math.inf)], 1)
    loo = k.raw * 4 / 3
    return ppo(k, loo)[~k.wrong].mean() + 0.1 * jsd(likely, bucketed(k.s, at))[k.wrong].mean()


def sage(k: Tokens) -> Tensor:
    return ppo(k, k.reward, high=1.28).mean()


def rltf(k: Tokens) -> Tensor:
    first = ppo(k, k.reward, high=1.28)[~k.wrong].mean()
    return first - ((k.raw + 0.25 - 0.5) * k.at(k.s))[k.wrong].mean()  # first attempts have a mean of a half


def rlad(k: Tokens) -> Tensor:
    r = (0.5 * (k.at(k.s) - k.old) + 0.5 * (k.at(k.s) - k.at(k.t))).exp()
    return -torch.minimum(r * k.reward, r.clamp(0.8, 1.28) * k.reward).mean()


def erl(k: Tokens) -> Tensor:
    """The last answer is a first attempt, the others second ones, of which the first is right."""
    each = torch.split(ppo(k, k.reward, high=1.28), LENGTHS)
    return each[2].mean() + torch.cat(each[:2]).mean() - torch.split(k.at(k.s), LENGTHS)[0].mean()


def pi_distill(k: Tokens) -> Tensor:
    """The stage scores each term alone, so that z stands for the student under either context."""
    knowing, plain = ppo(k, k.reward, high=1.28), -(k.reward * k.at(k.s))
    return (0.5 * knowing + 0.05 * kl(k.s, k.t) + 0.5 * plain + 0.05 * kl(k.t, k.s)).mean()


def varreason(k: Tokens) -> Tensor:
    """The first answer is right and the likeliest relative to the hint, the third right, the second wrong."""
    each = [piece.mean() for piece in torch.split(-k.at(k.s), LENGTHS)]
    right = torch.cat([torch.split(-k.at(k.s), LENGTHS)[i] for i in (0, 2)])
    return each[0] + 0.5 * right.mean()


def idft(k: Tokens, mix: float) -> Tensor:
    own, entropy = k.at(k.s).detach(), -(k.s.exp() * k.s).sum(-1).detach()
    power = 1 + mix * ((-(own + entropy)).exp().clamp(0.1, 2.0) - 1)
    return -((power * own).exp() * k.at(k.s)).mean()


def mopd(k: Tokens) -> Tensor:
    ratio = k.rho.detach()
    return -(torch.where((ratio < 0.5) | (ratio > 2), 0.0, ratio) * k.gain * k.at(k.s)).mean()


def vold(k: Tokens) -> Tensor:
    return ppo(k, k.reward, high=1.28).mean() + 0.1 * kl(k.t, k.s)[k.wrong].mean()


def across(k: Tokens) -> Tensor:
    """All four answers of the prompt are compared: their rewards are 1, 1, 1 and 0."""
    raw = k.raw + 0.25 - 0.75
    return ppo(k, raw / (0.5 + 1e-4), high=1.28).mean()


def skill_sd(k: Tokens) -> Tensor:
    """rho k3, both differentiated, k3 held at its bound."""
    away = (k.at(k.s) - k.at(k.t).detach()).clamp(-20, 20)
    k3 = ((-away).exp() - 1 + away).clamp(max=10)
    return ppo(k, k.reward, high=1.28).mean() + 0.001 * (k.rho * k3).mean()


def opid(k: Tokens) -> Tensor:
    """All three turns have a skill."""
    both = k.reward + 0.001 * (k.at(k.t) - k.old)
    return ppo(k, both).mean() + 0.01 * kl(k.s, k.t).mean()


def tamtrl(k: Tokens) -> Tensor:
    """p is 0.2, 0.9 and 0.6 with outcomes 1, 0 and 1: R is 0, 0 and 4/7."""
    shared = torch.tensor([0.0, 0.0, 4 / 7]).double()
    advantage = (shared - shared.mean()) / (shared.std() + 1e-4)
    each = torch.cat([torch.full((n,), float(a)) for n, a in zip(LENGTHS, advantage, strict=True)]).double()
    return ppo(k, each, high=1.28).mean() + 0.001 * kl(k.s, k.t).mean()


def episode_hindsight(k: Tokens) -> Tensor:
    at = top(k.s)
    failed = jsd(bucketed(k.t, at), bucketed(k.s, at))[k.wrong].mean()
    return ppo(k, k.reward, high=1.28).mean() + 0.1 * failed


PAGES: dict[tuple[str, int], Callable[[Tokens], Tensor]] = {
    ("follow-ups", 0): follow_ups,
    ("sdpo-interactions", 0): lambda k: per_answer(kl(k.t, k.s)),
    ("sdpo-interactions-offline", 0): lambda k: per_answer(-k.gain * k.at(k.s), skip=2),
    ("sdpo-interactions-online", 0): online,
    ("sdpo", 0): sdpo,
    ("sdft", 0): lambda k: per_answer(kl(k.t, k.s), skip=3),
    ("opsd", 0): lambda k: jsd(k.t, k.s).mean(),
    ("opsd-clipped", 0): clipped,
    ("opcd", 0): lambda k: per_answer(kl(bucketed(k.s, top(k.s)), bucketed(k.t, top(k.s)))),
    ("gkd", 0): lambda k: jsd(k.t, k.s).mean(),
    ("minillm", 0): lambda k: ppo(k, following(k.gain)).mean() + kl(k.s, k.t).mean(),
    ("opd", 0): lambda k: -(k.gain * k.at(k.s)).mean(),
    ("eopd", 0): eopd,
    ("veto", 0): lambda k: veto(k, 0.8),
    ("veto", STEPS - 1): lambda k: veto(k, 0.0),
    ("stable-opd", 0): stable,
    ("revisit-opd", 0): lambda k: kl(
        k.s.gather(1, top(k.t)).log_softmax(-1), k.t.gather(1, top(k.t)).log_softmax(-1)
    ).mean(),
    ("exopd", 0): exopd,
    ("reopold", 0): lambda k: reopold(k, late=False),
    ("reopold", STEPS - 1): lambda k: reopold(k, late=True),
    ("sft", 0): lambda k: per_answer(-k.at(k.s)),
    ("grpo", 0): lambda k: ppo(k, k.reward, high=1.28).mean(),
    ("crisp", 0): lambda k: per_answer(kl(k.s, k.t)),
    ("essd", 0): lambda k: -k.at(k.s).mean(),
    ("dasd", 0): lambda k: -k.at(k.s).mean(),
    ("kdrl", 0): lambda k: (ppo(k, k.reward, high=1.28) + 2e-3 * (k.at(k.s) - k.at(k.t)) ** 2 / 2).mean(),
    ("rlad", 0): rlad,
    ("rlsd", 0): lambda k: rlsd(k, 0.5),
    ("rlsd", 50): lambda k: rlsd(k, 0.0),
    ("sdar", 0): sdar,
    ("srpo", 0): srpo,
    ("scope", 0): scope,
    ("hdpo", 0): hdpo,
    ("sage", 0): sage,
    ("rltf", 0): rltf,
    ("fast-opd", 0): lambda k: torch.cat([piece[:2] for piece in torch.split(kl(k.s, k.t), LENGTHS)]).mean(),
    ("lightning-opd", 0): lambda k: -(k.rho.detach().clamp(max=2) * k.gain * k.at(k.s)).mean(),
    ("mopd", 0): mopd,
    ("idft", 0): lambda k: idft(k, 0.0),
    ("idft", STEPS - 1): lambda k: idft(k, 1.0),
    ("iterative-sft", 0): lambda k: -k.at(k.s).mean(),
    ("varreason", 0): varreason,
    ("nurl", 0): across,
    ("pope", 0): sage,
    ("npo", 0): across,
    ("erl", 0): erl,
    ("pi-distill", 0): pi_distill,
    ("vold", 0): vold,
    ("episode-grpo", 0): lambda k: ppo(k, k.reward, high=1.28).mean(),
    ("episode-sdar", 0): sdar,
    ("skill-sd", 0): skill_sd,
    ("opid", 0): opid,
    ("tamtrl", 0): tamtrl,
    ("episode-sdpo", 0): sdpo,
    ("episode-opd", 0): lambda k: -(k.gain * k.at(k.s)).mean(),
    ("episode-hindsight", 0): episode_hindsight,
    ("ra-opd", 0): lambda k: kl(k.s, k.t)[k.wrong].mean(),
    ("sd-zero", 0): lambda k: kl(bucketed(k.s, top(k.s)), bucketed(k.t, top(k.s))).mean(),
}


def with_shares(answers: list[AnswerInfo]) -> list[AnswerInfo]:
    """Turns of one task with the mean probability of their tokens under the teacher."""
    shares = [(("p_teacher", p),) for p in (0.2, 0.9, 0.6)]
    members = tuple(Member(a.reward, a.origin, p) for a, p in zip(answers, shares, strict=True))
    group = Group(size=3, mean=2 / 3, deviation=0.57735, members=members)
    return [replace(a, measures=p, group=group) for a, p in zip(answers, shares, strict=True)]


def case(name: str) -> tuple[Tokens, TokenBatch]:
    generator = torch.Generator().manual_seed(3)
    n = sum(LENGTHS)
    z, t, r = (2 * torch.randn(n, V, generator=generator, dtype=torch.float64) for _ in range(3))
    ids = torch.randint(V, (n,), generator=generator)
    old = z.log_softmax(-1).gather(1, ids[:, None])[:, 0] + torch.linspace(-1, 1, n).double()
    whose: Origin = "privileged" if name == "varreason" else "served"
    members = [
        Member(reward, whose, (("logp_student", logp), ("logp_teacher", -0.5)))
        for reward, logp in ((1.0, -1.0), (1.0, -2.0))
    ]
    members += [Member(reward, "student") for reward in (1.0, 0.0)]
    group = Group(size=4, mean=0.25, deviation=0.5, members=tuple(members))
    kinds = [KINDS.get(name, "follow_up")] * 2 + [
        GOLD if name in ("follow-ups", "stable-opd") else KINDS.get(name, "follow_up")
    ]
    origins, under = ORIGINS.get(name, ("served",) * 3), UNDER.get(name)
    answers = [
        AnswerInfo(
            kind=kind, reward=value, group=group, origin=origin,
            measures=(("logp_student", logp), ("logp_teacher", -0.5)),
            under=under if origin == "privileged" else None,
        )
        for kind, value, origin, logp in zip(kinds, (1.0, 0.0, 1.0), origins, (-1.0, -3.0, -2.0), strict=True)
    ]  # fmt: skip
    if name == "tamtrl":
        answers = with_shares(answers)
    reward = torch.tensor([(a.reward or 0.0) - 0.25 for a in answers]).double() / (0.5 + 1e-4)
    credit = [[(EpisodeCredit(), [value] * n)] for n, value in zip(LENGTHS, reward.tolist(), strict=True)]
    rows = layout(LENGTHS, [1.0] * 3, [True] * 3, answers=answers, served=old.tolist(), credit=credit)
    gold = torch.tensor([kind == GOLD for kind in kinds])
    tokens = Tokens(
        z.requires_grad_(), t.log_softmax(-1), r.log_softmax(-1), ids, rows.served.double(), reward[rows.row],
        gold[rows.row], torch.tensor([False, True, False])[rows.row],
        torch.tensor([(a.reward or 0.0) - 0.25 for a in answers]).double()[rows.row],
    )  # fmt: skip
    return tokens, rows


@pytest.mark.parametrize(("name", "step"), list(PAGES))
def test_a_recipe_has_the_gradient_of_its_pages_formula(name: str, step: int) -> None:
    tokens, rows = case(name)
    made = recipe(name, **{**INPUTS.get(name, {}), **FEW.get(name, {})})
    total = torch.zeros((), dtype=torch.float64)
    terms = [t.at(step, STEPS, []) for t in made.terms]
    counts = dict(zip((t.name for t in terms), divisors(terms, rows), strict=True))
    for term in terms:
        scores = token_losses(
            tokens.z, None if term.teacher is None else tokens.t, Head(torch.eye(V).double()), tokens.ids,
            term.estimator, target=term.target, support=term.support,
            reference=tokens.r if term.target.needs_reference else None,
        )  # fmt: skip
        late = float(term.weight_sum(scores, rows)) if term.by_weight else 1.0
        total = total + term.value(scores, rows, late * counts[term.name])
    (got,) = torch.autograd.grad(total, tokens.z)
    (want,) = torch.autograd.grad(PAGES[name, step](tokens), tokens.z)
    assert bool((want != 0).any())
    torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-5)


def test_every_recipe_is_held_to_its_page() -> None:
    assert {name for name, _ in PAGES} == set(RECIPES)
