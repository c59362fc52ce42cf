"""The console and the chat page in a real browser: `make test-browser` installs what these tests need."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.gateway_setup import Setup

from afterword.records import AnswerAdvantages, Episode, Feedback, Interaction, Release, Review, Turn, WorkRequest

webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra browser")
axe = pytest.importorskip("axe_core_python.selenium", reason="needs the extra browser")
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
    pytest.mark.filterwarnings("ignore:.*is now called:FutureWarning"),
]
PAGES = ("/console", "/console/turns", "/console/episodes", "/console/interactions", "/console/review",
         "/console/candidates", "/console/forecast", "/console/releases", "/console/privacy",
         "/console/settings", "/chat")  # fmt: skip
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")  # fmt: skip
CSS = "css selector"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    opened.set_page_load_timeout(60)
    try:
        yield opened
    finally:
        opened.quit()


def look(browser: Any, width: int = 1200, scheme: str = "light") -> None:
    """Sets the size of the window and the colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


def texts(browser: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"  # no element that goes stale
    return [str(text) for text in browser.execute_script(script, selector)]


def check(browser: Any, url: str) -> None:
    """No error in the browser's console, nothing from other hosts, nothing to scroll sideways."""
    wrong = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert wrong == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith((url, "data:")) for name in loaded), loaded
    wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner, browser.current_url


def first(setup: Setup) -> tuple[str, ...]:
    """The pages, and one of each kind with an id."""
    found = [*PAGES]
    for kind, path in ((Turn, "turns"), (Interaction, "interactions")):
        found += [f"/console/{path}/{row.id}" for row in setup.store.rows(kind, limit=1)]
    return (*found, *(f"/console/candidates/{row.candidate}" for row in setup.store.rows(Release) if row.candidate))


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
@pytest.mark.parametrize("which", ["empty", "full"])
def test_pages_are_whole_quiet_and_accessible(
    request: pytest.FixtureRequest, browser: Any, which: str, width: int, scheme: str
) -> None:
    setup: Setup = request.getfixturevalue(which)
    for row in setup.store.rows(Interaction, limit=1):
        setup.store.write(
            AnswerAdvantages(id="ad", interaction=row.id, model="m", tokens=("An", " answer"), without=(-1.0, -2.0),
                             with_hindsight=(-4.0, -1.0))
        )  # fmt: skip
    setup.store.write(Episode(id="ep", task_id="walk/7", seed=7))
    look(browser, width, scheme)
    for path in dict.fromkeys((*first(setup), "/console/episodes/ep", "/console/review?second=ada")):
        browser.get(setup.url + path)
        until(lambda: browser.execute_script("return document.readyState") == "complete", path)
        if "/candidates/" in path:
            until(lambda: texts(browser, ".curves p"), "curves")
        check(browser, setup.url)
        assert [one["id"] for one in axe.Axe().run(browser)["violations"]] == [], path


def test_a_review_by_keyboard(full: Setup, browser: Any) -> None:
    look(browser)
    before = len(full.store.reviews())
    interactions = [row for row in full.store.rows(Interaction) if row.id not in full.store.reviews()]
    browser.get(f"{full.url}/console/interactions/{interactions[0].id}")
    body = browser.find_element(CSS, "body")
    field = browser.find_element(CSS, "[name=by]")
    field.send_keys("ada", "\ue007")  # Enter alone decides nothing
    field.send_keys("\ue00c")  # Escape leaves the field
    assert len(full.store.reviews()) == before
    body.send_keys("x")  # a rejection needs a reason: the field gets the focus
    browser.switch_to.active_element.send_keys("misread", "\ue007")
    until(lambda: len(full.store.reviews()) == before + 1, "a review")
    review = full.store.reviews()[interactions[0].id]
    assert (review.decision, review.why) == ("reject", "misread")
    browser.get(f"{full.url}/console/turns")
    body = browser.find_element(CSS, "body")
    body.send_keys("j")
    browser.switch_to.active_element.send_keys("j", "\ue007")
    until(lambda: "/console/turns/" in browser.current_url, "the second turn")
    browser.find_element(CSS, "body").send_keys("g", "l")
    until(lambda: browser.current_url.endswith("/console/releases"), "releases")
    check(browser, full.url)


def test_a_correction_and_its_undo_by_keyboard(full: Setup, browser: Any) -> None:
    look(browser)
    row = next(one for one in full.store.rows(Interaction) if one.hindsight and one.id not in full.store.reviews())
    full.store.write(WorkRequest(id="req", interaction=row.id, kind="review"))  # first in the queue
    until(lambda: row.id in _opened(browser, full), "the row in the queue")
    field = browser.find_element(CSS, "[name=by]")
    field.send_keys("ada", "\ue00c")
    browser.find_element(CSS, "body").send_keys("e")
    words = browser.switch_to.active_element
    assert words.get_attribute("name") == "hindsight"
    words.clear()
    words.send_keys("Name the cause first.")
    browser.find_element(CSS, "[value=correct]").send_keys("\ue007")
    until(lambda: full.store.newest(Review, interaction=row.id) is not None, "a review")
    until(lambda: "Saved." in texts(browser, "main")[0], "the next row")
    assert full.store.reviews()[row.id].decision == "reject"
    browser.find_element(CSS, "body").send_keys("u")
    until(lambda: row.id not in full.store.reviews(), "the undo")
    check(browser, full.url)


def _opened(browser: Any, setup: Setup) -> str:
    browser.get(f"{setup.url}/console/review")
    return " ".join(str(one.get_attribute("action")) for one in browser.find_elements(CSS, "form.decide"))


def test_a_rollback_in_two_clicks(full: Setup, browser: Any) -> None:
    look(browser)
    number = full.store.count(Release)
    browser.get(f"{full.url}/console/releases")
    browser.find_element(CSS, "details summary").click()
    browser.find_element(CSS, "[name=why]").send_keys("users complain")
    browser.find_element(CSS, "details button").click()
    until(lambda: full.store.count(Release) == number + 1, "a release row")
    until(lambda: "users complain" in texts(browser, "tbody")[0], "the row on the page")
    check(browser, full.url)


def test_a_chat_with_two_versions(empty: Setup, browser: Any) -> None:
    look(browser)
    browser.get(f"{empty.url}/chat")
    until(lambda: len(browser.find_elements(CSS, "#model option")) > 1, "models")
    words = browser.find_element(CSS, "#words")
    evil = "<img src=x onerror=alert(1)> Why is the sky blue?"
    words.send_keys(evil, "\ue007")
    until(lambda: browser.find_elements(CSS, ".tools"), "an answer")
    assert texts(browser, ".message.user p") == [evil]
    browser.find_element(CSS, ".tools button:nth-child(2)").click()  # Bad
    until(lambda: browser.find_elements(CSS, ".tools [aria-pressed=true]"), "the vote")
    browser.find_element(CSS, "#other option:nth-child(3)").click()
    browser.find_element(CSS, "#words").send_keys("Shorter.", "\ue007")
    until(lambda: len(browser.find_elements(CSS, ".tools")) == 3, "two answers side by side")
    until(lambda: empty.store.count(Turn) == 3, "three turns")
    kinds = sorted(row.kind for row in empty.feedback())
    assert kinds.count("rating") == 1 and kinds.count("follow_up") == 1  # the other side begins its own conversation
    assert {row.value for row in empty.feedback() if row.kind == "rating"} == {-1.0}
    browser.refresh()
    until(lambda: len(browser.find_elements(CSS, ".tools")) == 3, "the conversation after a reload")
    check(browser, empty.url)


def test_curves_grow_while_a_training_runs(full: Setup, browser: Any) -> None:
    look(browser)
    run = full.settings.dir / "runs" / "cand-live"
    run.mkdir(parents=True)

    def step(number: int) -> str:
        row = {"step": number, "steps": 9, "loss": 1 / number, "signal": 0.1, "entropy_student": 2.0, "grad_norm": 1.0}
        return json.dumps(row) + "\n"

    (run / "metrics.jsonl").write_text(step(1) + step(2))
    browser.get(f"{full.url}/console/candidates/cand-live")
    until(lambda: "Loss, step 2 of 9" in texts(browser, ".curves p"), "two steps")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(step(3) + '{"step": 4, "st')
    until(lambda: "Loss, step 3 of 9" in texts(browser, ".curves p"), "the third step")
    check(browser, full.url)


def test_the_overview_follows(empty: Setup, browser: Any) -> None:
    look(browser)
    browser.get(f"{empty.url}/console")
    until(lambda: "Nothing is captured yet" in texts(browser, "main")[0], "the empty page")
    turn = empty.chat("Why is the sky blue?")["id"]
    empty.store.write(Feedback(id="f", turn=turn, kind="rating", value=1.0))
    until(lambda: "1 answers" in texts(browser, "main")[0], "the first answer")
    check(browser, empty.url)
