"""Reads the interactions that a candidate is measured on: held out, won before, trained on; and their clusters.

Excludes held-out interactions that exceed the context window. Never asks a model and never writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from afterword.chat.canonical import text_of
from afterword.chat.render import check_template, encode_content
from afterword.chat.turn_prompt import turn_prompt
from afterword.errors import ModelError, NothingToDo
from afterword.evaluate.comparison.answers import EvaluationPrompt
from afterword.learn.parts.contexts import CONTEXTS, turn_hindsight
from afterword.metrics import current
from afterword.records import Candidate, Feedback, Interaction, Json, Release, Report, Turn, Verdict
from afterword.store import Store
from afterword.store.attribution import ConversationRoots
from afterword.store.channels import covers

USERS = 8
"""So many different users, and they are what answers are clustered by; below, their conversations are."""
WON = 0.02
"""Nats a token by which a release must have lessened the correction needed for the interaction to count as won."""


SEARCHED_TURNS = 2000
"""Newest turns that are searched for requests without a reaction."""
LONGEST_HINDSIGHT = 512
"""Tokens of hindsight that are read."""
CONTEXT = CONTEXTS["appended"]
"""How the hindsight stands before the model wherever an answer is scored with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """One (x, y, o) that was never trained on."""

    interaction: Interaction
    turn: Turn
    conversation: str
    """What it is clustered by: answers within one conversation are not independent."""
    final_text: str | None = None
    """The answer as the user left it, where they edited it."""

    @property
    def question(self) -> str:
        """The last user message of the prompt."""
        asked = [m for m in self.turn.messages if m.get("role") == "user"]
        return text_of(asked[-1].get("content")) if asked else ""

    @property
    def task(self) -> str | None:
        """Slice of work."""
        return self.interaction.task or self.turn.task

    @property
    def asked(self) -> EvaluationPrompt:
        """Messages of the prompt for both arms."""
        return EvaluationPrompt.of_turn(self.turn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One interaction that the candidate was trained on."""

    messages: tuple[Json, ...]
    hindsight: str
    final_text: str | None = None

    @property
    def written(self) -> tuple[str, ...]:
        """All that users wrote in it."""
        asked = (text_of(m.get("content")) for m in self.messages if m.get("role") == "user")
        return tuple(t for t in (*asked, self.hindsight, self.final_text or "") if t)


Fits = Callable[[HeldOut], bool]
"""Whether the model can read it."""


def _any(item: HeldOut) -> bool:
    return True


def clusters_of(items: Sequence[HeldOut]) -> list[str]:
    """Which answers belong together: those to one user where there are enough users, else those of one conversation."""
    users = [item.turn.user or item.interaction.user for item in items]
    names = [item.conversation if user is None else f"user {user}" for user, item in zip(users, items, strict=True)]
    return names if len(set(names)) >= USERS else [item.conversation for item in items]


def held_out(store: Store, limit: int, channel: str = "default", fits: Fits = _any) -> list[HeldOut]:
    """The newest `limit` usable held-out interactions that the channel is about and that fit, oldest first."""
    rows = store.usable("holdout")
    kept = [row for row in rows if covers(channel, user=row.user, team=row.team, task=row.task)]
    return _newest(store, kept, limit, fits)


CONVERSATIONS = frozenset(("holdout", "earlier-wins"))
"""Suites that measure held-out conversations."""


def require(items: list[HeldOut], suites: Iterable[str] = CONVERSATIONS) -> list[HeldOut]:
    """Return `items`; NothingToDo with the remedy for an empty list, when one of `suites` measures them."""
    if not items and not CONVERSATIONS.isdisjoint(suites):
        raise NothingToDo(
            "no interaction is held out yet; collection holds out a share of the conversations. Run `afterword "
            "collect`, or wait for more conversations with follow-ups."
        )
    return items


def earlier_wins(store: Store, channel: str, limit: int, fits: Fits = _any) -> list[HeldOut]:
    """Held-out interactions whose correction an earlier release of the channel lessened, the newest `limit`."""
    won: set[str] = set()
    for release in store.rows(Release, channel=channel):
        verdict = store.find(Verdict, release.verdict) if release.verdict else None
        report = store.find(Report, verdict.report) if verdict else None
        won |= {str(e["interaction"]) for e in (report.examples if report else ()) if _drop(e) > WON}
    kept = [interaction for interaction in store.usable("holdout") if interaction.id in won]
    return _newest(store, kept, limit, fits)


def silent_prompts(
    store: Store, candidate: Candidate, limit: int, channel: str, fits: Callable[[Turn], bool]
) -> list[EvaluationPrompt]:
    """Requests without a reaction, newest first, each once, from conversations that trained no adapter. The guards
    need no words of the user, so they may ask them."""
    roots = ConversationRoots(store)
    reacted = {row.turn for row in store.rows(Interaction)}
    trained = {roots.of(turn) for _, turn in store.among(Turn, "id", sorted(_trained_turns(store, candidate)))}
    found: dict[str, EvaluationPrompt] = {}
    for turn in itertools.islice(store.rows(Turn, newest=True, automated=None), SEARCHED_TURNS):
        if len(found) == limit:
            break
        asked = [m for m in turn.messages if m.get("role") == "user"]
        text = text_of(asked[-1].get("content")).strip() if asked else ""
        if not text or text in found or not turn.consent or turn.id in reacted or roots.of(turn) in trained:
            continue
        if covers(channel, user=turn.user, team=turn.team, task=turn.task) and fits(turn):
            found[text] = EvaluationPrompt.of_turn(turn)
    return list(found.values())


def _trained_turns(store: Store, candidate: Candidate) -> set[str]:
    """Turns that the candidate or its ancestors were trained on."""
    row: Candidate | None = candidate
    names: list[str] = []
    while row is not None:
        names += row.interactions
        row = store.find(Candidate, row.parent) if row.parent else None
    return {one.turn for _, one in store.among(Interaction, "id", names)}


def _newest(store: Store, kept: Sequence[Interaction], limit: int, fits: Fits) -> list[HeldOut]:
    """From the newest back, until `limit` are found; oldest first."""
    complete = (completed(store, interaction) for interaction in reversed(kept))
    return list(itertools.islice(filter(fits, complete), limit))[::-1]


def _drop(example: Json) -> float:
    notes = current(example)
    before, after = notes.get("hindsight_kl_served"), notes.get("hindsight_kl_candidate")
    return 0.0 if before is None or after is None else float(before) - float(after)


def trained_on(store: Store, candidate: Candidate, limit: int) -> list[Trained]:
    """The newest `limit` interactions that the candidate itself was trained on; erased ones are gone."""
    found = []
    for identifier in candidate.interactions[-limit:]:
        interaction = store.find(Interaction, identifier)
        turn = store.find(Turn, interaction.turn) if interaction else None
        if interaction is not None and turn is not None:
            final = _final_text(store, interaction)
            found.append(Trained(messages=turn.messages, hindsight=interaction.hindsight, final_text=final))
    return found


def _final_text(store: Store, interaction: Interaction) -> str | None:
    edits = [store.find(Feedback, identifier) for identifier in interaction.feedback]
    finals = [e.final_text for e in edits if e is not None and e.final_text is not None]
    return finals[-1] if finals else None


def completed(store: Store, interaction: Interaction) -> HeldOut:
    """The interaction with its turn, its conversation and the user's final text."""
    turn = store.get(Turn, interaction.turn)
    root = ConversationRoots(store).of(turn)
    return HeldOut(interaction=interaction, turn=turn, conversation=root, final_text=_final_text(store, interaction))


@dataclass(slots=True)
class ContextFit:
    """Excludes held-out interactions that exceed the context window of the base, or that its template rejects.

    Prompt, hindsight and an answer of full length are measured together.
    """

    tokenizer: Any
    longest: int
    """Tokens that the base reads."""
    max_tokens: int
    """Of which an answer may take so many."""
    vocabulary: int = 1 << 62
    """Ids that the base has embeddings for."""
    excluded: int = 0
    """Interactions that did not fit."""

    def __post_init__(self) -> None:
        check_template(self.tokenizer)  # without a header it is an error, not so many conversations left out

    def fits(self, item: HeldOut) -> bool:
        """Whether both arms can be asked and scored on it; one such conversation would end the whole suite."""
        fits = self._tried(lambda: self._fits(item))
        self.excluded += not fits
        return fits

    def reads(self, turn: Turn) -> bool:
        """Whether both arms can be asked the turn's request again. Counts nothing."""
        return self._tried(lambda: self._room(turn, 0) is not None)

    def _tried(self, fits: Callable[[], bool]) -> bool:
        try:
            return fits()
        except ModelError:  # the template refuses the conversation
            return False

    def _room(self, turn: Turn, given: int) -> int | None:
        """Tokens that a prompt may have beside an answer of `given` ids or of full length; None where the turn's has
        more, or ids that the base does not know."""
        room = self.longest - max(given, self.max_tokens) - 1  # the end of turn
        prompt = turn_prompt(self.tokenizer, turn).ids
        return None if room < 1 or len(prompt) > room or max(*prompt, 0) >= self.vocabulary else room

    def _fits(self, item: HeldOut) -> bool:
        turn = item.turn
        given = turn.completion_ids or encode_content(self.tokenizer, text_of(turn.answer.get("content")), "assistant")
        room = self._room(turn, len(given))
        if room is None or max(*given, 0) >= self.vocabulary:
            return False
        if not item.interaction.hindsight.strip():
            return True
        seen = turn_hindsight(
            self.tokenizer, CONTEXT, turn, item.interaction.hindsight, room=room, longest=LONGEST_HINDSIGHT
        )
        return seen is not None and max(seen.prompt.ids) < self.vocabulary
