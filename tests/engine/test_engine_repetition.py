"""An answer that says the same again and again ends; lists, tables, code, poems and what was asked for do not."""

from __future__ import annotations

import inspect
import json
import textwrap

import pytest
from tests.engine.conftest import Client

from afterword.chat.render import encode
from afterword.model import loading
from afterword.model.generation import repetition
from afterword.model.generation.repetition import LONG_STRETCH, Repetition


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return loading.load_tokenizer(loading.EMBEDDED)


def ends_at(ids: list[int]) -> int | None:
    """Tokens after which the answer ends; None when it does not."""
    seen = Repetition()
    return next((place for place, token in enumerate(ids, 1) if seen.push(token)), None)


SKY = "The sky is blue because the molecules of the air scatter short waves of light more than long ones. "
PARAGRAPH = SKY + (
    "When the sun is low its light passes through more air, so that most of the blue is gone and red is left. "
    "Clouds are white because their drops are larger than any wave of light and scatter all of them alike. "
)
FUNCTION = "def test_the_answer():\n    result = answer(question)\n    assert result is not None\n    print(result)\n\n"
ROW = "| Paris | France | 2.1 million | Seine | Eiffel Tower |\n"

LOOPS = {
    "a sentence": SKY * 60,
    "a paragraph": PARAGRAPH * 20,
    "two sentences in turn": (SKY + "That is why it is blue, and not green or red, as many people think. ") * 40,
    "after a good beginning": "Rayleigh showed how light is scattered by what is smaller than its waves.\n" + SKY * 60,
    "an item of a list": "Some reasons:\n" + "- It is good for your health and for your mind.\n" * 80,
    "a row of a table": "| City | Country | People | River | Sight |\n|---|---|---|---|---|\n" + ROW * 60,
    "a function": FUNCTION * 60,
    "another script": "天空之所以是蓝色的，是因为空气分子对短波光的散射比对长波光的散射更强。" * 40,
    "one word": "very " * 900,
    "one line": "I will not talk in class.\n" * 200,
}  # fmt: skip

GIFTS = (
    "a partridge in a pear tree", "two turtle doves and", "three French hens", "four calling birds", "five gold rings",
    "six geese a-laying", "seven swans a-swimming", "eight maids a-milking", "nine ladies dancing",
    "ten lords a-leaping", "eleven pipers piping", "twelve drummers drumming",
)  # fmt: skip
DAYS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
JACK = (
    "house that Jack built", "malt that lay in the", "rat that ate the", "cat that killed the", "dog that worried the",
    "cow with the crumpled horn that tossed the", "maiden all forlorn that milked the",
    "man all tattered and torn that kissed the", "priest all shaven and shorn that married the",
    "cock that crowed in the morn that waked the", "farmer sowing his corn that kept the",
)  # fmt: skip
REFRAIN = "And the sea goes out, and the sea comes in,\nand the gulls cry over the bay.\n\n"
VERSES = (
    "The fisher mends his torn old net", "A lantern swings on the harbour wall", "My mother's shawl is white with salt",
    "The winter ships are late this year", "A bell rings under the falling tide", "The children gather driftwood now",
    "No letter comes from the northern ice", "The lamp is lit in the window still",
)  # fmt: skip
ANIMALS = ["cow", "pig", "duck", "horse", "sheep", "cat", "dog", "hen", "goat", "turkey"]

FINE = {
    "a table of products": "\n".join("| " + " | ".join(str(a * b) for b in range(1, 13)) + " |" for a in range(1, 40)),
    "rows that differ in a number": "id,name,state\n" + "\n".join(f"{n},guest,active" for n in range(1, 150)),
    "objects that differ in a number": json.dumps([{"id": n, "type": "sensor"} for n in range(90)], indent=2),
    "a numbered list": "\n".join(f"{n}. Chapter {n}: to be written" for n in range(1, 120)),
    "things to do": "\n".join(f"- [ ] Call customer {n} and write down what was said" for n in range(1, 80)),
    "pages of a site": "\n".join(f'<li><a href="page{n}.html">Page {n}</a></li>' for n in range(1, 70)),
    "a grid of zeros": "[\n" + "    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],\n" * 10 + "]",
    "an empty table": "<table>\n" + ("<tr>" + "<td></td>" * 5 + "</tr>\n") * 8 + "</table>",
    "an empty calendar": "| Mon | Tue | Wed | Thu | Fri |\n|---|---|---|---|---|\n" + "|   |   |   |   |   |\n" * 20,
    "a punishment": "I will not talk in class.\n" * 40,
    "a line drawn": "=" * 9000,
    "verses with a refrain": "".join(f"{v},\n{v.lower()} and more.\n{REFRAIN}" for v in VERSES),
    "a refrain five times": REFRAIN * 5,
    "gifts of twelve days": "\n\n".join(
        f"On the {DAYS[n]} day of Christmas my true love sent to me\n" + ",\n".join(reversed(GIFTS[: n + 1]))
        for n in range(12)
    ),
    "the house that Jack built": "\n\n".join(
        "This is the " + " ".join(reversed(JACK[: n + 1])) + "." for n in range(11)
    ),
    "bottles": "\n\n".join(
        f"{n} bottles of beer on the wall, {n} bottles of beer.\nTake one down and pass it around, {n - 1} bottles of "
        "beer on the wall." for n in range(99, 70, -1)
    ),
    "a farm": "\n\n".join(
        f"Old MacDonald had a farm, E-I-E-I-O, and on that farm he had a {a}, E-I-E-I-O, with a {a} sound here and "
        f"a {a} sound there, here a {a}, there a {a}, everywhere a {a}. Old MacDonald had a farm, E-I-E-I-O."
        for a in ANIMALS
    ),
    "an example in two versions": PARAGRAPH * 3,
    "lines of a log": "\n".join(f"2026-11-30 10:{n:02d}:00 INFO worker: job {n * 7919}, 12 ms" for n in range(60)),
    "classes alike": "\n".join(
        f"class {a.title()}(Animal):\n    def __init__(self, name: str) -> None:\n        super().__init__(name)\n\n"
        f"    def speak(self) -> str:\n        return sound_of({a!r})\n" for a in ANIMALS
    ),
    **{f"the source of {m.__name__}": inspect.getsource(m)[:12000] for m in (json.decoder, textwrap, inspect)},
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_ends(tokenizer: object, name: str) -> None:
    ids = list(encode(tokenizer, LOOPS[name]))  # type: ignore[arg-type]
    place = ends_at(ids)
    assert place is not None and place < len(ids)
    if len(set(ids)) > repetition.MONOTONOUS:
        longest = 700 if name == "a paragraph" else 450
        assert place <= longest, place
    else:
        assert LONG_STRETCH < place <= LONG_STRETCH + 100


@pytest.mark.parametrize("name", FINE)
def test_what_repeats_its_frame_does_not_end(tokenizer: object, name: str) -> None:
    ids = list(encode(tokenizer, FINE[name]))  # type: ignore[arg-type]
    assert len(ids) > 100 and ends_at(ids) is None, ends_at(ids)


class _Fiftieth(Repetition):
    """Says that an answer loops at its fiftieth token."""

    def push(self, token: int) -> bool:
        super().push(token)
        return self._place == 50


async def test_the_engine_ends_it_and_reports_what_was_sampled(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterword.model.generation.engine.Repetition", _Fiftieth)
    plain = await client.ask("Hi", max_tokens=400, temperature=0, ignore_eos=True)
    body = await client.ask("Hi", max_tokens=400, temperature=0, ignore_eos=True, stop_repetition=True, logprobs=True)
    full, cut = plain["choices"][0], body["choices"][0]
    assert len(full["token_ids"]) == 400 and "stop_reason" not in full
    assert len(cut["token_ids"]) == 50
    assert (cut["finish_reason"], cut["stop_reason"]) == ("length", "repetition")
    assert cut["token_ids"] == full["token_ids"][: len(cut["token_ids"])]
    assert len(cut["logprobs"]["content"]) == len(cut["token_ids"]) == body["usage"]["completion_tokens"]
    assert full["message"]["content"].startswith(cut["message"]["content"].rstrip("\ufffd"))
    assert client.engine.counts()["repetitions"] == 1
    within = await client.ask("Hi", max_tokens=30, temperature=0, ignore_eos=True, stop_repetition=True)
    assert "stop_reason" not in within["choices"][0]
    status, _ = await client.raw("x" * 440, min_room=64, max_tokens=200)
    assert status == 400, "too little room is no room"
    assert (await client.raw("x" * 440, min_room=64, max_tokens=4))[0] == 200
