"""Bridges against a server with another product's routes: linked to captured turns, resumable, nothing twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from afterword.errors import UsageError
from afterword.feedback.bridges.bridge import BridgeSummary, mark_file, run_bridge
from afterword.feedback.bridges.http import BridgeError, BridgeRefused
from afterword.feedback.bridges.open_webui import OpenWebUI
from afterword.feedback.importing.imports import import_file
from afterword.forget import forget_user
from afterword.records import Feedback, Json, Turn
from afterword.store import Store
from tests.feedback.chat_exports import open_webui, vote

CHATS, VOTES = "/api/v1/chats/all/db", "/api/v1/evaluations/feedbacks/all/export"


class Product:
    """An installation whose routes answer with what a test puts there."""

    def __init__(self) -> None:
        self.routes: dict[str, Any] = {CHATS: [], VOTES: []}
        self.token = "sk-right"
        product = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = product.routes.get(self.path.split("?")[0])
                status = 200 if found is not None else 404
                if self.headers["Authorization"] != f"Bearer {product.token}":
                    status, found = 401, {"detail": "Your session has expired"}
                body = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                lines = body.startswith(b"{") and b"}\n{" in body
                self.send_header("Content-Type", "application/x-ndjson" if lines else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def product() -> Iterator[Product]:
    one = Product()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "afterword.db") as one:
        yield one


def pull(store: Store, product: Product, **options: bool) -> BridgeSummary:
    return run_bridge(store, OpenWebUI(product.url, "sk-right"), **options)


def captured(name: str, question: str, answer: str, **more: Any) -> Turn:
    return Turn(
        id=name, messages=({"role": "user", "content": question},), answer={"role": "assistant", "content": answer},
        conversation="c1", user="u1", **more,
    )  # fmt: skip


EGGS = (captured("t1", "How long do eggs boil?", "A while."),
        captured("t2", "How long do eggs boil?", "Six minutes."))  # fmt: skip


def of(store: Store, kind: str) -> list[Feedback]:
    return [row for row in store.rows(Feedback) if row.kind == kind]


def test_a_vote_goes_to_the_turn_that_was_captured(store: Store, product: Product) -> None:
    store.write(*EGGS, captured("t0", "Make a title", "A while.", automated="task"))
    product.routes |= {CHATS: [open_webui()], VOTES: [vote()]}
    summary = pull(store, product)
    assert (summary.rows, summary.captured, summary.held, dict(summary.rejected)) == (2, 2, 0, {})
    assert {t.id for t in store.rows(Turn) if t.source == "gateway"} == {"t0", "t1", "t2"}
    (rating,) = of(store, "rating")
    assert rating.value == -1.0 and rating.text is not None and "Say how many minutes." in rating.text
    assert (rating.turn, rating.user) == ("t1", "u1")


def test_again_nothing_is_stored_and_only_what_changed_is_read(store: Store, product: Product) -> None:
    store.write(*EGGS)
    product.routes |= {CHATS: [open_webui()], VOTES: [vote()]}
    first = pull(store, product)
    assert first.stored > 0 and first.conflicts == 0
    again = pull(store, product, again=True)
    assert (again.rows, again.stored, again.conflicts) == (first.rows, 0, 0)
    product.routes[VOTES] += [vote("m3", 1, "Right.", at=1760000900)]
    newer = pull(store, product)
    assert newer.stored == 1 and of(store, "rating")[-1].turn == "t2"


def test_the_same_chat_as_a_file_and_over_the_bridge(store: Store, product: Product, tmp_path: Path) -> None:
    store.write(*EGGS)
    product.routes |= {CHATS: [open_webui()], VOTES: []}
    assert pull(store, product).stored > 0
    file = tmp_path / "chats.json"
    file.write_text(json.dumps([open_webui()]))
    assert import_file(store, file).stored == 0


def test_a_vote_that_is_taken_back_there_is_retracted_here(store: Store, product: Product) -> None:
    store.write(*EGGS)
    product.routes |= {CHATS: [open_webui()], VOTES: [vote()]}
    pull(store, product)
    product.routes[VOTES] = []
    assert pull(store, product).retracted == 1
    (rating,) = of(store, "rating")
    assert rating.id in store.retracted()
    assert pull(store, product).retracted == 0


def test_a_forgotten_user_does_not_come_back(store: Store, product: Product) -> None:
    store.write(*EGGS)
    product.routes |= {CHATS: [open_webui()], VOTES: [vote()]}
    pull(store, product)
    forget_user(store, "u1")
    summary = pull(store, product, again=True)
    assert (summary.forgotten, summary.stored) == (2, 0)
    assert store.count(Turn) == 0 and store.count(Feedback) == 0


def test_a_bad_row_is_counted_and_the_rest_comes_in(store: Store, product: Product) -> None:
    bad: list[Json] = [{"id": "f0", "data": {"rating": "meh"}, "meta": {"chat_id": "c1", "message_id": "m2"},
                        "user_id": "u1", "updated_at": 1760000000}]  # fmt: skip
    product.routes |= {CHATS: [open_webui(), "no chat", {"id": "c9", "user_id": "u2", "chat": {}}], VOTES: bad}
    summary = pull(store, product)
    assert summary.rejected == {"no_object": 1, "no_messages": 1, "value_range": 1} and summary.turns == 3
    assert any("'meh'" in one or '"meh"' in one for one in summary.examples)


def test_an_expired_token_an_unknown_schema_and_a_product_that_is_down(store: Store, product: Product) -> None:
    product.token = "sk-other"
    with pytest.raises(BridgeRefused, match="expired"):
        pull(store, product)
    product.token = "sk-right"
    product.routes[VOTES] = {"items": []}
    product.routes[CHATS] = [open_webui()]
    with pytest.raises(BridgeError, match="another schema"):
        pull(store, product)
    assert mark_file(store.path.parent, OpenWebUI(product.url, "x")).is_file()
    product.routes[VOTES] = []
    assert pull(store, product).turns == 3, "what failed comes at the next run"
    product.routes[CHATS] = b"<html>"
    with pytest.raises(BridgeError, match="no JSON"):
        pull(store, product)
    with pytest.raises(BridgeError, match="cannot be reached"):
        run_bridge(store, OpenWebUI("http://127.0.0.1:1", "x"))
    with pytest.raises(UsageError, match="http"):
        OpenWebUI("localhost", "x")


def test_without_the_admins_export_the_tokens_own_chats_come(store: Store, product: Product) -> None:
    lines = "\n".join(json.dumps(open_webui(chat=name)) for name in ("c1", "c2"))
    product.routes |= {CHATS: None, "/api/v1/chats/all": lines.encode()}
    assert pull(store, product).turns == 6


def test_an_answer_that_was_edited_there_is_an_edit_of_the_captured_one(store: Store, product: Product) -> None:
    store.write(*EGGS)
    edited = open_webui()
    edited["chat"]["history"]["messages"]["m3"]["content"] = "Six to seven minutes."
    product.routes[CHATS] = [edited]
    for _ in range(2):
        pull(store, product, again=True)
        (edit,) = of(store, "edited")
        assert (edit.turn, edit.final_text) == ("t2", "Six to seven minutes.")
    edited["chat"]["history"]["messages"]["m2"]["content"] = "Two were edited."
    with Store.open(store.path.with_name("other.db")) as other:
        other.write(*EGGS)
        pull(other, product, again=True)
        assert not of(other, "edited"), "which answer was which cannot be said"


def test_a_vote_in_a_chat_that_goes_on_is_the_same_vote(store: Store, product: Product) -> None:
    store.write(*EGGS)
    chat = open_webui()
    chat["chat"]["history"]["messages"]["m2"]["annotation"] = {"rating": -1, "reason": "too_verbose"}
    product.routes[CHATS] = [chat]
    for at in (1760000022, 1760000999):
        chat["updated_at"] = at
        pull(store, product)
    assert len(of(store, "rating")) == 1
