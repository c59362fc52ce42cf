"""Runs a bare `afterword`: reads the state of the data directory and prints the next steps, the most urgent first.

Reads at most a page of rows of each kind, never writes, and imports nothing that needs torch or the detectors.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.markup import escape

from afterword.cli.server_state import running_server
from afterword.config import CycleConfig, TrainConfig
from afterword.errors import AfterwordError
from afterword.feedback.select.review_queue import ReviewIndex, ReviewSettings
from afterword.records import Candidate, Feedback, Interaction, Release, Report, Turn, Verdict
from afterword.store.locks import WATCH, running_work

if TYPE_CHECKING:
    from afterword.cli.context import CommandContext
    from afterword.store import Store

PAGE = 5_000
"""With more interactions than this the review queue is not read: `afterword review` reads it."""


@dataclass(frozen=True, slots=True)
class NextStep:
    """Something to do next."""

    state: str
    """The state that asks for it."""
    command: str
    """A command, or an address to open."""
    effect: str
    """What the command does."""


def run_guide(context: CommandContext) -> int:
    """Print what the data directory holds and what to do next."""
    server = running_server(context.dir)
    summary, steps = "", []
    if (context.dir / "afterword.db").exists():
        try:
            with context.open_store() as store:
                summary, steps = _summary(store), list(_steps(context, store, server))
        except AfterwordError as error:
            steps = [
                NextStep(error.message, _command(context, "doctor"), "checks everything and explains each problem")
            ]
    else:
        steps = list(_first_steps("there is no data in this place yet", context))
    if context.json:
        context.emit({"dir": str(context.dir), "server": server, "steps": [asdict(step) for step in steps]})
        return 0
    out = context.out
    out.print("[bold]Afterword[/]: a deployed language model that learns from what its users do next.")
    out.print(f"[dim]data[/]    {escape(str(context.dir))}{': ' + escape(summary) if summary else ''}")
    running = f"{server['url']} (chat at /chat, console at /console)" if server else "not running"
    out.print(f"[dim]server[/]  {escape(running)}\n")
    for number, step in enumerate(steps):
        title = "Next" if number == 0 else "Also"
        out.print(f"{title}: {escape(step.state)}")
        out.print(f"    [bold]{escape(step.command)}[/]   {escape(step.effect)}")
    out.print("\n[dim]`afterword status` shows all counts, `afterword --help` all commands.[/]")
    return 0


def _command(context: CommandContext, words: str) -> str:
    """The command for this data directory."""
    given = getattr(context.args, "dir", None)
    return f"afterword {words} --dir {shlex.quote(given)}" if given else f"afterword {words}"


def _summary(store: Store) -> str:
    names = ("turns", "feedback", "interactions", "candidates")
    kinds = (Turn, Feedback, Interaction, Candidate)
    counts = ", ".join(f"{store.count(kind)} {name}" for name, kind in zip(names, kinds, strict=True))
    release = store.release()
    return f"{counts}; serves {release.adapter if release and release.adapter else 'the base model'}"


def _first_steps(state: str, context: CommandContext) -> Iterator[NextStep]:
    yield NextStep(state, _command(context, "serve"), "starts the gateway and the built-in model")
    yield NextStep("see the whole loop first", "afterword demo --quick", "a simulated user, about two minutes")
    yield NextStep(
        "you have conversations", _command(context, "import FILE"), "reads them (`--examples` loads 48 examples)"
    )


def _steps(context: CommandContext, store: Store, server: dict[str, object] | None) -> Iterator[NextStep]:
    turns, feedback = store.count(Turn), store.count(Feedback)
    if not turns:
        if server is None:
            yield from _first_steps("no turn is stored yet", context)
        else:
            url = server["url"]
            yield NextStep("no turn is stored yet", f"{url}/chat", f"or point any OpenAI client at {url}/v1")
        return
    if not feedback:
        where = f"{server['url']}/chat" if server else _command(context, "serve")
        yield NextStep(
            f"{turns} turns have no feedback yet", where,
            "reply to an answer, rate it or edit it; applications send POST /v1/feedback (docs/feedback.md)",
        )  # fmt: skip
        return
    if waiting := len(store.undecided_after(0, PAGE)):
        many = f"{waiting}{' or more' if waiting == PAGE else ''}"
        yield NextStep(f"{many} feedback events are new", _command(context, "collect"), "turns them into interactions")
    yield from _judged(context, store)
    yield from _trained(context, store, fresh=bool(waiting))
    yield from _reviewed(context, store)
    if server is None:
        yield NextStep("the server is not running", _command(context, "serve"), "starts it")


def _judged(context: CommandContext, store: Store) -> Iterator[NextStep]:
    """The newest candidate without report or without release; a canary."""
    if (canary := store.canary()) is not None:
        yield NextStep(
            f"the canary of {canary.adapter} runs", _command(context, "release status"),
            "shows its confidence sequence; it is decided by itself",
        )  # fmt: skip
    newest = store.newest(Candidate)
    if newest is None or newest.id in store.tainted():
        return
    verdict = store.newest(Verdict, candidate=newest.id)
    if verdict is None:
        report = store.newest(Report, candidate=newest.id)
        state = f"{newest.id} waits for its {'verdict' if report else 'evaluation'}"
        yield NextStep(state, _command(context, "evaluate"), "compares it with what is served")
    elif verdict.passed and not any(row.candidate == newest.id for row in store.rows(Release)):
        yield NextStep(
            f"{newest.id} passed the gate and is not released", _command(context, "release publish"), "serves it"
        )


def _reviewed(context: CommandContext, store: Store) -> Iterator[NextStep]:
    if store.count(Interaction) > PAGE:
        return
    index = ReviewIndex(context.config.get(ReviewSettings))
    index.update(store)
    if waiting := len(index.waiting(store)):
        yield NextStep(
            f"{waiting} interactions wait for a review", _command(context, "review next"), "shows the oldest"
        )


def _trained(context: CommandContext, store: Store, *, fresh: bool) -> Iterator[NextStep]:
    """Is there enough to learn, and does somebody watch for it? With `fresh` feedback more is to come."""
    learned = {name for row in store.rows(Candidate) for name in row.interactions}
    new = max(store.count(Interaction, split="train") - len(learned), 0)
    least, round_at = context.config.get(TrainConfig).min_interactions, context.config.get(CycleConfig).min_new
    work = running_work(context.dir)
    if any(str(one["work"]).startswith(("cycle", "train", "evaluate")) for one in work):
        return
    watched = any(one["work"] == WATCH for one in work)
    if watched:
        yield NextStep(
            f"{new} new interactions wait; `cycle --watch` runs and starts a round at {round_at}",
            _command(context, "status"), "shows what it does",
        )  # fmt: skip
    elif new >= least:
        yield NextStep(f"{new} new interactions wait to be learned", _command(context, "cycle"),
                   "trains, evaluates and publishes; `--watch` repeats it whenever enough are new")  # fmt: skip
    elif not fresh:
        yield NextStep(
            f"{new} new interactions wait to be learned, a training needs {least}",
            _command(context, "cycle --watch"), f"waits, and starts a round at {round_at} new ones",
        )  # fmt: skip
