"""Turns a conversation into turns and follow-ups, and links turns of traces to the ones that they continue.

Decides which history a turn keeps. Never reads a file, never writes to the store.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial

import orjson

from afterword.chat.canonical import text_of, thread_hashes
from afterword.chat.linking import RecentTurns, last_answer, stored_questions, stored_turn_of
from afterword.chat.machine import hints_of, origin_of
from afterword.chat.matching import SURE, Earlier, choose
from afterword.chat.trail import DEPTH, SIZE, aside, trail_of, trail_of_turn
from afterword.feedback.importing.files import FileRow, InvalidRow
from afterword.formats.naming import RowNames
from afterword.formats.parsing import MISSING_IDS, Conversation, bad
from afterword.formats.wildfeedback import UTTERANCES, is_utterance
from afterword.records import BESIDE, Feedback, Json, Record, Turn
from afterword.store import Store

HISTORY = 8
"""Messages before an answer that are kept with it, besides the system message. A conversation of n messages would
otherwise take n squared of space; the whole of it can be put together again by following `previous`."""
LOOP = 64
"""Messages of one tool loop that are kept: a loop of n steps takes n squared of space up to here."""
CROWD = 256
"""Turns of a file with the same answer that are compared one by one."""
LINKED = 100_000
"""Threads that are remembered while a file of traces is read; older ones are found in the store."""


def gathered(items: Iterator[FileRow | InvalidRow]) -> Iterator[FileRow | InvalidRow]:
    """The items, with utterances that follow each other put together into one row for each conversation."""
    pending: list[Json] = []
    where = ""
    for item in items:
        single = isinstance(item, FileRow) and is_utterance(item.value)
        if pending and not (single and _number(item.value) > _number(pending[-1])):  # type: ignore[union-attr]
            yield FileRow({UTTERANCES: pending}, where)
            pending = []
        if single:
            where = where if pending else item.where
            pending.append(item.value)  # type: ignore[union-attr]
        else:
            yield item
    if pending:
        yield FileRow({UTTERANCES: pending}, where)


def _number(row: Json) -> float:
    value = row["UtterranceId"]
    return float(value) if isinstance(value, int | float) else 0.0


class Threads:
    """Turns of traces by their conversation, so that the next request finds the one it continues.

    First by the hash of the whole history, in this file or in the store; then, for clients that change what they send
    again, by the end of the conversation among the turns of this file (`chat.matching`).
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, str] = OrderedDict()
        self._recent: RecentTurns[Earlier] = RecentTurns(LINKED)

    def recall(self, source: str) -> None:
        """Make the newest stored turns of `source` known, as far as they would be remembered: for an import that goes
        on after a kill."""
        newest_first = self._store.rows(Turn, newest=True, limit=LINKED, source=source)
        for one in reversed([_earlier(turn) for turn in newest_first if turn.automated not in BESIDE]):
            self._recent.add(one.id, _of_answer(one.thread), one)

    def link(self, turn: Turn) -> list[Record]:
        """The turn with its thread and its previous turn, and the follow-up to that turn."""
        messages = list(turn.messages)
        hashes = thread_hashes((turn.source, turn.user), [*messages, turn.answer])
        last = last_answer(messages)
        previous = None if last is None else self._find(hashes[last]) or self._by_end(turn)
        self._known[hashes[-1]] = turn.id
        if len(self._known) > LINKED:
            self._known.popitem(last=False)
        automated = origin_of(messages, hints_of(messages, turn.sampling, turn.tools))
        if automated not in BESIDE:
            one = _earlier(turn)
            self._recent.add(one.id, _of_answer(one.thread), one)
        after = None if automated in BESIDE else previous
        linked = dataclasses.replace(turn, thread=hashes[-1], previous=after, automated=automated)
        if previous is None or last is None:
            return [linked]
        said = [text_of(m.get("content")) for m in messages[last + 1 :] if m.get("role") == "user"]
        words = "\n\n".join(said).strip()
        if not words:
            return [linked]
        follow_up = Feedback(
            id=f"fb-{previous}-{turn.id}", turn=previous, kind="follow_up", text=words, next_turn=turn.id,
            user=turn.user, source="detector", created_at=turn.created_at,
        )  # fmt: skip
        return [linked, follow_up]

    def _find(self, thread: str) -> str | None:
        return self._known.get(thread) or stored_turn_of(self._store, thread)

    def _by_end(self, turn: Turn) -> str | None:
        """The turn that this one continues by the end of its conversation; None for none, or for an uncertain one."""
        trail = trail_of((turn.source, turn.user), turn.messages, DEPTH + 1).answered()
        if not trail.prints:
            return None
        found = self._recent.answered(_of_answer(trail.prints[0]))
        if len(found) > CROWD:  # of an answer that everybody gets, those that agree in all that the request shows
            starts = "".join(trail.prints), "".join(aside(trail.prints))
            same = [one for one in found if one.thread.startswith(starts)]
        else:
            same = [one for one in found if one.id != turn.id]
        least = SURE if turn.user is None else 0
        crowded = len(found) > CROWD
        choice = choose(
            trail, same, turn.conversation, partial(stored_questions, self._store), crowded=crowded, least=least
        )
        return choice.turn.id if choice.turn else None


def _earlier(turn: Turn) -> Earlier:
    thread = trail_of_turn((turn.source, turn.user), turn.messages, turn.answer)
    return Earlier(turn.id, turn.created_at, thread, turn.conversation)


def _of_answer(thread: str) -> str:
    """The fingerprint of the newest answer, however its question is kept."""
    return thread[1:SIZE]


def unfolded(talk: Conversation, format: str, names: RowNames) -> tuple[list[Record], int, int]:
    """The turns and follow-ups of a conversation, the number of answers without a request, and its size in bytes."""
    records: list[Record] = []
    unasked = 0
    try:
        body = orjson.dumps([format, talk.key, talk.messages], option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise bad("bad_value", f"the messages cannot be written as JSON: {error}") from error
    digest = names.of(hashlib.blake2b(body, digest_size=16).hexdigest(), talk.user)
    whole = digest if talk.name is None else hashlib.blake2b(talk.name.encode(), digest_size=16).hexdigest()
    asked = False
    previous: str | None = None
    answers = [i for i, m in enumerate(talk.messages) if m["role"] == "assistant"]
    if not answers:
        raise bad("no_answer", "the conversation has no answer")
    ids = {i: f"imp-{digest}-{n:05d}" for n, i in enumerate(answers)}
    for n, i in enumerate(answers):
        asked = asked or any(m["role"] == "user" for m in talk.messages[(answers[n - 1] if n else 0) : i])
        if not asked:
            unasked += 1
            continue
        if talk.only_last and n < len(answers) - 1:
            continue
        records.append(_turn(talk, format, i, ids[i], f"conv-{whole}", previous))
        previous = ids[i]
        text, following = _reaction(talk.messages, i)
        if text:
            records.append(Feedback(
                id=f"fb-{ids[i]}", turn=ids[i], kind="follow_up", text=text, next_turn=ids.get(following),
                user=talk.user, source="detector", metadata=talk.notes.get(i + 1, {}), **_when(talk),
            ))  # fmt: skip
    return records, unasked, len(body)


def _turn(talk: Conversation, format: str, i: int, name: str, conversation: str, previous: str | None) -> Turn:
    return Turn(
        id=name, messages=history_of(talk.messages, i), answer=talk.messages[i], model=talk.model, user=talk.user,
        conversation=conversation, previous=previous, tools=talk.tools, source=f"import:{format}",
        missing_ids=MISSING_IDS, **{**_when(talk), **talk.turns.get(i, {})},
    )  # fmt: skip


def _when(talk: Conversation) -> Json:
    return {} if talk.created_at is None else {"created_at": talk.created_at}


def history_of(messages: list[Json], end: int) -> tuple[Json, ...]:
    """The system message and the last `HISTORY` messages before `end`, from a message of the user on. Of a tool loop of
    more than `LOOP` messages its question and its last steps."""
    start = max(end - HISTORY, 0)
    head = [m for m in messages[: min(2, start)] if m["role"] in {"system", "developer"}]
    while 0 < start < end and messages[start]["role"] != "user":
        start -= 1  # a tool loop longer than the window keeps its question
    if end - start <= LOOP:
        return (*head, *messages[start:end])
    question = messages[start : start + 1] if messages[start]["role"] == "user" else []
    start = next((i for i in range(end - LOOP, end) if messages[i]["role"] == "assistant"), end - LOOP)
    return (*head, *question, *messages[start:end])


def _reaction(messages: list[Json], i: int) -> tuple[str, int]:
    """What the user wrote right after message i, and the index of the answer to it."""
    texts: list[str] = []
    j = i + 1
    while j < len(messages) and messages[j]["role"] == "user":
        texts.append(text_of(messages[j].get("content")))
        j += 1
    return "\n\n".join(texts).strip(), j
