"""The command `review`: list, next, approve, reject."""

from __future__ import annotations

import argparse
import getpass
import time
from typing import Any

from rich.markup import escape

from afterword.chat.canonical import text_of
from afterword.cli.context import CommandContext
from afterword.cli.data import short, when
from afterword.errors import NothingToDo, UsageError
from afterword.feedback.select.review_queue import ReviewSettings, agreement, review_queue
from afterword.feedback.select.select import auditable
from afterword.records import Feedback, Interaction, Review, Turn, content_hash
from afterword.store import Store


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    review = commands.add_parser("review", parents=[common])
    verbs = review.add_subparsers(dest="verb", metavar="list|next|approve|reject")
    review.set_defaults(run=run_list, limit=20)
    listing = verbs.add_parser("list", parents=[common], help="list interactions that wait for a review, oldest first")
    listing.add_argument("--limit", type=int, default=20, metavar="N")
    listing.set_defaults(run=run_list)
    verbs.add_parser("next", parents=[common], help="show the oldest one with its exchange").set_defaults(run=run_next)
    for verb, text in (("approve", "train on it"), ("reject", "exclude it from training and evaluation")):
        decide = verbs.add_parser(verb, parents=[common], help=text)
        decide.add_argument("id", help="id of the interaction, or its beginning")
        decide.add_argument("--why", default="", help="the reason" + (" (required)" if verb == "reject" else ""))
        decide.add_argument("--by", help="your name (default: the user of this machine)")
        decide.set_defaults(run=run_decide, decision=verb)


def _waiting(context: CommandContext, store: Store) -> tuple[list[Interaction], dict[str, Any]]:
    """Interactions that wait for a review, and the agreement so far."""
    settings = context.config.get(ReviewSettings)
    rows = auditable(store)
    reviews = store.reviews()
    waiting = [row for row in review_queue(rows, settings) if row.id not in reviews]
    return waiting, agreement(rows, reviews, settings).to_dict()


def run_list(context: CommandContext) -> int:
    """List the interactions that wait for a review."""
    with context.open_store() as store:
        waiting, agreed = _waiting(context, store)
    shown = waiting[: context.args.limit]
    if context.json:
        context.emit({"waiting": [row.to_dict() for row in shown], "agreement": agreed})
        return 0
    rows = [
        (r.id[:16], when(r.created_at), r.category, r.polarity, f"{r.confidence:.2f}", short(r.hindsight))
        for r in shown
    ]
    columns = ("id", "time", "category", "sign", "confidence", "hindsight")
    context.table(f"{len(shown)} of {len(waiting)} wait for a review", columns, rows)
    if agreed["agreement"] is not None:
        reviewed = agreed["approved"] + agreed["rejected"]
        context.say(f"reviewers agree with {agreed['agreement']:.0%} of {reviewed} decisions")
    return 0


def run_next(context: CommandContext) -> int:
    """Show the oldest waiting interaction with its exchange."""
    with context.open_store() as store:
        waiting, _ = _waiting(context, store)
        if not waiting:
            raise NothingToDo("nothing waits for a review. Its share is set by review.share and review.strange.")
        row = waiting[0]
        turn = store.get(Turn, row.turn)
        feedback = [store.get(Feedback, name) for name in row.feedback]
    if context.json:
        found = {"interaction": row, "turn": turn}
        plain: dict[str, Any] = {name: one.to_dict() for name, one in found.items()}
        context.emit(plain | {"feedback": [one.to_dict() for one in feedback], "waiting": len(waiting)})
        return 0
    said = "\n".join(text for one in feedback if (text := one.text or one.final_text or one.output))
    parts = {
        "asked": text_of(turn.messages[-1].get("content")) if turn.messages else "",
        "answered": text_of(turn.answer.get("content")),
        ", ".join(one.kind for one in feedback): said or "(no words)",
    }
    for title, text in parts.items():
        context.out.print(f"[bold]{title}[/] {escape(text)}")
    sign = {1: "content", -1: "wants something else"}.get(row.polarity, "unclear")
    context.out.print(
        f"[bold]read as[/] {row.category}, {sign}, weight {row.weight:.2f}, sure {row.confidence:.2f}, {row.scope}"
    )
    context.say(f"`afterword review approve {row.id[:16]}` or `afterword review reject {row.id[:16]} --why ...`")
    return 0


def run_decide(context: CommandContext) -> int:
    """Write the review. The same decision twice is one row."""
    args = context.args
    if args.decision == "reject" and not args.why.strip():
        raise UsageError("review reject needs --why: the next reviewer reads the reason.", param="why")
    with context.open_store() as store:
        row = store.get(Interaction, args.id)
        before = store.reviews().get(row.id)
        by = args.by or getpass.getuser()
        if before is not None and (before.decision, before.by, before.why) == (args.decision, by, args.why):
            review = before
        else:
            name = content_hash("review", row.id, args.decision, by, args.why, before.id if before else None)
            review = Review(
                id=name, interaction=row.id, decision=args.decision, by=by, why=args.why, created_at=time.time()
            )  # fmt: skip
            store.write(review)
    if context.json:
        context.emit(review.to_dict())
    else:
        context.out.print(f"{row.id[:16]}: {args.decision} by {escape(by)}")
    return 0
