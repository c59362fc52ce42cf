"""Ranks the recipes that fit the store, each with its reason: a table of rules over counted facts.

Counts and settings alone decide; nothing here reads a text or loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from afterword.kinds import Hindsight, with_hindsight

FEW = 12
"""Interactions below which a recipe that reads them is not advised: the gate alone asks for as many held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeFacts:
    """Facts about the collected episodes of agents."""

    turns: int = 0
    """Turns that may be learned and have served token ids."""
    imported: int = 0
    """Further ones without served token ids."""
    observed: int = 0
    """Turns after which something came back: a result, an error, a correction."""
    scored: int = 0
    """Episodes with a reward."""
    compared: int = 0
    """Those of them whose task and seed have episodes with different rewards."""
    skills: int = 0
    """Skills in the bank."""
    solved: int = 0
    """Episodes with a reward above 0 or with `metadata.oracle`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about a store and its settings."""

    kinds: Mapping[str, int] = field(default_factory=dict)
    """Interactions that may be learned and have served token ids, by kind of feedback."""
    praised: int = 0
    """Those that users were content with."""
    imported: int = 0
    """Further ones without served token ids."""
    tasks: tuple[str, ...] = ()
    verifier: bool = False
    teacher: bool = False
    experience: bool = False
    episodes: EpisodeFacts = EpisodeFacts()

    def count(self, source: Hindsight) -> int:
        """Interactions whose hindsight is of this source (`kinds.Hindsight`)."""
        return sum(self.kinds.get(kind, 0) for kind in with_hindsight(source))

    @property
    def total(self) -> int:
        """All interactions that may be learned."""
        return sum(self.kinds.values()) + self.imported


@dataclass(frozen=True, slots=True)
class Advice:
    """One recipe for these facts."""

    recipe: str
    fits: bool
    reason: str
    """Why it fits, or what is missing and how to provide it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a recipe fits."""

    recipe: str
    missing: Callable[[Facts], str]
    """What the store or the settings lack, with the remedy; empty when nothing."""
    reason: Callable[[Facts], str]


def advise(facts: Facts) -> list[Advice]:
    """Every rule's recipe: those that fit first, in the order in which to try them.

    Args:
        facts: What is there.
    """
    found = [Advice(rule.recipe, not (missing := rule.missing(facts)), missing or rule.reason(facts)) for rule in RULES]
    return sorted(found, key=lambda one: not one.fits)


def _enough(number: int, what: str) -> str:
    return "" if number >= FEW else f"{number} {what}, at least {FEW} are worth a round"


def _words(facts: Facts) -> str:
    return _enough(facts.count("words") + facts.count("answer") + facts.count("attempt"), "interactions with words")


def _answers(facts: Facts) -> str:
    return _enough(facts.count("answer"), "edits or demonstrations")


def _verifier(facts: Facts) -> str:
    return "" if facts.verifier else "no verifier: name a function in train.verifier"


def _teacher(facts: Facts) -> str:
    return "" if facts.teacher else "no other model: name its folder in train.teacher"


def _compared(facts: Facts) -> str:
    number, scored = facts.episodes.compared, facts.episodes.scored
    if number >= FEW:
        return ""
    return (
        f"{number} of {scored} scored episodes have another with the same task and seed and another reward, at least "
        f"{FEW} are worth a round: `afterword agent play ENV --group 8`, or send task_id, seed and rewards"
    )


def _observed(facts: Facts) -> str:
    return _enough(facts.episodes.observed, "turns of episodes after which something came back")


def _skills(facts: Facts) -> str:
    return "" if facts.episodes.skills else "no skills: `afterword episodes skills --write` after successful episodes"


def _both(*checks: Callable[[Facts], str]) -> Callable[[Facts], str]:
    return lambda facts: "; ".join(filter(None, (check(facts) for check in checks)))


RULES: tuple[Rule, ...] = (
    Rule("follow-ups", _words, lambda f: f"{f.count('words')} interactions with a user's words: the vetted default"),
    Rule(
        "sdpo",
        lambda f: _enough(f.count("attempt") + f.count("environment"), "accepted attempts or outputs of programs"),
        lambda f: f"{f.count('environment')} outputs of programs and {f.count('attempt')} accepted attempts",
    ),
    Rule("sdft", _answers, lambda f: f"{f.count('answer')} answers that users wrote themselves"),
    Rule("rlsd", _both(_verifier, _answers), lambda f: "a verifier decides, the wanted answer says which tokens"),
    Rule(
        "rltf",
        _both(_verifier, lambda f: _enough(f.count("words"), "interactions with words")),
        lambda f: "a verifier, and words of users that make second attempts better",
    ),
    Rule("pope", _both(_verifier, _answers), lambda f: "prompts that are never solved, with openings of good answers"),
    Rule("grpo", _verifier, lambda f: "a verifier alone; choose `rlsd` or `rltf` where there are words too"),
    Rule("kdrl", _both(_verifier, _teacher), lambda f: "a verifier and another model"),
    Rule("opd", _teacher, lambda f: "another model with the same vocabulary; `fast-opd` costs a part of it"),
    Rule(
        "mopd",
        _both(_teacher, lambda f: "" if len(f.tasks) > 1 else "one task: set metadata.task on requests"),
        lambda f: f"{len(f.tasks)} tasks ({', '.join(f.tasks[:3])}), each may have its own expert",
    ),
    Rule(
        "opcd",
        lambda f: "" if f.experience else "no text to put into the weights: write it into train.experience",
        lambda f: "a text that every prompt has now and that the model shall know without it",
    ),
    Rule(
        "episode-hindsight",
        _both(_compared, _observed),
        lambda f: f"{f.episodes.compared} episodes to compare, and {f.episodes.observed} turns with what came back",
    ),
    Rule(
        "episode-grpo",
        _compared,
        lambda f: f"{f.episodes.compared} episodes of tasks that came to different rewards; the backbone of the others",
    ),
    Rule(
        "episode-sdar",
        _both(_compared, _skills),
        lambda f: f"episodes to compare and {f.episodes.skills} skills; `skill-sd` and `opid` read the same",
    ),
    Rule(
        "tamtrl",
        _both(_compared, lambda f: "" if f.episodes.solved else "no successful episode and no metadata.oracle"),
        lambda f: f"episodes to compare, and {f.episodes.solved} solutions that say which turn mattered",
    ),
    Rule(
        "episode-sdpo",
        _observed,
        lambda f: (
            f"{f.episodes.observed} turns with what came back; needs no reward"
            + (f"; {f.episodes.imported} imported turns need train.off_policy = true" if f.episodes.imported else "")
        ),
    ),
    Rule(
        "episode-opd",
        _both(_teacher, lambda f: _enough(f.episodes.turns, "turns of episodes")),
        lambda f: f"another model, and {f.episodes.turns} turns of episodes",
    ),
    Rule(
        "idft",
        lambda f: _enough(f.imported, "imported answers (train.off_policy = true reads them)"),
        lambda f: f"{f.imported} answers without served token ids, which on-policy recipes leave out",
    ),
    Rule(
        "sft",
        lambda f: _enough(f.praised, "answers that users were content with"),
        lambda f: f"{f.praised} answers that users were content with; the control of every other recipe",
    ),
    Rule(
        "essd",
        lambda f: "" if f.total else "no interactions: nothing was captured yet",
        lambda f: "needs prompts alone, no feedback; compare it with doing nothing",
    ),
)
"""In the order of advice. A recipe that reads more than prompts and answers comes before one that reads less."""
