"""The console over real HTTP: every page, signing in, forms, and texts that must stay text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.console.conftest import extend
from tests.gateway.gateway_setup import Launch, Setup

from afterword.console.pages import ROUTES
from afterword.gateway.keys import create_key, revoke_key
from afterword.records import Candidate, Feedback, Interaction, Release, Review, Turn
from afterword.store import Store

PAGES = [path for method, path, _, _ in ROUTES if method == "GET" and "{" not in path]
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
pytestmark = pytest.mark.filterwarnings("ignore:.*is now called:FutureWarning")


class Parsed(HTMLParser):
    """Counts what a page must not have, and collects its links and form tokens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.links: list[str] = []
        self.token = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if (tag == "script" and not given.get("src")) or tag == "style":
            self.inline.append(tag)
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            if value := given.get(name):
                self.links.append(value)
        if given.get("name") == "token":
            self.token = given.get("value") or ""


def page(setup: Setup, path: str, **more: Any) -> tuple[httpx.Response, Parsed]:
    answer = httpx.get(setup.url + path, timeout=20, **more)
    return answer, Parsed(answer.text)


def token(setup: Setup, path: str, **more: Any) -> str:
    found = page(setup, path, **more)[1].token
    assert found
    return found


def send(setup: Setup, path: str, fields: dict[str, str], **more: Any) -> httpx.Response:
    return httpx.post(setup.url + path, data=fields, timeout=20, **more)


def check_page(answer: httpx.Response, parsed: Parsed) -> None:
    assert answer.status_code == 200, answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert parsed.inline == []
    assert all(link.startswith(("/", "#")) and not link.startswith("//") for link in parsed.links)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_of_an_empty_database(empty: Setup, path: str) -> None:
    check_page(*page(empty, path, follow_redirects=True))


def test_every_page_and_every_link_of_a_full_one(full: Setup) -> None:
    seen: set[str] = set()
    waiting = [*PAGES, "/console/releases?verify=1", "/console/privacy?user=ada"]
    while waiting:
        path = waiting.pop()
        if path in seen or not path.startswith(("/console", "/chat")):
            continue
        seen.add(path)
        answer, parsed = page(full, path, follow_redirects=True)
        assert answer.status_code == 200, (path, answer.text)
        assert len(answer.content) < 200_000
        if path.endswith("/report"):  # carries its own style, and may run nothing
            assert "sandbox" in answer.headers["content-security-policy"]
        elif "/static/" not in path and not path.endswith("/curves"):
            check_page(answer, parsed)
            waiting += [link for link in parsed.links if "logout" not in link and "rollback" not in link]
    kinds = {re.sub(r"/(?!static|curves|report)[^/?]*[0-9-][^/?]*", "/ID", path.partition("?")[0]) for path in seen}
    assert {"/console/turns/ID", "/console/interactions/ID", "/console/candidates/ID",
            "/console/candidates/ID/report", "/console/candidates/ID/curves"} <= kinds  # fmt: skip


def test_the_funnel_counts_the_rows(full: Setup) -> None:
    text = re.sub(r"<[^>]+>|\s+", " ", page(full, "/console?part")[0].text)
    text = re.sub(r" +", " ", text)
    for words in ("26 answers", "12 answers that continue", "35 events", "13 interactions to learn from",
                  "8 interactions in a candidate", "9 contradictory", "7 not collected yet"):  # fmt: skip
        assert words in text


def test_what_users_write_stays_text(empty: Setup) -> None:
    turn = empty.chat(EVIL, user=EVIL, metadata={"task": EVIL, "conversation": EVIL})["id"]
    empty.post("/v1/feedback", {"turn": turn, "kind": "comment", "text": EVIL})
    empty.store.write(
        Interaction(id="i1", turn=turn, feedback=(), kind="comment", hindsight=EVIL, polarity=-1, weight=1.0,
                    split="train", user=EVIL, task=EVIL, category=EVIL),
        Review(id="r1", interaction="i1", decision="reject", by=EVIL, why=EVIL),
        Candidate(id="c1", path="adapters/c1", base=EVIL, parent=None, interactions=("i1",), recipe={"name": EVIL}),
        Release(id="rel1", channel=EVIL, adapter=EVIL, candidate="c1", verdict=None, why=EVIL,
                path=None, previous=None, action="publish"),
    )  # fmt: skip
    shown = 0
    for path in (*PAGES, f"/console/turns/{turn}", "/console/interactions/i1", "/console/candidates/c1",
                 "/console/turns?user=%3Cscript%3Ealert", "/console/privacy?user=%3Cscript%3E"):  # fmt: skip
        answer, parsed = page(empty, path, follow_redirects=True)
        assert "<script>alert" not in answer.text and "<img" not in answer.text, path
        assert parsed.inline == []
        shown += "&lt;script&gt;" in answer.text
    assert shown >= 6


def test_turns_are_found(full: Setup) -> None:
    def found(query: str) -> int:
        return page(full, f"/console/turns?{query}")[0].text.count("data-row")

    assert found("") == 26
    one = next(full.store.rows(Turn))
    words = str(one.messages[-1]["content"])
    assert 0 < found(f"text={words[:12].upper()}") < 26
    assert found("kind=rating") == len({row.turn for row in full.store.rows(Feedback, kind="rating")})
    assert found("user=nobody-of-this-name") == 0
    assert found("adapter=base") == sum(row.adapter is None for row in full.store.rows(Turn))
    assert page(full, "/console/turns?before=x")[0].status_code == 422
    assert page(full, "/console/turns/no-such-turn")[0].status_code == 404


# ---- forms


def test_a_review_is_a_row(full: Setup) -> None:
    row = next(full.store.rows(Interaction))
    path = f"/console/review/{row.id}"
    form = {"token": token(full, f"/console/interactions/{row.id}"), "decision": "reject", "by": "ada"}
    assert send(full, path, {**form, "why": " "}).status_code == 422
    assert send(full, path, {**form, "why": "x", "token": "0" * 64}).status_code == 403
    assert send(full, path, {**form, "why": "x"}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert send(full, path, {**form, "decision": "maybe", "why": "x"}).status_code == 422
    before = full.store.count(Review)
    for _ in range(2):  # twice is once
        answer = send(full, path, {**form, "why": "misread"})
        assert (answer.status_code, answer.headers["location"]) == (303, f"/console/review?last={row.id}&by=ada")
    assert full.store.count(Review) == before + 1
    review = full.store.reviews()[row.id]
    assert (review.decision, review.by, review.why) == ("reject", "ada", "misread")
    assert "misread" in page(full, f"/console/interactions/{row.id}")[0].text


def test_a_rollback_is_a_release(full: Setup) -> None:
    form = {"token": token(full, "/console/releases"), "channel": "default", "why": "users complain"}
    assert send(full, "/console/releases/rollback", {**form, "why": ""}).status_code == 422
    assert send(full, "/console/releases/rollback", {**form, "channel": "user:"}).status_code == 422
    before = full.store.newest(Release, channel="default")
    assert send(full, "/console/releases/rollback", form).status_code == 303
    newest = full.store.newest(Release, channel="default")
    assert newest is not None and before is not None
    assert (newest.action, newest.why, newest.previous) == ("rollback", "users complain", before.id)
    assert "users complain" in page(full, "/console/releases")[0].text


def test_a_user_is_forgotten_after_the_name_was_written_twice(full: Setup) -> None:
    user = next(row.user for row in full.store.rows(Turn) if row.user)
    path = f"/console/privacy?user={user}"
    form = {"token": token(full, path), "user": user}
    assert send(full, "/console/privacy/forget", {**form, "again": "somebody else"}).status_code == 422
    assert full.store.count(Turn, user=user) > 0
    answer = send(full, "/console/privacy/forget", {**form, "again": user})
    assert answer.status_code == 200 and "The user is forgotten." in answer.text
    assert full.store.count(Turn, user=user) == 0
    assert full.chat("Are you still there?")["id"]  # the gateway's own connections stay open
    assert page(full, "/console")[0].status_code == 200


# ---- keys


@pytest.fixture
def keyed(launch: Launch, home: Path) -> Iterator[tuple[Setup, dict[str, str]]]:
    keys = {scope: create_key(home, (scope,))[0] for scope in ("review", "admin", "infer")}
    yield launch(directory=home, extend=extend(home)), keys


def sign_in(setup: Setup, key: str, to: str = "/console") -> httpx.Response:
    fields = {"token": token(setup, "/console/login"), "key": key, "next": to}
    return send(setup, "/console/login", fields)


def test_with_keys_a_page_asks_for_one(keyed: tuple[Setup, dict[str, str]]) -> None:
    setup, keys = keyed
    answer = page(setup, "/console/turns?user=ada")[0]
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/console/login?next=%2Fconsole%2Fturns%3Fuser%3Dada",
    )
    assert page(setup, "/console?part", headers={"HX-Request": "true"})[0].status_code == 401
    assert sign_in(setup, "sk-aw-0-wrong").status_code == 401
    assert sign_in(setup, keys["infer"]).status_code == 403
    answer = sign_in(setup, keys["review"], "/console/turns")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/turns")
    cookie = answer.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
    assert keys["review"] not in cookie


@pytest.mark.parametrize(
    "to", ["https://evil.example/console", "//evil.example/console", "/\\evil.example", "/chat", ""]
)
def test_nobody_is_sent_elsewhere_after_signing_in(keyed: tuple[Setup, dict[str, str]], to: str) -> None:
    setup, keys = keyed
    assert sign_in(setup, keys["admin"], to).headers["location"] == "/console"


def test_a_session_has_its_keys_rights_and_ends_with_it(keyed: tuple[Setup, dict[str, str]], home: Path) -> None:
    setup, keys = keyed
    cookies = dict(sign_in(setup, keys["review"]).cookies)
    assert page(setup, "/console/turns", cookies=cookies)[0].status_code == 200
    assert page(setup, "/console/privacy", cookies=cookies)[0].status_code == 403
    form = {"token": token(setup, "/console/releases", cookies=cookies), "channel": "default", "why": "x"}
    assert send(setup, "/console/releases/rollback", form, cookies=cookies).status_code == 403
    other = dict(sign_in(setup, keys["admin"]).cookies)
    assert send(setup, "/console/releases/rollback", form, cookies=other).status_code == 403  # another's token
    assert page(setup, "/console/settings", cookies=other)[0].status_code == 200
    send(setup, "/console/logout", {"token": token(setup, "/console", cookies=other)}, cookies=other)
    assert page(setup, "/console/settings", cookies=other)[0].status_code == 303
    revoke_key(home, keys["review"].removeprefix("sk-aw-").partition("-")[0])
    for _ in range(100):
        if page(setup, "/console/turns", cookies=cookies)[0].status_code == 303:
            break
    else:
        pytest.fail("the session outlives its key")


def test_without_keys_another_hosts_page_is_refused(empty: Setup) -> None:
    assert page(empty, "/console", headers={"Host": "evil.example"})[0].status_code == 403
    assert page(empty, "/console/settings", headers={"Origin": "https://evil.example"})[0].status_code == 403


def test_bad_forms_are_answered(empty: Setup) -> None:
    assert httpx.post(f"{empty.url}/console/login", content=b"x" * 100_000).status_code == 422
    answer = httpx.post(f"{empty.url}/console/login", files={"token": ("a.txt", b"x")})
    assert answer.status_code == 422 and "holds a file" in answer.text
    assert page(empty, "/console/static/nothing.js")[0].status_code == 404
    assert page(empty, "/console/candidates/..%2F..%2Fetc/curves")[0].status_code in (404, 422)


def test_the_store_is_gone_and_the_page_says_so(full: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("disk")

    monkeypatch.setattr(Store, "find", broken)
    answer = page(full, "/console/turns/anything")[0]
    assert answer.status_code == 500 and "see the server" in answer.text
    monkeypatch.undo()
    assert page(full, "/console/turns")[0].status_code == 200
