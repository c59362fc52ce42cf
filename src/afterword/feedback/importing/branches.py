"""Turns a chat with branches into turns and feedback: regenerated answers, follow-ups, votes.

Every answer is a turn with the messages on the way to it. Ids come from the chat's own ids, so that a newer export of
the same chat adds only new rows. Never reads a file, never writes to the store.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from afterword.chat.canonical import canonical, text_of
from afterword.feedback.importing.captured import CapturedAnswer, CapturedChat, ChatAnswer, answered_in, asked_in
from afterword.feedback.importing.unfold import history_of
from afterword.formats.chatgpt import without_marks
from afterword.formats.naming import REMEMBERED, RowNames
from afterword.formats.parsing import MISSING_IDS, Remark, Tree, bad
from afterword.records import Feedback, Json, Record, Turn, content_hash
from afterword.store import Store


class ImportNames(RowNames):
    """Ids for the rows of one import."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, fresh=store.count(Turn) == 0)
        self._said: OrderedDict[str, str] = OrderedDict()
        self._votes: OrderedDict[str, list[Feedback]] = OrderedDict()
        self._captured: OrderedDict[tuple[str, str], str] = OrderedDict()

    def of_chat(self, turn: Turn) -> Turn:
        """The turn under the id that its chat gives it, or, when another answer has that id (two exports whose ids are
        the same by chance, an answer that was changed since), under one that says its words too."""
        words = _words(turn)
        known = self._said.get(turn.id)
        if known is None and not self._fresh:
            stored = self._store.find(Turn, turn.id)
            plain = stored if stored is None else _without_marks(stored)
            if plain != stored and plain is not None and _words(plain) == words:
                return stored or turn  # an older version kept the citation marks of ChatGPT
            known = None if stored is None else _words(stored)
        if known is not None and known != words and known != _words(self._store.as_stored(turn)):
            return replace(turn, id=f"{turn.id}-{words[:12]}")
        self._said[turn.id] = words
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        return turn

    def captured(self, tree: Tree) -> CapturedChat:
        """The turns that the gateway captured of this chat."""
        return CapturedChat(self._store, tree.key, tree.user)

    def note_captured(self, chat: str, message: str, turn: str) -> None:
        """Remember the captured turn of a message, for feedback that names the message alone."""
        self._captured[chat, message] = turn
        if len(self._captured) > REMEMBERED:
            self._captured.popitem(last=False)

    def turn_of_message(self, chat: str, message: str) -> str | None:
        """The captured turn of a message, if its chat has come."""
        return self._captured.get((chat, message))

    def has_regenerated(self, turn: str) -> bool:
        """True when the gateway itself saw that the answer was generated again."""
        rows = self._store.among(Feedback, "turn", [turn])
        return any(row.kind in ("regenerated", "retried") and row.source == "detector" for _, row in rows)

    def of_vote(self, vote: Feedback) -> Feedback:
        """The vote as it is known already: given at the same time, or the newest of its user, which still stands. One
        that was changed and changed back is a row of its own."""
        vote = self._store.as_stored(vote)
        known = [
            row for _, row in self._store.among(Feedback, "turn", [vote.turn]) if row.id.startswith(f"fb-{vote.turn}-")
        ]
        ids = {row.id for row in known}
        known += [row for row in self._votes.get(vote.turn, ()) if row.id not in ids]
        known = [row for row in known if row.kind == vote.kind and row.user == vote.user]
        if known:
            newest = max(known, key=lambda row: row.occurred_at or 0.0)
            same = [row for row in known if _says(row) == _says(vote)]
            if found := next((row for row in same if row is newest or row.occurred_at == vote.occurred_at), None):
                return found
        if any(row.id == vote.id for row in known):
            vote = replace(vote, id=f"{vote.id}-{content_hash(vote.occurred_at)[:8]}")
        self._votes.setdefault(vote.turn, []).append(vote)
        if len(self._votes) > REMEMBERED:
            self._votes.popitem(last=False)
        return vote


def _says(vote: Feedback) -> tuple[float | None, str | None, Json]:
    return vote.value, vote.text, vote.metadata


def _without_marks(turn: Turn) -> Turn:
    """The turn as its chat is read today."""
    messages = tuple(map(_plain, turn.messages))
    return replace(turn, messages=messages, answer=_plain(turn.answer))


def _plain(message: Json) -> Json:
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return message
    plain, marks = without_marks(content)
    return {**message, "content": plain} if marks else message


def _words(turn: Turn) -> str:
    """A hash of what was asked and answered."""
    said: list[Json] = [canonical(message) for message in (*turn.messages, turn.answer)]
    return content_hash(said)


@dataclass(slots=True)
class Unfolded:
    """Records of a chat."""

    records: list[Record]
    unasked: int = 0
    """Answers that nobody had asked for."""
    messages: int = 0
    turns: dict[str, str] = field(default_factory=dict)
    """The key of an answer -> the id of its turn."""
    captured: set[str] = field(default_factory=set)
    """Keys of answers that the gateway captured: feedback goes to that turn, and no second one is stored."""


class _Shape:
    """The messages of a tree, linked past what is left out. `keys` are in an order in which parents come first."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.above: dict[str, str | None] = {}
        """A message -> the message before it."""
        self.below: dict[str | None, list[str]] = defaultdict(list)
        """A message -> those that follow it, oldest first."""
        self.keys: list[str] = []
        self._walk()
        order = {key: n for n, key in enumerate(tree.nodes)}
        for following in self.below.values():
            following.sort(key=lambda key: (tree.nodes[key].created_at or 0.0, order[key]))
        self.visible = self._visible(order)

    def _walk(self) -> None:
        nodes = self.tree.nodes
        children: dict[str | None, list[str]] = defaultdict(list)
        for key, node in nodes.items():
            parent = node.parent
            if parent is not None and parent not in nodes:
                self.tree.left_out["missing_parent"] += 1
                parent = None
            children[parent].append(key)
        pending = [(key, None) for key in reversed(children[None])]  # type: list[tuple[str, str | None]]
        reached = 0
        while pending:
            key, before = pending.pop()
            reached += 1
            if nodes[key].message is not None:
                self.keys.append(key)
                self.above[key] = before
                self.below[before].append(key)
                before = key
            pending += [(child, before) for child in reversed(children[key])]
        if reached < len(nodes):
            self.tree.left_out["cycle"] += len(nodes) - reached
            if not self.keys:
                raise bad("cycle", "the messages of the chat lead in a circle: none of them is the first")

    def _visible(self, order: dict[str, int]) -> set[str]:
        """The messages of the branch that the user saw last; the newest one where the file does not say."""
        nodes, current = self.tree.nodes, self.tree.current
        if current is not None and current not in nodes:
            self.tree.left_out["unknown_current"] += 1
            current = None
        passed: set[str] = set()
        while current is not None and current not in self.above:  # left out, or in a circle
            passed.add(current)
            current = nodes[current].parent if current in nodes else None
            current = None if current in passed else current
        if current is None:
            leaves = [key for key in self.keys if not self.below.get(key)]
            current = max(leaves, key=lambda key: (nodes[key].created_at or 0.0, order[key]), default=None)
        found: set[str] = set()
        while current is not None:
            found.add(current)
            current = self.above[current]
        return found

    def role(self, key: str) -> str:
        message = self.tree.nodes[key].message
        return "" if message is None else str(message["role"])

    def next_of(self, key: str, roles: set[str]) -> str | None:
        """What follows a message, among these roles: on the visible branch, else the newest."""
        following = [k for k in self.below.get(key, ()) if self.role(k) in roles]
        return next((k for k in following if k in self.visible), following[-1] if following else None)

    def end_of(self, key: str) -> str:
        """The last answer of an attempt: behind calls of tools and their results."""
        last = key
        here: str | None = key
        while here is not None:
            last = here if self.role(here) == "assistant" else last
            here = self.next_of(here, {"assistant", "tool"})
        return last

    def attempts(self) -> Iterator[tuple[str, str]]:
        """(attempt, the next one at the same), for each attempt that the user left for another."""
        for key in self.keys:
            if self.role(key) != "user":
                continue
            groups: dict[str, list[str]] = defaultdict(list)
            for answer in self.below.get(key, ()):
                if self.role(answer) == "assistant":
                    groups[self.tree.nodes[answer].attempt].append(answer)
            for group in groups.values():
                for one, later in pairwise(group):
                    if one not in self.visible:
                        yield self.end_of(one), self.end_of(later)


def unfolded_tree(tree: Tree, format: str, names: ImportNames) -> Unfolded:
    """The turns and the feedback of a chat. UsageError when no message of it can be used."""
    shape = _Shape(tree)
    if not shape.keys:
        why = ", ".join(f"{number} {reason}" for reason, number in tree.left_out.items())
        raise bad("no_messages", f"no message of the chat can be used ({why or 'it is empty'})")
    if not tree.key:  # what a chat begins with does not change when it goes on
        tree.key = content_hash(*(str(tree.nodes[key].message) for key in shape.below[None][:1]), shape.keys[0])
    found = Unfolded([], messages=len(shape.keys))
    first = shape.below[None][0]
    captured = _captured(shape, names.captured(tree))
    conversation = "conv-" + content_hash(format, tree.key, tree.user or "", text_of(_message(tree, first)["content"]))
    for key, path in _paths(shape):
        if shape.role(key) != "assistant":
            continue
        if not any(message["role"] == "user" for message in path):
            found.unasked += 1
            continue
        known = captured.get(key)
        if known is not None:
            found.captured.add(key)
            found.turns[key] = known.turn.id
            names.note_captured(tree.key, key, known.turn.id)
            found.records += _said(shape, key, known.turn, names, follow_up=False)
            if known.edited:
                found.records.append(_edit(shape, key, known.turn, names))
            continue
        turn = _turn(shape, key, path, format, conversation, found)
        turn = names.of_chat(turn)
        found.turns[key] = turn.id
        found.records.append(turn)
        found.records += _said(shape, key, turn, names)
    for one, later in shape.attempts():
        if one in found.turns and later in found.turns:
            if one in found.captured and names.has_regenerated(found.turns[one]):
                continue
            found.records.append(Feedback(
                id=f"fb-{found.turns[one]}-regenerated", turn=found.turns[one], kind="regenerated",
                next_turn=found.turns[later], user=tree.user, **_when(tree.nodes[later].created_at),
            ))  # fmt: skip
    return found


def _captured(shape: _Shape, chat: CapturedChat) -> dict[str, CapturedAnswer]:
    """The captured turns of a chat's answers."""
    if not chat:
        return {}
    answers = [
        ChatAnswer(key, asked_in(path), answered_in(_message(shape.tree, key)))
        for key, path in _paths(shape)
        if shape.role(key) == "assistant"
    ]
    return chat.match(answers)


def _edit(shape: _Shape, key: str, turn: Turn, names: ImportNames) -> Record:
    """The answer as the user left it, where the front end does not keep what was served. When is not known."""
    final = text_of(_message(shape.tree, key).get("content"))
    return _vote(turn.id, {"kind": "edited", "final_text": final}, shape.tree.user, names)


def _message(tree: Tree, key: str) -> Json:
    return tree.nodes[key].message or {}


def _paths(shape: _Shape) -> Iterator[tuple[str, list[Json]]]:
    """Each message with those before it. The list is one and the same, and changes with the next step."""
    tree = shape.tree
    head: list[Json] = [{"role": "system", "content": tree.system}] if tree.system else []
    path = list(head)
    depths: dict[str | None, int] = {None: len(head)}
    for key in shape.keys:  # depth first: what is on the path beyond the parent belongs to another branch
        del path[depths[shape.above[key]] :]
        yield key, path
        path.append(_message(tree, key))
        depths[key] = len(path)


def turn_id(format: str, chat: str, user: str | None, message: str) -> str:
    """The id of an answer in a chat, from the ids that the product gave them."""
    return ("imp-u" if user else "imp-") + content_hash(format, chat, user or "", message)


def _turn(shape: _Shape, key: str, path: list[Json], format: str, conversation: str, found: Unfolded) -> Turn:
    tree, node = shape.tree, shape.tree.nodes[key]
    before = shape.above[key]
    while before is not None and before not in found.turns:
        before = shape.above[before]
    return Turn(
        id=turn_id(format, tree.key, tree.user, key), messages=history_of(path, len(path)), answer=_message(tree, key),
        user=tree.user, conversation=conversation, previous=None if before is None else found.turns[before],
        tools=tree.tools, source=f"import:{format}", missing_ids=MISSING_IDS,
        **{"model": tree.model, **node.turn, **_when(node.created_at or tree.created_at)},
    )  # fmt: skip


def _when(moment: float | None) -> Json:
    return {} if moment is None else {"created_at": moment}


def _said(shape: _Shape, key: str, turn: Turn, names: ImportNames, *, follow_up: bool = True) -> Iterator[Record]:
    """What the user did with an answer: the votes and edits on it, and the next message, which the gateway has seen
    itself (`follow_up`) where it captured the answer."""
    tree, node = shape.tree, shape.tree.nodes[key]
    for fields in node.feedback:
        given = {**_when(node.created_at), **{k: v for k, v in fields.items() if v is not None}}
        yield _vote(turn.id, given, tree.user, names)
    if not follow_up:
        return
    words: list[str] = []
    following = shape.next_of(key, {"user"})
    asked = following
    while following is not None:
        words.append(text_of(_message(tree, following).get("content")))
        following = shape.next_of(following, {"user"})
    said = "\n\n".join(words).strip()
    if said and asked is not None:
        yield Feedback(
            id=f"fb-{turn.id}-{content_hash(asked, said)[:12]}", turn=turn.id, kind="follow_up", text=said,
            user=tree.user, source="detector", **_when(tree.nodes[asked].created_at),
        )  # fmt: skip


def _vote(turn: str, fields: Json, user: str | None, names: ImportNames) -> Feedback:
    """A vote or an edit. Its id says what it is, so that the same one out of another file is the same row."""
    said = [fields.get(name) for name in ("kind", "value", "text", "final_text", "metadata")]
    vote = Feedback(id=f"fb-{turn}-{content_hash(user or '', said)[:16]}", turn=turn, user=user, **fields)
    return names.of_vote(vote) if vote.kind == "rating" else vote


def remarked(remark: Remark, format: str, names: ImportNames) -> Unfolded:
    """Feedback on a message of a chat, with the turns of the chat when the row carries it."""
    found = Unfolded([]) if remark.tree is None else unfolded_tree(remark.tree, format, names)
    turn = found.turns.get(remark.message) or names.turn_of_message(remark.chat, remark.message)
    turn = turn or turn_id(format, remark.chat, remark.owner, remark.message)
    given = {**remark.fields, **_when(remark.moment), "occurred_at": remark.moment}
    found.records.append(_vote(turn, given, remark.user, names))
    return found
