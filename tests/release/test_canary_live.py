"""A canary as its user meets it: `afterword serve` with the real engine, the command line, and people who react.

The model is a tiny random one, so what an adapter is worth is decided by a program: users accept what the good adapter
says, word for word, and ask again otherwise.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from afterword.model.loading import base_hash
from afterword.records import Candidate, Report, Verdict
from afterword.store import Store
from afterword.store.files import folder_hash
from tests.engine.conftest import write_adapter as write_lora
from tests.engine.conftest import write_tiny
from tests.serving import Server, afterword, serving, until

ASKED = {"messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_tokens": 8}


def proved(home: Path, base: Path, name: str, against: str | None, seed: int) -> None:
    """A real LoRA folder with all that a release asks for."""
    folder = home / "adapters" / name
    write_lora(base, folder, seed=seed)
    about = ("base", "base_hash", "tokenizer_hash", "template_hash", "interactions_hash", "code_version")
    manifest: dict[str, object] = {**dict.fromkeys(about, "x"), "parent": None, "recipe": {}, "metrics": {}}
    manifest["base_hash"] = base_hash(base)
    (folder / "afterword.json").write_text(json.dumps(manifest), encoding="utf-8")
    with Store.open(home / "afterword.db") as store:
        store.write(
            Candidate(
                id=name, path=f"adapters/{name}", base="tiny", parent=against, interactions=(), recipe={"name": "x"}
            ),
            Report(
                id=f"rep-{name}",
                candidate=name,
                against=against,
                suites={},
                about={"adapter_hash": folder_hash(folder)},
            ),
            Verdict(id=f"ver-{name}", candidate=name, report=f"rep-{name}", passed=True, reasons=("because",)),
        )


def said(server: Server, model: str, user: str = "ada") -> tuple[str, str]:
    """(turn, text) of one answer."""
    body = {"model": model, "user": user, **ASKED}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    return answer["id"], answer["choices"][0]["message"]["content"]


def command(home: Path, *words: str) -> dict[str, object]:
    done = afterword(home, *words, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    data: dict[str, object] = json.loads(done.stdout)
    return data


@pytest.mark.slow
@pytest.mark.parametrize(("good", "action"), [("v1", "rollback"), ("v2", "promote")])
def test_people_decide_about_a_canary(tmp_path: Path, good: str, action: str) -> None:
    home, base = tmp_path / "data", write_tiny(tmp_path / "model" / "tiny")
    proved(home, base, "cand-1", None, seed=1)
    proved(home, base, "cand-2", "cand-1", seed=2)
    with serving(home, "--model", str(base)) as server, Store.open(home / "afterword.db") as store:
        command(home, "release", "publish", "cand-1")
        canary = command(home, "release", "publish", "cand-2", "--canary", "40%")
        until(lambda: httpx.get(f"{server.url}/v1/models/afterword@canary", timeout=10).status_code == 200)
        (_, one), (_, two) = said(server, "afterword@v000001"), said(server, "afterword@canary")
        assert one != two, "two random adapters that say the same"
        liked = one if good == "v1" else two
        for number in range(1200):
            turn, text = said(server, "afterword", f"user{number % 90}")
            event = {"turn": turn, "kind": "accepted" if text == liked else "retried"}
            assert httpx.post(f"{server.url}/v1/feedback", json=event, timeout=10).status_code == 202
            if number % 20 == 19 and store.canary() is None:
                break
        row = store.release()
        assert row is not None and row.action == action and row.previous == canary["id"], "nothing was decided"
        until(lambda: said(server, "afterword")[1] == liked, 5.0)
        assert time.time() - row.created_at < 30
        assert command(home, "releases", "verify")["problems"] == []
        status = command(home, "release", "status")
        assert status["channels"]["default"]["canary"] is None  # type: ignore[index]
