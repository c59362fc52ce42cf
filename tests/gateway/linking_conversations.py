"""Conversations of many people at once, sent as real clients send them, with the truth about what continues what.

Openings, short questions and short answers are the same for everybody ("Hi", "Sure!", "Yes."); so are some long answers
(refusals). Each conversation has one kind of client, or two kinds at once; see `KINDS`. `play` sends them through a
`Links` with a real database, many at a time, and counts what was linked rightly, wrongly and not at all.

    python -m tests.gateway.linking_conversations [--count 10000] [--each]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afterword.chat.trail import squeezed, trail_of_turn
from afterword.gateway.link import Link, Links
from afterword.gateway.wire.request import ChatRequest, parse_chat
from afterword.records import Feedback, Record, Turn
from afterword.store import Store

Json = dict[str, Any]
MODES = ("named", "user", "nobody")
"""User and conversation are named, or the user alone, or neither."""
KINDS = (
    "plain", "clock", "system", "known wrapper", "unknown wrapper", "window", "window without system", "thoughts",
    "tools", "tools dropped", "continued", "parts", "merged", "edited", "empty", "branches", "twice",
)  # fmt: skip
PAIRS = (
    ("clock", "window"), ("clock", "known wrapper"), ("known wrapper", "window"), ("thoughts", "clock"),
    ("thoughts", "unknown wrapper"), ("tools", "clock"), ("parts", "window"), ("continued", "system"),
    ("branches", "clock"), ("branches", "known wrapper"), ("thoughts", "tools"), ("merged", "system"),
)  # fmt: skip
OPENINGS = ("Hi", "Hello", "Hi there!", "Good morning", "Can you help me?", "Hey", "Are you there?", "Test")
GREETINGS = ("Hello! How can I help you today?", "Hi!", "Sure!", "Yes.", "Of course. What do you need?")
SHORT_ASKED = ("Shorter, please.", "Thanks!", "Why?", "Go on", "Are you sure?", "Yes", "In one word?", "Again.")
SHORT_SAID = ("Sure!", "Yes.", "No.", "You're welcome!", "Done.", "I am not sure.", "42", "OK", "Good question!")
CANNED = (
    "I'm sorry, but I can't help with that request. If there is anything else that you need, please let me know.",
    "As a language model I have no access to live data. Please look at an up-to-date source for that information.",
)
SYSTEMS = ("You are a helpful assistant.", "You are a pirate.", "Answer in one sentence.", "You are a cook.", None)
WORDS = (
    "egg", "water", "stove", "salt", "pan", "oil", "time", "heat", "plate", "spoon", "river", "cloud", "stone", "paper",
    "window", "garden",
)  # fmt: skip
KNOWN = (
    "Use these sources to reply.\n<context>\n{text}\n</context>\n<query>\n{asked}\n</query>",
    "### Task:\nRespond using the provided context.\n\n<context>\n{text}\n</context>\n\n{asked}",
    "Use the following pieces of context to answer.\n\nContext:\n{text}\n\nQuestion: {asked}\nHelpful Answer:",
    "{asked}\n\n<attachment_file>\n{text}\n</attachment_file>",
)
UNKNOWN = (
    "Extraits de la documentation :\n\n{text}\n\nDemande : {asked}",
    "{asked}\n\n[[ {text} ]]",
    "NOTES {text}\n\nPERSON SAYS {asked}",
)
THOUGHTS = ("<think>\n{}\n</think>\n\n", "[THINK]{}[/THINK]", "{}</think>\n", "<reasoning>{}</reasoning>")


@dataclass
class Exchange:
    """A question and its answer as the user sees them."""

    asked: str
    said: str
    turn: str
    steps: list[Json] = field(default_factory=list)
    """Calls of tools and their results in between."""
    parts: tuple[str, ...] = ()
    """The question as two messages."""


@dataclass
class Ask:
    """One request, and the truth about it."""

    messages: list[Json]
    history: tuple[str, ...]
    """The words up to the newest answer that the client shows, squeezed."""
    asked: tuple[str, ...]
    """The words of the whole conversation, squeezed, the question included."""
    truth: str | None
    words: str | None
    """What the user said newly."""
    answer: Json
    """What the model says."""
    said: str
    """Its words as the user sees them."""
    begun: str = ""
    """The part of the answer that stands in the request already."""
    repeats: str | None = None
    turn: str = ""


@dataclass
class Tally:
    """What came of the requests of one kind."""

    right: int = 0
    wrong: int = 0
    missed: int = 0
    alike: int = 0
    """Not linked, because other turns of the scope read the same in all that the client sent."""
    repeated: int = 0
    unrepeated: int = 0
    words: int = 0
    """Follow-ups in the user's own words."""
    other_words: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        again, words = self.repeated + self.unrepeated, self.words + self.other_words
        return (
            f"recall {self.recall:7.2%}  right {self.right:5d}  wrong {self.wrong}  missed {self.missed}  "
            f"alike {self.alike}  again {self.repeated}/{again}  words {self.words}/{words}  {dict(self.outcomes)}"
        )

    @property
    def recall(self) -> float:
        return self.right / max(self.right + self.missed + self.wrong, 1)

    def add(self, other: Tally) -> None:
        for item in dataclasses.fields(Tally):
            value = getattr(self, item.name)
            if isinstance(value, Counter):
                value.update(getattr(other, item.name))
            else:
                setattr(self, item.name, value + getattr(other, item.name))


class Talk:
    """One conversation with one client."""

    def __init__(self, rng: random.Random, kinds: tuple[str, ...], user: str | None, name: str | None) -> None:
        self.rng, self.kinds, self.user, self.name = rng, kinds, user, name
        self.system = rng.choice(SYSTEMS)
        self.window = rng.choice((2, 3, 4, 5, 6, 8)) if self.windowed else 0
        self.wrapper = rng.choice(KNOWN if "known wrapper" in kinds else UNKNOWN)
        self.thought = rng.choice(THOUGHTS)

    @property
    def windowed(self) -> bool:
        return any(kind.startswith("window") for kind in self.kinds)

    # ---- words

    def sentence(self, least: int, most: int) -> str:
        words = [self.rng.choice(WORDS) for _ in range(self.rng.randint(least, most))]
        return " ".join(words).capitalize() + "."

    def question(self, first: bool) -> str:
        if first:
            return self.rng.choice(OPENINGS) if self.rng.random() < 0.6 else self.sentence(4, 12)
        return self.rng.choice(SHORT_ASKED) if self.rng.random() < 0.5 else self.sentence(3, 10)

    def answer(self, first: bool) -> str:
        draw = self.rng.random()
        if draw < 0.45:
            return self.rng.choice(GREETINGS if first else SHORT_SAID)
        return self.rng.choice(CANNED) if draw < 0.5 else self.sentence(6, 40)

    # ---- what the client sends

    def send(self, past: list[Exchange], newest: list[Json]) -> tuple[list[Json], tuple[str, ...]]:
        """The messages, and the words of the history that they show."""
        shown: list[tuple[Json, str]] = []
        for exchange in past:
            shown += self.asked_before(exchange)
            shown += [(step, "") for step in exchange.steps if "tools dropped" not in self.kinds]
            shown.append((self.content("assistant", exchange.said), exchange.said))
        if self.window:
            shown = shown[max(len(shown) - max(self.window - len(newest), 0), 0) :]
            while shown and shown[0][0]["role"] == "tool":
                shown.pop(0)
        messages = [message for message, _ in shown] + newest
        system = self.system_prompt()
        words = tuple(squeezed(text) for _, text in shown if text)
        return ([{"role": "system", "content": system}, *messages] if system else messages), words

    def system_prompt(self) -> str | None:
        if "window without system" in self.kinds:
            return None
        if "system" in self.kinds:
            return self.rng.choice(SYSTEMS)
        if "clock" in self.kinds:
            return f"{self.system or ''} It is 10:{self.rng.randint(0, 59):02d}:{self.rng.randint(0, 59):02d}."
        return self.system

    def content(self, role: str, text: str) -> Json:
        if "parts" in self.kinds and self.rng.random() < 0.7:
            text = self.rng.choice((text.strip(), f"{text}\n", f" {text}"))
            return {"role": role, "content": self.rng.choice((text, [{"type": "text", "text": text}]))}
        return {"role": role, "content": text}

    def asked_before(self, exchange: Exchange) -> list[tuple[Json, str]]:
        text = exchange.asked
        if "edited" in self.kinds and self.rng.random() < 0.15 and len(text) > 20:
            return [(self.content("user", f"{text} (edited)"), text)]
        if exchange.parts and self.rng.random() < 0.5:
            return [(self.content("user", part), squeezed(text) if n == 0 else "") for n, part in
                    enumerate(exchange.parts)]  # fmt: skip
        return [(self.content("user", text), text)]

    def newest(self, text: str, parts: tuple[str, ...]) -> list[Json]:
        if any("wrapper" in kind for kind in self.kinds):
            passages = "\n".join(self.sentence(8, 30) for _ in range(self.rng.randint(1, 4)))
            return [{"role": "user", "content": self.wrapper.format(text=passages, asked=text)}]
        return [self.content("user", part) for part in parts or (text,)]

    # ---- the conversation

    def run(self) -> Generator[list[Ask], None, None]:
        """Requests that are sent at the same time; their turns are known when this goes on."""
        past: list[Exchange] = []
        for number in range(self.rng.randint(2, 6)):
            parts: tuple[str, ...] = ()
            asked = self.question(number == 0)
            if "merged" in self.kinds and self.rng.random() < 0.5:
                parts = (asked, self.sentence(2, 6))
                asked = "\n\n".join(parts)
            exchange = yield from self.exchange(past, asked, parts, None)
            if "branches" in self.kinds:
                exchange = yield from self.branch(past, exchange)
            if "empty" in self.kinds and self.rng.random() < 0.3:
                exchange.steps.append({"role": "user", "content": ""})
            past.append(exchange)

    def branch(self, past: list[Exchange], exchange: Exchange) -> Generator[list[Ask], None, Exchange]:
        draw = self.rng.random()
        if draw < 0.25:  # asked again
            return (yield from self.exchange(past, exchange.asked, (), exchange.turn))
        if draw < 0.4:  # the question is edited
            return (yield from self.exchange(past, self.question(not past), (), None))
        if draw < 0.5 and past:  # back to an earlier answer, and on from there
            del past[self.rng.randrange(len(past)) + 1 :]
            return (yield from self.exchange(past, self.question(False), (), None))
        return exchange

    def exchange(
        self, past: list[Exchange], asked: str, parts: tuple[str, ...], repeats: str | None
    ) -> Generator[list[Ask], None, Exchange]:
        newest = self.newest(asked, parts)
        said = self.answer(not past)
        made = Exchange(asked, said, "", parts=parts)
        truth = past[-1].turn if past else None
        if any(kind.startswith("tools") for kind in self.kinds) and self.rng.random() < 0.5:
            step = yield from self.tool_step(past, asked, newest)
            truth, made.steps = step
            newest = [*newest, *made.steps]
        if "continued" in self.kinds and self.rng.random() < 0.5 and len(said) > 30:
            cut = self.rng.randint(8, len(said) - 8)
            begun = self.ask(past, newest, asked, said[:cut], truth)
            yield [begun]
            more = self.ask(past, [*newest, {"role": "assistant", "content": said[:cut]}], asked, said, begun.turn)
            more.history = (*more.history, squeezed(asked), squeezed(said[:cut])) if not self.window else ("?",)
            more.truth = begun.turn
            more.words, more.begun, more.answer = None, said[:cut], {"role": "assistant", "content": said[cut:]}
            yield [more]
            made.turn = more.turn
            return made
        asks = [self.ask(past, newest, asked, said, truth, in_tools=bool(made.steps))]
        asks[0].repeats = repeats
        if "twice" in self.kinds and self.rng.random() < 0.3:
            asks.append(dataclasses.replace(asks[0], repeats=None))
        yield asks
        made.turn = asks[-1].turn
        return made

    def tool_step(
        self, past: list[Exchange], asked: str, newest: list[Json]
    ) -> Generator[list[Ask], None, tuple[str, list[Json]]]:
        city, days = self.rng.choice(WORDS), self.rng.randint(1, 3)
        arguments = json.dumps({"city": city, "days": days}, separators=(",", ":"))
        call = {"id": f"call_{self.rng.getrandbits(32)}", "type": "function", "index": 0,
                "function": {"name": "weather", "arguments": arguments}}  # fmt: skip
        ask = self.ask(past, newest, asked, f"\0{city}{days}", past[-1].turn if past else None)
        ask.answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        yield [ask]
        again = {**call, "function": {"name": "weather", "arguments": json.dumps({"days": days, "city": city})}}
        again.pop("index")
        content = self.rng.choice((None, ""))
        step = {"role": "assistant", "content": content, "tool_calls": [again]}
        return ask.turn, [step, {"role": "tool", "tool_call_id": call["id"], "content": str(days)}]

    def ask(
        self, past: list[Exchange], newest: list[Json], asked: str, said: str, truth: str | None, in_tools: bool = False
    ) -> Ask:
        messages, history = self.send(past, newest)
        before = tuple(squeezed(text) for exchange in past for text in (exchange.asked, exchange.said))
        if in_tools:
            call = newest[-2]["tool_calls"][0]["function"]["arguments"]
            found = json.loads(call)
            history = (*history, squeezed(asked), f"\0{found['city']}{found['days']}")
        answer = {"role": "assistant", "content": said}
        if "thoughts" in self.kinds:
            answer["content"] = self.thought.format(self.sentence(3, 20)) + said
        truth = truth if history else None
        words = None if in_tools else asked
        return Ask(messages, history, (*before, squeezed(asked)), truth, words, answer, said)


class World:
    """Everything that one database sees."""

    def __init__(self, store: Store, mode: str, seed: int, remembered: int) -> None:
        self.store, self.mode, self.rng = store, mode, random.Random(seed)
        self.links = Links(store, remembered)
        self.endings: Counter[tuple[Any, ...]] = Counter()
        """How many turns of a scope end in these words."""
        self.ends: dict[str, tuple[Any, ...]] = {}
        self.tallies: dict[tuple[str, ...], Tally] = defaultdict(Tally)
        self.turns = 0
        self.said: dict[tuple[str, str], str] = {}
        """(turn, next turn) -> the user's words, where the next one was linked rightly."""
        self.whose: dict[str, tuple[str, ...]] = {}
        self.asking = 0.0
        self._waiting: list[Future[Any]] = []
        self._pending: set[str | None] = set()

    def talk(self, number: int, kinds: tuple[str, ...]) -> Talk:
        people = 400 if self.mode != "nobody" else 1
        user = None if self.mode == "nobody" else f"user-{self.rng.randrange(people)}"
        name = f"c{number}" if self.mode == "named" else None
        return Talk(random.Random(self.rng.getrandbits(64)), kinds, user, name)

    def run(self, kinds: list[tuple[str, ...]], at_once: int = 200) -> None:
        """Have one conversation of each entry, `at_once` of them at a time."""
        talks = (self.talk(number, kind) for number, kind in enumerate(kinds))
        running: list[tuple[Talk, Iterator[list[Ask]]]] = []
        while True:
            while len(running) < at_once and (talk := next(talks, None)) is not None:
                running.append((talk, talk.run()))
            if not running:
                break
            place = self.rng.randrange(len(running))
            talk, going = running[place]
            asks = next(going, None)
            if asks is None:
                running[place] = running[-1]
                running.pop()
                continue
            found = [self.find(talk, ask) for ask in asks]
            for ask, (_, link) in zip(asks, found, strict=True):
                self.judge(talk, ask, link)
            for ask, (chat, link) in zip(asks, found, strict=True):
                self.keep(talk, ask, chat, link)
        self.settle()
        self.judge_words()

    def find(self, talk: Talk, ask: Ask) -> tuple[ChatRequest, Link]:
        headers = {"x-afterword-user": talk.user, "x-afterword-conversation": talk.name}
        if ask.truth in self._pending:
            self.settle()  # people answer later than a commit takes
        named = {name: value for name, value in headers.items() if value}
        chat = parse_chat(json.dumps({"model": "m", "messages": ask.messages}).encode(), named, "key")
        started = time.perf_counter()
        link = self.links.find(chat)
        self.asking += time.perf_counter() - started
        return chat, link

    def judge(self, talk: Talk, ask: Ask, link: Link) -> None:
        tally = self.tallies[talk.kinds]
        if ask.repeats is not None:
            tally.repeated += link.repeats == ask.repeats
            tally.unrepeated += link.repeats != ask.repeats
        if link.repeats is not None and ask.repeats is None and not self.same(link.repeats, talk, ask):
            tally.wrong += 1
        if link.previous is None and ask.truth is None:
            return
        tally.outcomes[link.outcome] += 1
        if link.previous == ask.truth:
            tally.right += 1
        elif link.previous is None:
            alike = self.endings[(talk.user, talk.name, *ask.history)] > 1
            tally.alike += alike
            tally.missed += not alike
        elif talk.name is not None and ask.truth and self.ends[link.previous] == self.ends[ask.truth]:
            tally.right += 1  # asked and answered twice in the same words: the client shows one of them
        else:
            tally.wrong += 1

    def same(self, turn: str, talk: Talk, ask: Ask) -> bool:
        """Was this turn the answer to the same words in the same conversation?"""
        return self.ends[turn][:-1] == (talk.user, talk.name, *ask.asked)

    def keep(self, talk: Talk, ask: Ask, chat: ChatRequest, link: Link) -> None:
        ask.turn = f"t{self.turns}"
        self.turns += 1
        turn = Turn(
            id=ask.turn, messages=tuple(chat.messages), answer=ask.answer, user=chat.user, key=chat.key,
            conversation=link.conversation, previous=link.previous, finish_reason="stop",
            thread=trail_of_turn(chat.scope, chat.messages, ask.answer, link.sent), unlinked=link.unlinked,
        )  # fmt: skip
        self.links.remember(turn, link.asked, chat.model)
        self.submit(turn, *link.feedback(chat.user, turn.id))
        if link.previous is not None and link.previous == ask.truth and ask.words and link.repeats is None:
            self.said[(link.previous, turn.id)] = ask.words
            self.whose[turn.id] = talk.kinds
        whole = (*ask.asked, squeezed(ask.said))
        self.ends[turn.id] = (talk.user, talk.name, *whole)
        for start in range(len(whole)):
            self.endings[(talk.user, talk.name, *whole[start:])] += 1

    def submit(self, *records: Record) -> None:
        self._waiting.append(self.store.submit(records))
        self._pending.add(records[0].id)
        if len(self._waiting) >= 400:
            self.settle()

    def settle(self) -> None:
        for future in self._waiting:
            future.result()
        self._waiting.clear()
        self._pending.clear()

    def judge_words(self) -> None:
        """What is left of the follow-ups, those that were taken back left out."""
        gone = self.store.retracted()
        for row in self.store.rows(Feedback, kind="follow_up"):
            expected = self.said.get((row.turn, row.next_turn or ""))
            if row.id in gone or expected is None:
                continue
            tally = self.tallies[self.whose[row.next_turn or ""]]
            if squeezed(row.text or "") == squeezed(expected):
                tally.words += 1
            else:
                tally.other_words += 1


def play(path: Path, mode: str, kinds: list[tuple[str, ...]], seed: int = 0, remembered: int = 2000) -> World:
    """Have the conversations in a new database; the world with its counts."""
    with Store.open(path) as store:
        world = World(store, mode, seed, remembered)
        world.run(kinds)
    return world


def mixed(count: int) -> list[tuple[str, ...]]:
    """`count` conversations of all kinds and pairs, evenly."""
    every = [*((kind,) for kind in KINDS), *PAIRS]
    return [every[n % len(every)] for n in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="conversations in each database")
    parser.add_argument("--each", action="store_true", help="a database for each kind, too")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    runs = [("mixed", mixed(args.count))]
    if args.each:
        runs += [(" + ".join(kind), [kind] * args.count) for kind in [*((kind,) for kind in KINDS), *PAIRS]]
    for mode in args.mode or MODES:
        for name, kinds in runs:
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                world = play(Path(folder) / "a.db", mode, kinds, args.seed)
            each = world.asking / max(world.turns, 1) * 1e6
            print(f"\n{mode}, {name}: {len(kinds)} conversations, {world.turns} requests, {each:.0f} us to link one, "
                  f"{time.perf_counter() - started:.0f} s")  # fmt: skip
            for kind, tally in sorted(world.tallies.items()):
                print(f"  {' + '.join(kind):28} {tally}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
