"""Queries of the console: pages of turns with filters, conversations, and counts that grow with the tables.

Every query is bounded: by an index, or by a number of rows that one page looks at. Never writes, never interprets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from afterword.records import Interaction, Json, Record, Review, Skip, Turn
from afterword.store.codec import decoder, select
from afterword.store.schema import CLEARED, TOMBSTONE
from afterword.store.store import Store
from afterword.store.votes import standing_reviews

SCANNED = 10_000
"""Rows that one page of a search without an index looks at."""
CONVERSATION = 200
"""Turns of a conversation that are shown."""
STEP = 50_000
"""Rows that are counted in one query; between two queries other readers get their turn."""

_ALIVE = f"NOT {TOMBSTONE.format('t')}"
_LOWER = "lower(CAST(t.body AS TEXT))"
_ASCII = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFilter:
    """Conditions of a search; empty ones do not restrict it."""

    user: str = ""
    conversation: str = ""
    task: str = ""
    adapter: str = ""
    """Version name; "base" for the base model."""
    kind: str = ""
    """Kind of feedback that the turn has; "any" for any kind."""
    text: str = ""
    """Words anywhere in the messages or the answer; letters of ASCII match in both cases."""

    @property
    def indexed(self) -> bool:
        """True when an index finds the rows, so that no bound on the rows looked at is needed."""
        return bool(self.user or self.conversation)


class TurnRow(NamedTuple):
    """One line of a list of turns."""

    seq: int
    turn: Turn
    """Without token ids and log-probabilities."""
    kinds: tuple[str, ...]
    """Kinds of its feedback, in the order written."""


@dataclass(frozen=True, slots=True)
class TurnPage:
    """A page of a search, newest first."""

    rows: list[TurnRow]
    before: int | None
    """Row number to continue from; None at the end."""
    looked_at: int
    """Rows between the first one and the last one that was looked at."""


def search_turns(store: Store, wanted: TurnFilter, before: int | None = None, limit: int = 50) -> TurnPage:
    """Find turns, newest first.

    Args:
        store: Where the rows are.
        wanted: Conditions, all of which hold.
        before: Only rows with a smaller row number.
        limit: Rows of a page.

    Returns:
        The page. It may hold fewer rows than `limit` although there are more: without an index one page looks at
        SCANNED rows.
    """
    newest = int(next(store.read("SELECT coalesce(max(seq), 0) FROM turns"))[0])
    start = newest + 1 if before is None else before
    floor = 1 if wanted.indexed or not _restricts(wanted) else max(start - SCANNED, 1)
    where, values = _conditions(wanted)
    sql = (
        f"SELECT t.seq, t.id, t.created_at, t.body FROM turns t WHERE t.seq < ? AND t.seq >= ? AND {_ALIVE}{where} "
        "ORDER BY t.seq DESC LIMIT ?"
    )
    found = list(store.read(sql, (start, floor, *values, limit)))
    kinds = feedback_kinds(store, [row[1] for row in found])
    rows = [TurnRow(row[0], _turn(*row[1:]), kinds.get(row[1], ())) for row in found]
    last = found[-1][0] if len(found) == limit else floor
    return TurnPage(rows, last if last > 1 else None, start - last)


def _restricts(wanted: TurnFilter) -> bool:
    return bool(wanted.task or wanted.adapter or wanted.kind or wanted.text)


def _conditions(wanted: TurnFilter) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    for column in ("user", "conversation", "task"):
        if value := getattr(wanted, column):
            parts.append(f"t.{column} = ?")
            values.append(value)
    if wanted.adapter == "base":
        parts.append("t.adapter IS NULL")
    elif wanted.adapter:
        parts.append("t.adapter = ?")
        values.append(wanted.adapter)
    if wanted.kind:
        kind = "" if wanted.kind == "any" else " AND f.kind = ?"
        parts.append(f"EXISTS (SELECT 1 FROM feedback f WHERE f.turn = t.id{kind})")
        values += [] if wanted.kind == "any" else [wanted.kind]
    if wanted.text:
        parts.append(f"instr({_LOWER}, ?)")
        values.append(orjson.dumps(wanted.text).decode()[1:-1].translate(_ASCII))
    return "".join(f" AND {part}" for part in parts), values


def _turn(name: str, created_at: float, body: bytes) -> Turn:
    return Turn.from_dict({**orjson.loads(body), "id": name, "created_at": created_at})


def feedback_kinds(store: Store, turns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Turn -> kinds of its feedback, in the order written. At most 500 turns."""
    marks = ", ".join("?" * len(turns))
    sql = f"SELECT t.turn, t.kind FROM feedback t WHERE t.turn IN ({marks}) AND {_ALIVE} ORDER BY t.seq"
    found: dict[str, list[str]] = {}
    for turn, kind in store.read(sql, turns) if turns else ():
        found.setdefault(turn, []).append(kind)
    return {turn: tuple(kinds) for turn, kinds in found.items()}


def conversation_of(store: Store, turn: Turn) -> list[Turn]:
    """The conversation of a turn, oldest first, at most CONVERSATION turns; branches are in it by their `previous`.

    Turns before it are followed by `previous`; others by the conversation's name, where it has one.
    """
    names = [name for name, _ in store.ancestors(turn.id)][:CONVERSATION]
    ids = dict.fromkeys(reversed(names))
    if turn.conversation is not None:
        sql = f"SELECT t.id FROM turns t WHERE t.conversation = ? AND {_ALIVE} ORDER BY t.seq LIMIT ?"
        ids.update(dict.fromkeys(row[0] for row in store.read(sql, (turn.conversation, CONVERSATION))))
    sql = f"SELECT t.id FROM turns t WHERE t.previous = ? AND {_ALIVE} ORDER BY t.seq LIMIT ?"
    ids.update(dict.fromkeys(row[0] for row in store.read(sql, (turn.id, CONVERSATION))))
    found = {row.id: row for _, row in store.among(Turn, "id", list(ids)[:500])}
    return sorted(found.values(), key=lambda row: (row.created_at, row.id))[:CONVERSATION]


def newest_rows(store: Store, kind: type[Record], before: int | None = None, limit: int = 50) -> list[tuple[int, Any]]:
    """(row number, record), newest first, with row numbers below `before`."""
    head = select(kind.TABLE).replace("SELECT ", "SELECT t.seq, ", 1)
    alive = f" AND {_ALIVE}" if kind.TABLE in CLEARED else ""
    sql = f"{head} WHERE t.seq < ?{alive} ORDER BY t.seq DESC LIMIT ?"
    decode = decoder(kind.TABLE)
    return [(row[0], decode(row[1:])) for row in store.read(sql, (before or 2**62, limit))]


_COUNTED: dict[str, tuple[str, ...]] = {
    "turns": ("source", "adapter", "automated", "unlinked", "previous IS NOT NULL", "user IS NOT NULL"),
    "feedback": ("kind",),
    "interactions": ("split", "kind"),
    "skips": ("reason",),
}
"""Table -> columns whose values are counted together."""


@dataclass(slots=True)
class RowCounts:
    """Counts of the growing tables. `update` reads only rows that it has not counted yet."""

    counted: dict[str, Counter[tuple[Any, ...]]] = field(
        default_factory=lambda: {table: Counter() for table in _COUNTED}
    )
    """Table -> values of its counted columns -> rows."""
    _last: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    _erasures: int = 0

    def update(self, store: Store) -> None:
        """Count the rows since the last update. After an erasure all is counted again: tombstones count no more."""
        erasures = erasure_count(store)
        if erasures != self._erasures:
            self.counted = {table: Counter() for table in _COUNTED}
            self._last, self._erasures = dict.fromkeys(_COUNTED, 0), erasures
        for table, columns in _COUNTED.items():
            self._grow(store, table, columns)

    def _grow(self, store: Store, table: str, columns: tuple[str, ...]) -> None:
        newest = int(next(store.read(f"SELECT coalesce(max(seq), 0) FROM {table}"))[0])
        names = ", ".join(f"t.{column}" for column in columns)
        group = ", ".join(str(1 + number) for number in range(len(columns)))
        sql = f"SELECT {names}, count(*) FROM {table} t WHERE t.seq > ? AND t.seq <= ? AND {_ALIVE} GROUP BY {group}"
        while self._last[table] < newest:
            end = min(self._last[table] + STEP, newest)
            for *values, number in store.read(sql, (self._last[table], end)):
                self.counted[table][tuple(values)] += int(number)
            self._last[table] = end

    def total(self, table: str) -> int:
        """Rows of a table."""
        return sum(self.counted[table].values())

    def by(self, table: str, column: str) -> dict[str, int]:
        """Rows by the value of one counted column, most frequent first; empty values are left out."""
        place = _COUNTED[table].index(column)
        found: Counter[str] = Counter()
        for values, number in self.counted[table].items():
            if values[place] is not None:
                found[str(values[place])] += number
        return dict(found.most_common())

    def turns(self, *, served: bool | None = None, linked: bool | None = None) -> int:
        """Turns that were served here (not imported), and that continue another turn."""
        return sum(
            number
            for (source, *_, previous, _), number in self.counted["turns"].items()
            if (served is None or (source == "gateway") == served) and (linked is None or bool(previous) == linked)
        )


class UserTurns(NamedTuple):
    """What a list of users shows of one."""

    user: str
    turns: int
    first: float
    """Unix seconds of the oldest turn."""
    last: float


def users_with_turns(store: Store, limit: int = 200) -> list[UserTurns]:
    """Users with the most turns. Reads the index of users, and two rows of each that is listed."""
    sql = (
        "SELECT user, count(*), min(seq), max(seq) FROM turns INDEXED BY turns_user WHERE user IS NOT NULL "
        "GROUP BY user ORDER BY 2 DESC, 1 LIMIT ?"
    )
    found = list(store.read(sql, (limit,)))
    ends = sorted({seq for _, _, first, last in found for seq in (first, last)})
    marks = ", ".join("?" * len(ends))
    at = dict(store.read(f"SELECT seq, created_at FROM turns WHERE seq IN ({marks})", ends)) if ends else {}
    return [UserTurns(user, number, at[first], at[last]) for user, number, first, last in found]


class UserConsent(NamedTuple):
    """Consent of one user's turns."""

    turns: int
    without: int
    """Turns that may not be trained on."""


def consent_of(store: Store, user: str) -> UserConsent:
    """Turns of a user, and how many of them may not be trained on."""
    # Within a text of the body quotes are escaped: only a key reads so.
    sql = (
        "SELECT count(*), coalesce(sum(instr(t.body, CAST('\"consent\":false' AS BLOB)) > 0), 0) FROM turns t "
        f"WHERE t.user = ? AND {_ALIVE}"
    )
    return UserConsent(*next(store.read(sql, (user,))))


class Confidence(NamedTuple):
    """An interaction as far as the review queue needs it."""

    seq: int
    id: str
    confidence: float
    has_words: bool
    feedback: tuple[str, ...]


def confidences_after(store: Store, after: int, limit: int) -> list[Confidence]:
    """Interactions from beyond row `after`, oldest first."""
    body = "json_extract(CAST(t.body AS TEXT), '$.{}')"
    sql = (
        f"SELECT t.seq, t.id, {body.format('confidence')}, {body.format('hindsight')} != '', t.feedback "
        f"FROM interactions t WHERE t.seq > ? AND {_ALIVE} ORDER BY t.seq LIMIT ?"
    )
    return [
        Confidence(seq, name, 1.0 if sure is None else float(sure), bool(words), tuple(orjson.loads(feedback)))
        for seq, name, sure, words, feedback in store.read(sql, (after, limit))
    ]


def erasure_count(store: Store) -> int:
    """Erasures so far: after another one, rows that were read before may be tombstones."""
    return int(next(store.read("SELECT count(*) FROM erasures"))[0])


def reviewed(store: Store) -> set[str]:
    """Reviewed interactions; withdrawn reviews do not count."""
    if any(store.rows(Review, decision="withdraw", limit=1)):
        return set(store.reviews())
    return {row[0] for row in store.read(f"SELECT t.interaction FROM reviews t WHERE {_ALIVE}")}


def why_unused(store: Store, row: Interaction) -> str | None:
    """The reason of `Store.barred` for one interaction, by its own rows alone."""
    standing = standing_reviews(store.rows(Review, interaction=row.id)).get(row.id, {})
    if standing and [*standing.values()][-1].decision == "reject":
        return "rejected"
    marks = ", ".join("?" * len(row.feedback))
    if any(store.read(f"SELECT 1 FROM feedback t WHERE t.retracts IN ({marks}) LIMIT 1", row.feedback)):
        return "retracted"
    if store.superseded([row.turn]).intersection(row.feedback):
        return "changed"
    denied = [
        skip for skip in store.rows(Skip, turn=row.turn, reason="contradictory") if skip.created_at > row.created_at
    ]
    if denied:
        marks = ", ".join("?" * len(denied))
        gone = {
            one[0]
            for one in store.read(
                f"SELECT t.retracts FROM feedback t WHERE t.retracts IN ({marks})", [skip.feedback for skip in denied]
            )
        }
        if any(skip.feedback not in gone for skip in denied):
            return "contradicted"
    return None


def details(store: Store, interaction: Interaction) -> Json:
    """Rows of an interaction: its turn, feedback, skips of the turn, reviews, and candidates that used it."""
    lineage: dict[str, list[Record]] = store.lineage(interaction.turn)
    used: Iterator[Any] = iter(lineage["candidates"])
    return {
        "turn": lineage["turns"][0],
        "feedback": lineage["feedback"],
        "skips": lineage["skips"],
        "candidates": [row for row in used if interaction.id in row.interactions],
    }
