"""The whole loop once, in the order in which it happens: read this test to know the system.

Everything is real: the server and its engine are processes of their own, the client is OpenAI's, the model is the
built-in one. Two interactions prove nothing, so a person overrides the gate here, and that is recorded too.
"""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from afterword import cycle
from afterword.config import EvaluateConfig, TrainConfig
from afterword.records import RECORDS, Candidate, Episode, Feedback, Interaction, Release, Report, Skip, Turn, Verdict
from afterword.release.gate import overridden
from afterword.release.publish import publish, rollback
from afterword.store import Store
from tests.serving import serving, until

LEARNED, HELD_OUT = "garden", "eggs"
"""Two conversations; the hash of their names puts the first into training and the second aside."""


def _chat(client: openai.OpenAI, conversation: str, *said: str) -> str:
    """A user who talks for as many turns as there are messages; returns the id of the first answer."""
    messages: list[dict[str, str]] = []
    first = ""
    for text in said:
        messages.append({"role": "user", "content": text})
        answer = client.chat.completions.create(
            model="afterword",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=16,
            seed=1,
            user="ada",
            metadata={"conversation": conversation},
        )
        messages.append({"role": "assistant", "content": answer.choices[0].message.content or ""})
        first = first or answer.id
    return first


@pytest.mark.timeout(900)  # minutes where a CPU has neither AVX-512 nor time
def test_walk(tmp_path: Path) -> None:
    home = tmp_path / "data"
    with serving(home) as server, Store.open(home / "afterword.db") as store:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        # 1-4. Users chat. Each answer is a Turn with its exact token ids; each next message is Feedback on it.
        first = _chat(
            client,
            LEARNED,
            "How do I water a cactus?",
            "Too long. One short sentence, please.",
            "By the way, who painted the Mona Lisa?",
        )
        _chat(client, HELD_OUT, "How do I boil an egg?", "Too long. One short sentence, please.")
        turn = store.get(Turn, first)
        assert turn.on_policy and turn.logprobs is not None and turn.adapter is None and turn.user == "ada"
        assert [f.text for f in store.rows(Feedback, turn=first)] == ["Too long. One short sentence, please."]
        assert store.counts()["turns"] == 5

        # 5. A client may also say what happened. It is on disk before the 202, and a repetition changes nothing.
        event = {"id": "rating-1", "turn": first, "kind": "rating", "value": -1.0}
        assert client.post("/feedback", body=event, cast_to=dict[str, object])["status"] == "stored"
        assert client.post("/feedback", body=event, cast_to=dict[str, object])["status"] == "duplicate"

        begun = client.post("/episodes", body={"task_id": "walk/1"}, cast_to=dict[str, object])
        assert store.get(Episode, str(begun["id"])).status == "running"

        # 6. Collect: an Interaction, or a Skip with its reason. Twice is the same as once.
        settings = cycle.Settings(
            directory=home,
            engine=_engine_of(home),
            train=TrainConfig(min_interactions=1, epochs=4),
            evaluate=EvaluateConfig(max_tokens=16),
        )
        cycle.collect_stage(store, settings)
        counted = store.counts()
        cycle.collect_stage(store, settings)
        assert store.counts() == counted
        assert {i.split for i in store.rows(Interaction) if i.hindsight} == {"train", "holdout"}

        # 7-9. Train, evaluate, decide: one row each. The gate does not trust a single held-out interaction.
        candidate = cycle.train_stage(store, settings, cycle.Progress())
        learned = [store.get(Interaction, i) for i in candidate.interactions]
        assert [i.turn for i in learned] == [first] and (home / candidate.path / "adapter_config.json").exists()
        report = cycle.evaluate_stage(store, candidate, settings, cycle.Progress())
        verdict = cycle.decide_stage(store, report, settings)
        assert not verdict.passed and verdict.reasons
        person = overridden(verdict, by="walk", why="two interactions prove nothing; the loop is what is tested")
        store.write(person)
        release = publish(store, candidate, person)

        # 10. The gateway sees the Release and swaps the adapter; the next Turn carries its name.
        until(lambda: _answered_by(client, store) == release.adapter == "afterword@v000001")
        rollback(store, why="walked back")
        until(lambda: _answered_by(client, store) is None)

        # The rows are those of the spine, all of them and no others.
        tables = {
            kind.TABLE for kind in (Turn, Episode, Feedback, Interaction, Skip, Candidate, Report, Verdict, Release)
        }
        assert {kind.TABLE for kind in RECORDS} == tables == set(store.counts())
        assert all(store.counts().values()), store.counts()


def _answered_by(client: openai.OpenAI, store: Store) -> str | None:
    answer = client.chat.completions.create(
        model="afterword", messages=[{"role": "user", "content": "Name a colour."}], max_tokens=4
    )
    return store.get(Turn, answer.id).adapter


def _engine_of(home: Path) -> str:
    import json

    return str(json.loads((home / "server.json").read_text("utf-8"))["upstream"])
