"""Episodes over HTTP: named in three ways and three dialects, rewarded, limited and ended."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from openai import APIError, OpenAI
from tests.gateway.fake_upstream import Fake
from tests.gateway.gateway_setup import Launch, Setup

from afterword.feedback.collect.collect import collect
from afterword.gateway.keys import create_key
from afterword.records import Episode
from afterword.store.episodes import episode_view, statuses

SAID = "The sky is blue."


def test_a_harness_that_takes_only_a_base_url_is_captured(gateway: Setup) -> None:
    url = f"{gateway.url}/episodes/run-1"
    chat = gateway.clients.enter_context(OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))
    ask: list[Any] = [{"role": "user", "content": "Why?"}]
    first = chat.chat.completions.create(model="afterword", messages=ask)
    ask += [{"role": "assistant", "content": SAID}, {"role": "user", "content": "error: not blue enough"}]
    second = chat.chat.completions.create(model="afterword", messages=ask, stream=False)
    third = chat.responses.create(model="afterword", input="Another thing.")
    claude = gateway.clients.enter_context(anthropic.Anthropic(base_url=url, api_key="none", max_retries=0))
    fourth = claude.messages.create(model="afterword", max_tokens=9, messages=[{"role": "user", "content": "Hm?"}])
    assert claude.messages.count_tokens(model="afterword", messages=[{"role": "user", "content": "Hm?"}]).input_tokens
    assert chat.models.list().data
    view = episode_view(gateway.store, "run-1")
    names = [first.id, second.id, third.id.replace("resp_", ""), fourth.id]
    assert [one.index for one in view.turns] == [0, 1, 2, 3] and len({*names}) == 4
    assert [one.parent for one in view.turns] == [None, first.id, None, None]
    assert (view.episode.status, view.episode.outcome) == ("running", None)
    assert view.episode.harness is not None and view.episode.harness.startswith("OpenAI/Python")
    assert gateway.feedback() == [], "what an environment says is read with the episode"


def test_header_metadata_and_path_name_an_episode(gateway: Setup) -> None:
    gateway.post("/v1/chat/completions", {"model": "afterword", "messages": [{"role": "user", "content": "1"}]},
                 headers={"X-Afterword-Episode": "by-header"})  # fmt: skip
    gateway.chat("2", metadata={"episode_id": "by-body"})
    gateway.post("/episodes/by-path/v1/chat/completions",
                 {"model": "afterword", "messages": [{"role": "user", "content": "3"}],
                  "metadata": {"episode_id": "by-body"}})  # fmt: skip
    gateway.chat("4")
    assert [turn.episode_id for turn in gateway.turns()] == ["by-header", "by-body", "by-path", None]
    bad = gateway.post("/v1/chat/completions", {"model": "afterword", "messages": [{"role": "user", "content": "5"}],
                                                "metadata": {"episode_id": "a/b"}})  # fmt: skip
    assert bad.status_code == 422 and bad.json()["error"]["param"] == "episode_id"
    error = httpx.post(f"{gateway.url}/episodes/e/v1/messages", json={"model": "afterword"}, timeout=10).json()
    assert error["type"] == "error", "errors have the form of the client's API"


def test_equal_episodes_are_linked_each_within_itself(gateway: Setup) -> None:
    """Eight runs of one task begin with the same words."""
    words = ["Guess.", SAID, "too low", SAID, "too high"]
    with ThreadPoolExecutor(8) as pool:
        for end in (1, 3, 5):
            list(pool.map(lambda n, end=end: gateway.chat(*words[:end], metadata={"episode_id": f"e{n}"}), range(8)))
    for n in range(8):
        turns = episode_view(gateway.store, f"e{n}").turns
        assert [one.parent for one in turns] == [None, turns[0].turn.id, turns[1].turn.id]


def test_rewards_arrive_change_and_are_refused(gateway: Setup) -> None:
    asked = {"id": "e", "task_id": "t", "seed": 3, "metadata": {"level": 1}}
    begun = gateway.post("/v1/episodes", asked)
    assert begun.status_code == 201 and begun.json()["base_url"] == "/episodes/e/v1"
    assert gateway.post("/v1/episodes", asked).status_code == 200
    assert gateway.post("/v1/episodes", {"id": "e", "task_id": "other"}).status_code == 409
    turn = gateway.chat("Go.", metadata={"episode_id": "e"})["id"]
    for value in (1.0, 0.5, 1.0):
        sent = gateway.post("/v1/feedback", {"episode": "e", "kind": "outcome", "value": value})
        assert sent.json()["status"] == "stored", sent.text
    told = gateway.post("/v1/episodes/e/feedback", {"turn": turn, "value": -0.5, "rubric": {"form": 0.0}})
    assert told.status_code == 202, told.text
    ended = gateway.post("/v1/episodes/e/end", {"status": "failed", "reason": "crash", "metrics": {"steps": 2}}).json()
    assert (ended["status"], ended["reason"], ended["outcome"], ended["metrics"]) == (
        "failed",
        "crash",
        1.0,
        {"steps": 2},
    )
    assert ended["turns"][0]["reward"] == -0.5 and ended["turns"][0]["rubric"] == {"form": 0.0}
    later = gateway.post("/v1/episodes/e/feedback", {"value": None})
    assert later.status_code == 202 and gateway.get("/v1/episodes/e").json()["outcome"] is None
    assert len(episode_view(gateway.store, "e").rewards) == 4
    assert gateway.get("/v1/episodes?limit=5&task_id=t").json()["data"][0]["id"] == "e"
    assert collect(gateway.store).skipped["episode_reward"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/episodes/none/feedback", {"value": 1.0}, 404, "episode_not_found"),
        ("/v1/episodes/none/end", {}, 404, "episode_not_found"),
        ("/v1/feedback", {"episode": "none", "kind": "outcome", "value": 1.0}, 404, "episode_not_found"),
        ("/v1/episodes/e/feedback", '{"value": NaN}', 400, "not_finite"),
        ("/v1/episodes/e/feedback", '{"rubric": {"a": Infinity}}', 400, "not_finite"),
        ("/v1/feedback", '{"episode": "e", "kind": "outcome", "value": NaN}', 400, "not_finite"),
        ("/v1/episodes/e/end", '{"value": NaN}', 400, "not_finite"),
        ("/v1/episodes/e/end", {"status": "running"}, 422, None),
        ("/v1/episodes/e/feedback", {"value": "good"}, 422, None),
        ("/v1/episodes/e/feedback", {"value": 1.0, "metrics": {"a": "b"}}, 422, "bad_event"),
        ("/v1/episodes/e/feedback", {"turn": "elsewhere", "value": 1.0}, 404, "turn_not_found"),
        ("/v1/episodes", {"seed": "seven"}, 422, None), ("/v1/episodes", {"sead": 7}, 422, None),
        ("/v1/episodes", [], 422, None),
    ],
)  # fmt: skip
def test_bad_input(gateway: Setup, path: str, body: Any, status: int, code: str | None) -> None:
    gateway.post("/v1/episodes", {"id": "e"})
    send: dict[str, Any] = {"content": body} if isinstance(body, str) else {"json": body}
    answer = httpx.post(gateway.url + path, timeout=10, **send)
    assert answer.status_code == status, answer.text
    assert code is None or answer.json()["error"]["code"] == code
    assert gateway.feedback() == []


def test_one_bad_reward_of_a_list_is_rejected_with_its_reason(gateway: Setup) -> None:
    gateway.post("/v1/episodes", {"id": "e"})
    events = [{"episode": name, "kind": "outcome", "value": 1.0} for name in ("e", "none")]
    results = gateway.post("/v1/feedback", {"events": events}).json()["results"]
    assert [one["status"] for one in results] == ["stored", "rejected"] and "does not exist" in results[1]["why"]


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [("episode_turns", 2, "turns"), ("episode_tokens", 5, "tokens"), ("episode_seconds", 0.5, "age")],
)
def test_an_episode_that_never_ends_reaches_a_limit(launch: Launch, setting: str, value: float, reason: str) -> None:
    gateway = launch(**{setting: value})
    statuses_seen = []
    for n in range(4):
        body = {
            "model": "afterword",
            "messages": [{"role": "user", "content": str(n)}],
            "metadata": {"episode_id": "e"},
        }
        answer = gateway.post("/v1/chat/completions", body)
        statuses_seen.append(answer.status_code)
        if reason == "age" and n == 0:
            time.sleep(value)
    assert statuses_seen[0] == 200 and statuses_seen[-1] == 422
    assert answer.json()["error"]["code"] == "episode_limit" and f"serve.{setting}" in answer.json()["error"]["message"]
    told = gateway.get("/v1/episodes/e").json()
    assert (told["status"], told["reason"]) == ("truncated", reason)
    assert len(told["turns"]) == statuses_seen.count(200)
    metrics = gateway.get("/metrics").text
    assert f'afterword_episodes_ended_total{{limit="{reason}",status="truncated"}} 1.0' in metrics
    assert f'rejected_total{{limit="{reason}"}} {statuses_seen.count(422)}.0' in metrics
    gateway.chat("elsewhere", metadata={"episode_id": "another"})


def test_limits_hold_after_a_restart(launch: Launch) -> None:
    first = launch(episode_turns=1)
    first.chat("1", metadata={"episode_id": "e"})
    second = launch(directory=first.settings.dir, episode_turns=1)
    body = {"model": "afterword", "messages": [{"role": "user", "content": "2"}], "metadata": {"episode_id": "e"}}
    assert second.post("/v1/chat/completions", body).status_code == 422


def test_an_episode_belongs_to_its_key(launch: Launch, tmp_path: Path) -> None:
    mine, theirs = (create_key(tmp_path / "data")[0] for _ in range(2))
    gateway = launch()
    auth = [{"Authorization": f"Bearer {key}"} for key in (mine, theirs)]
    assert gateway.post("/v1/episodes", {"id": "e"}, headers=auth[0]).status_code == 201
    body = {"model": "afterword", "messages": [{"role": "user", "content": "x"}]}
    assert gateway.post("/episodes/e/v1/chat/completions", body, headers=auth[1]).status_code == 404
    assert gateway.post("/v1/episodes/e/feedback", {"value": 1}, headers=auth[1]).status_code == 404
    assert gateway.post("/v1/episodes", {"id": "e"}, headers=auth[1]).status_code == 409
    assert gateway.post("/episodes/e/v1/chat/completions", body, headers=auth[0]).status_code == 200
    assert httpx.get(f"{gateway.url}/v1/episodes", headers=auth[1], timeout=10).json()["data"] == []


def test_titles_and_late_requests_are_no_part_of_the_task(gateway: Setup) -> None:
    named = {"metadata": {"episode_id": "e"}}
    first = gateway.chat("Why?", **named)
    gateway.chat("Why?", SAID, "Name this chat in at most five words. No quotes, nothing else.", **named)
    last = gateway.chat("Why?", SAID, "too vague", **named)
    gateway.post("/v1/episodes/e/end", {"value": 1.0})
    gateway.chat("Why?", SAID, "too vague", SAID, "One more.", **named)
    view = episode_view(gateway.store, "e")
    assert [one.outside for one in view.turns] == [None, "task", None, "after_end"]
    assert [one.turn.id for one in view.branches()[0]] == [first["id"], last["id"]]
    assert statuses(gateway.store) == {"finished": 1}


def test_a_harness_that_edits_its_history_or_asks_twice_at_once_leaves_branches(gateway: Setup) -> None:
    named = {"metadata": {"episode_id": "e"}}
    first = gateway.chat("Why is the sky blue?", **named)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda word: gateway.chat("Why is the sky blue?", SAID, word, **named), ("left", "right")))
    gateway.chat("Another start altogether.", "Invented words.", "third", **named)
    view = episode_view(gateway.store, "e")
    assert sorted(one.parent or "" for one in view.turns) == ["", "", first["id"], first["id"]]
    assert sorted(len(branch) for branch in view.branches()) == [1, 2, 2]


@pytest.mark.parametrize(("stop", "sent_back"), [
    (["Observation:", "</code>"], SAID + "</code>"),
    ("</code>", SAID + "\n</code>\n"),
    (["</code>"], [{"type": "text", "text": SAID + "</code>"}]),
    (["Calling tools:", "</code>"], [{"type": "text", "text": SAID + "</code>\nCalling tools:\n[{'id': 'call_1'}]"}]),
])  # fmt: skip
def test_a_stop_string_that_the_harness_appends_breaks_no_link(gateway: Setup, stop: Any, sent_back: Any) -> None:
    def ask(episode: str, messages: list[Any]) -> str:
        body = {"model": "afterword", "stop": stop, "messages": messages, "metadata": {"episode_id": episode}}
        return str(gateway.post("/v1/chat/completions", body).json()["id"])

    messages: list[Any] = [{"role": "system", "content": "Write code."}, {"role": "user", "content": "Why?"}]
    first = ask("run", messages)
    messages += [{"role": "assistant", "content": sent_back}, {"role": "user", "content": "Observation: none"}]
    second = ask("run", messages)
    messages += [{"role": "assistant", "content": sent_back}, {"role": "user", "content": "Observation: again"}]
    ask("run", messages)
    view = episode_view(gateway.store, "run")
    assert [one.parent for one in view.turns] == [None, first, second]
    assert len(view.branches()) == 1


def test_an_end_that_is_no_stop_string_of_the_request_still_begins_a_branch(gateway: Setup) -> None:
    body: dict[str, Any] = {"model": "afterword", "stop": ["###"], "metadata": {"episode_id": "run"}}
    ask: list[Any] = [{"role": "user", "content": "Why?"}]
    gateway.post("/v1/chat/completions", {**body, "messages": ask})
    ask += [{"role": "assistant", "content": SAID + "</code>"}, {"role": "user", "content": "Observation: none"}]
    gateway.post("/v1/chat/completions", {**body, "messages": ask})
    assert [one.parent for one in episode_view(gateway.store, "run").turns] == [None, None]


def test_an_answer_that_breaks_off_stays_in_its_episode(launch: Launch) -> None:
    gateway = launch(Fake(cut_after=2))
    with pytest.raises(APIError):
        list(gateway.stream("Why?", metadata={"episode_id": "e"}))
    (turn,) = gateway.turns()
    assert (turn.episode_id, turn.finish_reason) == ("e", "error") and gateway.store.count(Episode) == 1
    assert gateway.store.get(Episode, "e").key is None


def test_nothing_is_kept_with_store_false(gateway: Setup) -> None:
    gateway.chat("Why?", store=False, metadata={"episode_id": "e"})
    assert gateway.store.count(Episode) == 0
