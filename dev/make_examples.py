"""Make the example conversations that come with the package (`afterword import --examples`).

    python dev/make_examples.py [OUTPUT]

Four made-up users put the questions below to the built-in model through a real `afterword serve` with the `openai`
client, and write the follow-up that stands beside each question, whatever the answer was. What the gateway stored is
written as `afterword export` writes it, with the served token ids and their log-probabilities, so training from it is
on-policy. Requests run one at a time with a fixed seed each, and times and ids are set to fixed values: on one kind of
CPU the file is the same at every run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from openai import OpenAI

from afterword.cli.demo_processes import serving
from afterword.feedback.examples import EXAMPLES
from afterword.records import Feedback, Turn
from afterword.store import Store

USERS = ("example-ada", "example-ben", "example-cleo", "example-dan")
STARTED = 1_750_000_000.0
"""Time of the first turn (Unix seconds, UTC); each conversation begins an hour after the one before."""
PREFIX = "examples-"
"""The split of a conversation follows from a hash of its name: with this one 16 of the first 44 are held out, enough
for the gate's 12 in so small a file."""
MAX_TOKENS = 64

CONVERSATIONS = (
    ("How do magnets stick to a fridge?", "Shorter, please. One sentence is enough."),
    ("What makes bread rise?", "That is too long. Two sentences at most."),
    ("Why do cats purr?", "Please keep it to one or two sentences."),
    ("How does a zip fastener hold together?", "Too much text, just the main point please."),
    ("What is the difference between a frog and a toad?", "Can you say that in one sentence?"),
    ("Why does ice float on water?", "I only wanted a short answer."),
    ("How do bees find their way back to the hive?", "Be brief, please. One sentence."),
    ("What does a conductor do in an orchestra?", "Make it shorter, two sentences."),
    ("Why do onions make people cry?", "Short version, please."),
    ("How does a thermos keep tea hot?", "You write too much. One sentence will do."),
    ("What is yeast?", "Too long for me, please cut it down to a sentence or two."),
    ("Why are leaves green?", "Answer in one short sentence, please."),
    ("How do I get candle wax out of a tablecloth?", "That is a lot of text. Please make it short."),
    ("What is the use of a leap year?", "In one sentence, please."),
    ("How do birds sleep on a branch without falling?", "Fewer words, please."),
    ("Why does metal feel colder than wood?", "Please be concise, two sentences at most."),
    ("What causes hiccups?", "Keep it shorter, please."),
    ("How does soap remove grease?", "I do not have time to read so much. One or two sentences."),
    ("Why do we yawn?", "A short answer is enough, please."),
    ("How do I keep basil fresh?", "Please shorten that to one sentence."),
    ("What is a solar eclipse?", "Too long. Say it in one sentence."),
    ("Why is the sea salty?", "Thanks, but shorter please."),
    ("How does a lock on a canal work?", "The short version would be better, two sentences."),
    ("Why do some apples turn brown after they are cut?", "Sum it up in one sentence, please."),
    ("What is the purpose of a spleen?", "Shorter. One sentence."),
    ("How do I sharpen a pencil with a knife?", "Please keep it brief, one or two sentences."),
    ("Why do stars twinkle?", "That was too long, please answer briefly."),
    ("What is the difference between weather and climate?", "Less text, please. Two sentences."),
    ("How do glasses help people to see?", "Only the main point, please."),
    ("Why do dogs wag their tails?", "One sentence is all I need."),
    ("How is paper recycled?", "Please write less. One or two sentences."),
    ("What is a light year?", "Too wordy. One short sentence, please."),
    ("Why does popcorn pop?", "Could you make that shorter?"),
    ("How do tides work?", "Please say it in two sentences."),
    ("What is the point of a stitch marker in knitting?", "Way too long. A sentence or two, please."),
    ("Why do joints crack?", "Give me the short answer, please."),
    ("How do I descale a kettle?", "Be short, please."),
    ("What makes a rainbow?", "I would like that in one sentence."),
    ("Why do bicycles have gears?", "Please, only one or two sentences."),
    ("How do fish breathe?", "That is more than I wanted, keep it to a sentence."),
    ("What is inflation?", "Shorter answer, please."),
    ("Why does milk turn sour?", "Brief, please: two sentences at most."),
    ("How does a microwave heat food?", "Too long, one sentence please."),
    ("What is a comet's tail made of?", "Please answer shorter."),
    ("How do I stop shoes from squeaking?", "Thanks!"),
    ("Why do flamingos stand on one leg?", "What time is it in Lisbon?"),
    ("What is felt made of?", "ok"),
    ("How do owls fly so quietly?", "Thank you, that helps."),
)
"""(question, follow-up). The last four teach nothing: they show what `collect` skips."""


def talk(url: str) -> None:
    """Hold every conversation, one after the other."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for number, (question, follow_up) in enumerate(CONVERSATIONS):
        messages: list[Any] = [{"role": "user", "content": question}]
        for step in range(2):
            answer = client.chat.completions.create(
                model="afterword", messages=messages, user=USERS[number % len(USERS)], temperature=1.0, seed=7 + number,
                max_tokens=MAX_TOKENS if step == 0 else 1, metadata={"conversation": f"{PREFIX}{number + 1:02d}"},
            )  # fmt: skip
            said = {"role": "assistant", "content": answer.choices[0].message.content}
            messages += [said, {"role": "user", "content": follow_up}]
        print(f"{number + 1} of {len(CONVERSATIONS)}", file=sys.stderr)


def rows(store: Store) -> list[dict[str, Any]]:
    """First turns and what was written next, with fixed ids and times; second answers stay out."""
    turns = sorted(store.rows(Turn), key=lambda turn: str(turn.conversation))
    found = []
    for turn in (turn for turn in turns if turn.previous is None):
        number = int(str(turn.conversation).removeprefix(PREFIX))
        (feedback,) = store.rows(Feedback, turn=turn.id)
        at = STARTED + 3600.0 * number
        name = f"chatcmpl-example-{number:02d}"
        row = turn.to_dict() | {"id": name, "created_at": at, "seconds": None, "source": "import:examples"}
        row["logprobs"] = [round(value, 4) for value in row["logprobs"]]
        said = feedback.to_dict() | {
            "id": f"fb-example-{number:02d}", "turn": name, "next_turn": None, "created_at": at + 60.0,
            "occurred_at": at + 60.0,
        }  # fmt: skip
        found += [{"record": "turns", **row}, {"record": "feedback", **said}]
    return found


def main() -> None:
    """Serve, talk, write."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLES
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with serving(directory) as url:
            talk(url)
        with Store.open(directory / "afterword.db") as store:
            lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows(store)]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} rows written to {output}")


if __name__ == "__main__":
    main()
