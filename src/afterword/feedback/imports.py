"""Logs from elsewhere become turns and follow-ups: `import_file`.

Owns the driver: stream, parse, write in groups, count, and note what was rejected. Ids are content hashes, so an
interrupted import is finished by running it again. Never learns anything, never guesses consent away.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import orjson

from afterword.chat.canonical import text_of
from afterword.errors import UsageError
from afterword.feedback.files import Bad, Row, Source
from afterword.feedback.formats import FORMATS, MISSING_IDS, Conversation, Parser, detect_format
from afterword.records import Feedback, Json, Record, Turn
from afterword.store import Outcome, Store
from afterword.store.codec import encode

GROUP = 1000
"""Records per commit, about."""
IN_FLIGHT = 3
"""Groups that wait for their commit while the file is read on; bounds the memory."""
HISTORY = 8
"""Messages before an answer that are kept with it, besides the system message. A conversation of n messages would
otherwise take n squared of space; the whole of it can be put together again by following `previous`."""


@dataclass(slots=True)
class ImportSummary:
    """What became of a file."""

    file: str
    format: str = "auto"
    rows: int = 0
    """Rows that were read, the rejected ones included."""
    conversations: int = 0
    messages: int = 0
    turns: int = 0
    feedback: int = 0
    stored: int = 0
    """Records that are new in the store."""
    duplicates: int = 0
    """Records that were there already."""
    conflicts: int = 0
    """Records whose id was there with other content; the first one stays."""
    forgotten: int = 0
    """Records that were erased at their user's request; they stay erased."""
    without_request: int = 0
    """Answers that nobody asked for (a conversation that begins in the middle)."""
    mended: int = 0
    """Rows with broken Unicode, stored with replacement characters."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by reason."""
    rejects: str | None = None
    """The file with the rejected rows."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All counts as JSON."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        plain["rejected"] = dict(sorted(self.rejected.items()))
        return plain


Progress = Callable[[int, int], None]


def import_file(
    store: Store,
    path: Path,
    format: str = "auto",
    *,
    rejects: Path | None = None,
    progress: Progress | None = None,
) -> ImportSummary:
    """Store the turns and follow-ups of a file in any of `formats.FORMATS`, or find out which one it is.

    Bad rows are counted and written to `rejects` (by default `rejects/NAME.jsonl` beside the database) with their
    place and reason. `progress(position, size)` is called after each group, in bytes of the
    file. Running it again stores nothing twice.

    Raises UsageError for an unknown format, a file that cannot be read or holds no row of a known format, and
    StoreError when the database cannot be written; what was committed before stays.
    """
    if format != "auto" and format not in FORMATS:
        raise UsageError(f"the format {format!r} is not known; choose from auto, {', '.join(FORMATS)}.")
    started = time.monotonic()
    summary = ImportSummary(file=str(path), format=format)
    rejects = rejects or store.path.parent / "rejects" / f"{path.name}.jsonl"
    with closing(Source(path)) as source, _Sink(store, summary) as sink, _Rejects(rejects, summary) as refuse:
        for item in source.rows():
            summary.rows += 1
            try:
                sink.add(_records(item, summary, path, refuse))
            except UsageError as error:
                refuse(Bad(error.code or "bad_row", error.message, item.where, _excerpt(item)))
            if sink.flushed and progress is not None:
                progress(source.position, source.size)
    summary.seconds = time.monotonic() - started
    if summary.format == "auto":
        raise UsageError(
            f"{path} holds no row of a known format ({summary.rows} rows seen). Known: {', '.join(FORMATS)}; "
            "name one with --format to see why its rows are rejected."
        )
    return summary


def _records(item: Row | Bad, summary: ImportSummary, path: Path, refuse: _Rejects) -> list[Record]:
    if isinstance(item, Bad):
        refuse(item)
        return []
    if summary.format == "auto":
        found = detect_format(item.value)
        if found is None:
            raise UsageError("the row is like none of the known formats", code="unknown_format")
        summary.format = found
    return _parsed(item, summary, FORMATS[summary.format])


def _parsed(item: Row, summary: ImportSummary, parse: Parser) -> list[Record]:
    if not isinstance(item.value, dict):
        raise UsageError(f"the row is no object: {item.value!r:.80}", code="no_object")
    value, mended = _mended(item.value)
    summary.mended += mended or item.mended
    parsed = parse(value)
    if isinstance(parsed, list):
        for record in parsed:
            encode(record)
        return parsed
    summary.conversations += 1
    summary.messages += len(parsed.messages)
    return list(_conversation(parsed, summary))


def _conversation(talk: Conversation, summary: ImportSummary) -> Iterator[Record]:
    body = orjson.dumps([summary.format, talk.key, talk.messages], option=orjson.OPT_SORT_KEYS)
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    whole = digest if talk.name is None else hashlib.blake2b(talk.name.encode(), digest_size=16).hexdigest()
    asked = False
    previous: str | None = None
    answers = [i for i, m in enumerate(talk.messages) if m["role"] == "assistant"]
    names = {i: f"imp-{digest}-{n:05d}" for n, i in enumerate(answers)}
    for n, i in enumerate(answers):
        asked = asked or any(m["role"] == "user" for m in talk.messages[(answers[n - 1] if n else 0) : i])
        if not asked:
            summary.without_request += 1
            continue
        if talk.only_last and n < len(answers) - 1:
            continue
        yield _turn(talk, summary.format, i, names[i], f"conv-{whole}", previous)
        previous = names[i]
        text, following = _reaction(talk.messages, i)
        if text:
            yield Feedback(
                id=f"fb-{names[i]}", turn=names[i], kind="follow_up", text=text, next_turn=names.get(following),
                user=talk.user, source="detector", **_when(talk),
            )  # fmt: skip


def _turn(talk: Conversation, format: str, i: int, name: str, conversation: str, previous: str | None) -> Turn:
    return Turn(
        id=name, messages=_history(talk.messages, i), answer=talk.messages[i], model=talk.model, user=talk.user,
        conversation=conversation, previous=previous, tools=talk.tools, source=f"import:{format}",
        missing_ids=MISSING_IDS, **_when(talk),
    )  # fmt: skip


def _when(talk: Conversation) -> Json:
    return {} if talk.created_at is None else {"created_at": talk.created_at}


def _history(messages: list[Json], end: int) -> tuple[Json, ...]:
    """The system message and the last `HISTORY` messages before `end`, from a message of the user on."""
    start = max(end - HISTORY, 0)
    head = [m for m in messages[: min(2, start)] if m["role"] in {"system", "developer"}]
    while 0 < start < end and messages[start]["role"] != "user":
        start -= 1  # a tool loop longer than the window keeps its question
    return (*head, *messages[start:end])


def _reaction(messages: list[Json], i: int) -> tuple[str, int]:
    """What the user wrote right after message i, and the index of the answer to it."""
    texts: list[str] = []
    j = i + 1
    while j < len(messages) and messages[j]["role"] == "user":
        texts.append(text_of(messages[j].get("content")))
        j += 1
    return "\n\n".join(texts).strip(), j


def _mended(value: Json) -> tuple[Json, bool]:
    """The row with lone surrogates replaced; True when there were any."""
    try:
        orjson.dumps(value)
    except TypeError as error:
        mended = _replace_surrogates(value)
        try:
            orjson.dumps(mended)
        except TypeError:
            raise UsageError(f"the row cannot be written as JSON: {error}", code="bad_value") from error
        return mended, True
    return value, False


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_surrogates(v) for v in value]
    if isinstance(value, dict):
        return {_replace_surrogates(k): _replace_surrogates(v) for k, v in value.items()}
    return value


def _excerpt(item: Row | Bad) -> str:
    return item.text if isinstance(item, Bad) else repr(item.value)[:500]


class _Sink:
    """Records on their way to the store, in groups of about GROUP, at most IN_FLIGHT of them unwritten."""

    def __init__(self, store: Store, summary: ImportSummary) -> None:
        self._store, self._summary = store, summary
        self._group: list[Record] = []
        self._writes: deque[Future[list[Outcome]]] = deque()
        self.flushed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._flush()
            while self._writes:
                self._settle(self._writes.popleft())

    def add(self, records: list[Record]) -> None:
        for record in records:
            if isinstance(record, Turn):
                self._summary.turns += 1
            elif isinstance(record, Feedback):
                self._summary.feedback += 1
            self._group.append(record)
        self.flushed = len(self._group) >= GROUP
        if self.flushed:
            self._flush()

    def _flush(self) -> None:
        self._writes.append(self._store.submit(self._group))
        self._group = []
        while len(self._writes) > IN_FLIGHT:
            self._settle(self._writes.popleft())

    def _settle(self, write: Future[list[Outcome]]) -> None:
        outcomes = write.result()
        self._summary.stored += outcomes.count("stored")
        self._summary.duplicates += outcomes.count("duplicate")
        self._summary.conflicts += outcomes.count("conflict")
        self._summary.forgotten += outcomes.count("forgotten")


class _Rejects:
    """The file of rejected rows: written anew by each import, and only when there are any."""

    def __init__(self, path: Path, summary: ImportSummary) -> None:
        self._path, self._summary = path, summary
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __call__(self, bad: Bad) -> None:
        self._summary.rejected[bad.reason] += 1
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8", errors="replace")
            self._summary.rejects = str(self._path)
        row = {"where": bad.where, "reason": bad.reason, "detail": bad.detail, "row": _replace_surrogates(bad.text)}
        self._file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE).decode())
