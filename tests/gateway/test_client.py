"""The clients for applications, against a real gateway: nothing is lost while it is away, nothing counts twice."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.gateway_setup import Launch, Setup

import afterword.client
from afterword.client import Afterword, ClientError
from afterword.gateway.keys import create_key

JS = Path(afterword.client.__file__).parent / "js"
NODE = shutil.which("node")


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def asked(setup: Setup) -> str:
    answer = setup.openai().chat.completions.create(model="afterword", messages=[{"role": "user", "content": "Why?"}])
    return str(answer.id)


def test_what_a_user_does_arrives_in_the_background(gateway: Setup) -> None:
    turn = asked(gateway)
    with Afterword(gateway.url + "/v1", user="ada", wait=0.01) as told:
        told.copy(turn)
        told.edit(turn, "The sky is blue, mostly.")
        told.ran(turn, 1, "SyntaxError")
        told.rate(turn, -1, "too short", user="bob")
        wrong = told.send(turn, "comment", text="taken back")
        until(lambda: told.waiting == 0, "the queue is empty")
        told.retract(wrong)
    rows = {(row.kind, row.user, row.text, row.final_text, row.exit_code) for row in gateway.feedback()}
    assert {
        ("copied", "ada", None, None, None),
        ("edited", "ada", None, "The sky is blue, mostly.", None),
        ("executed", "ada", None, None, 1),
        ("rating", "bob", "too short", None, None),
    } <= rows
    assert any(row.kind == "retraction" for row in gateway.feedback())


def test_events_wait_in_a_file_while_the_gateway_is_away(gateway: Setup, tmp_path: Path) -> None:
    turn, queue = asked(gateway), tmp_path / "events.jsonl"
    with Afterword("http://127.0.0.1:9", queue=queue, wait=0.01) as told:
        told.accept(turn)
        taken_back = told.copy(turn)
        told.retract(taken_back)
        assert told.flush() is False and told.waiting == 1
    with queue.open("a") as lines:
        lines.write('{"id": "half')
    with Afterword(gateway.url, queue=queue, wait=0.01) as told:
        until(lambda: told.waiting == 0, "the queue is empty")
    assert [row.kind for row in gateway.feedback()] == ["accepted"] and queue.read_text() == ""


def test_the_same_events_twice_count_once(gateway: Setup, tmp_path: Path) -> None:
    """The gateway had them, but the client died before it could strike them out."""
    queue = tmp_path / "events.jsonl"
    with Afterword(gateway.url, queue=queue, wait=0.01) as told:
        told.accept(asked(gateway))
        kept = queue.read_text()
        until(lambda: told.waiting == 0, "the queue is empty")
    queue.write_text(kept)
    with Afterword(gateway.url, queue=queue, wait=0.01) as told:
        until(lambda: told.waiting == 0, "the queue is empty")
    assert len(gateway.feedback()) == 1


def test_a_disk_that_cannot_be_written_costs_no_event(gateway: Setup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with Afterword(gateway.url, queue=tmp_path / "file" / "events.jsonl", wait=0.01, on_error=said.append) as told:
        told.accept(asked(gateway))
        until(lambda: told.waiting == 0, "the queue is empty")
    assert [row.kind for row in gateway.feedback()] == ["accepted"] and "events wait in memory alone" in said[0]


def test_events_wait_at_a_wrong_address(gateway: Setup) -> None:
    said: list[str] = []
    with Afterword(f"{gateway.url}/nowhere", wait=0.01, on_error=said.append) as told:
        told.accept(asked(gateway))
        assert told.flush() is False and told.waiting == 1 and "no route" in said[0]
        told.url = gateway.url
        assert told.flush() is True
    assert [row.kind for row in gateway.feedback()] == ["accepted"]


def test_what_is_rejected_is_told_and_a_wrong_key_loses_nothing(launch: Launch, tmp_path: Path) -> None:
    key, _ = create_key(tmp_path / "data", ("feedback", "infer"))
    setup = launch(directory=tmp_path / "data")
    said: list[str] = []
    told = Afterword(setup.url, key="afw-wrong", wait=0.01, on_error=said.append)
    told.comment("chatcmpl-1", "Hm.")
    until(lambda: said, "the key is rejected")
    assert told.waiting == 1 and told.flush() is False
    told.key = key
    assert told.flush() is True
    told.send("chatcmpl-1", "no_such_kind")
    until(lambda: told.waiting == 0 and len(said) > 2, "the event is rejected")
    assert "no_such_kind" in said[-1]
    told.close()
    with pytest.raises(ClientError, match="does not exist") as caught:
        told.retract("nobody")
    assert caught.value.status == 404
    with pytest.raises(ValueError, match="closed"):
        told.accept("chatcmpl-1")
    with pytest.raises(ValueError, match="names no turn"):
        told.accept("")


def test_the_gateway_serves_the_browsers_client(gateway: Setup) -> None:
    first = httpx.get(f"{gateway.url}/afterword.js")
    assert (
        first.headers["content-type"].startswith("text/javascript")
        and first.content == (JS / "afterword.js").read_bytes()
    )
    again = httpx.get(f"{gateway.url}/afterword.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert len(gzip.compress(first.content)) < 5000
    assert "export class Afterword" in httpx.get(f"{gateway.url}/afterword.d.ts").text
    assert json.loads((JS / "package.json").read_text())["main"] == "afterword.js"


SCRIPT = """
import { Afterword } from "%(module)s";
const kept = new Map();
const storage = { getItem: (k) => kept.get(k) ?? null, setItem: (k, v) => kept.set(k, v) };
const messages = [{ role: "user", content: "Why?" }];
const errors = [];
let told = new Afterword({ url: "%(url)s/v1", user: "ada", conversation: "Gespräch 1", storage, wait: 5 });
const whole = await told.chat(messages);
const pieces = [];
const streamed = await told.chat([{ role: "user", content: "How far?" }], { onText: (piece) => pieces.push(piece) });
told.edit(whole.id, whole.text, "Blue, mostly.");
told.edit(whole.id, "same", "same");
told.rate(streamed.id, -1, "too short");
const wrong = told.copy(streamed.id);
await told.retract(wrong);
await told.flush();
const away = new Afterword({ url: "http://127.0.0.1:9", storage, wait: 5 });
away.accept(streamed.id);
await away.flush();
const waited = away.events.length;
kept.set("afterword-events:%(url)s", kept.get("afterword-events:http://127.0.0.1:9"));
told = new Afterword({ url: "%(url)s", storage, onError: (e) => errors.push(e.message) });
told.send(streamed.id, "no_such_kind");
await told.flush();
console.log(JSON.stringify({ whole, streamed, pieces: pieces.length, waited, left: told.events.length, errors }));
"""


@pytest.mark.skipif(not NODE, reason="needs node")
def test_the_browsers_client_in_node(gateway: Setup, tmp_path: Path) -> None:
    script = tmp_path / "use.mjs"
    module = tmp_path / "afterword.mjs"
    module.write_bytes(httpx.get(f"{gateway.url}/afterword.js").content)
    script.write_text(SCRIPT % {"module": module.as_uri(), "url": gateway.url})
    done = subprocess.run([str(NODE), str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"]["text"] == found["streamed"]["text"] == "The sky is blue." and found["pieces"] > 1
    assert found["waited"] == 1 and found["left"] == 0 and "no_such_kind" in found["errors"][0]
    one, two = gateway.turns()
    assert (
        one.user == "ada"
        and one.conversation == "Gespräch 1"
        and {one.id, two.id} == {found["whole"]["id"], found["streamed"]["id"]}
    )
    assert sorted(row.kind for row in gateway.feedback()) == ["accepted", "accepted", "edited", "rating"]
