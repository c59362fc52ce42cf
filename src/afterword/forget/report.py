"""Writes the report of an erasure, as JSON and as text, and checks it against the data directory.

The report names rows by their ids and the user by a salted hash, never by words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from afterword import __version__
from afterword.errors import UsageError
from afterword.forget.plan import ErasurePlan
from afterword.records import Candidate, Json, Release, Turn, content_hash
from afterword.release.publish import QUARANTINE
from afterword.store import Store
from afterword.store.channels import channel_name, serving
from afterword.store.erasure.erase import Eraser, user_hash
from afterword.store.schema import CLEARED

RETRAIN = "afterword cycle"


def report_of(store: Store, plan: ErasurePlan, adapters: list[Json], searched: Json) -> Json:
    """All that was done, as JSON."""
    moment, salt, digest = {e: rest for e, *rest in store.erasures()}[plan.erasure]
    rows = {table: [name for name, erasure in store.tombstones(table) if erasure == plan.erasure] for table in CLEARED}
    own = set(plan.exports)  # their names may name the user
    files = {f"export --user {content_hash(f)[:12]}" if f in own else f: what for f, what in plan.files.items()}
    mine = channel_name(user=plan.user)
    named = [c for c in store.tally(Release, "channel") if c.split("/")[0] == mine]
    learned = any(adapter["learned_from"] for adapter in adapters)
    return {
        "erasure": plan.erasure, "version": __version__, "started": plan.started, "finished": time.time(),
        "user": {"hash": digest, "salt": salt, "algorithm": "BLAKE2b of the name, 16 bytes, keyed with the salt"},
        "database": str(store.path), "redacted_at": moment, "rows": rows, "files": dict(sorted(files.items())),
        "adapters": adapters, "serves": _serves(store), "retrain": RETRAIN if learned else None,
        "search": searched, "channels_that_name_the_user": len(named), "clean": not searched["found"],
        "out_of_reach": "exports to stdout, files that were moved or copied away, backups, and what others copied",
    }  # fmt: skip


def _serves(store: Store) -> Json:
    """Channel -> the adapter that it serves now, None for the base model."""
    found: Json = {}
    for channel in sorted(store.tally(Release, "channel")):
        release = store.release(channel)
        found[channel] = None if release is None else release.adapter
    return found


def as_text(report: Json) -> str:
    """The report for a person."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Json) -> Iterator[str]:
    when = datetime.fromtimestamp(report["redacted_at"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield f"Erasure {report['erasure']}, {when}, Afterword {report['version']}"
    yield f"User: hash {report['user']['hash']} with salt {report['user']['salt']} ({report['user']['algorithm']})"
    yield f"Database: {report['database']}"
    yield "Rows that are tombstones now:"
    yield from (f"  {len(ids):>6} {table}" for table, ids in report["rows"].items() if ids)
    yield "Adapters that learned from these rows, or from such an adapter:"
    for adapter in report["adapters"]:
        names = ", ".join(adapter["versions"]) or "never released"
        yield f"  {adapter['candidate']} ({names}): {adapter['folder'] or 'deleted'}"
    yield from ("  none",) if not report["adapters"] else ()
    yield "Served now:"
    yield from (f"  {channel}: {adapter or 'the base model'}" for channel, adapter in report["serves"].items())
    yield from ("  nothing was ever released",) if not report["serves"] else ()
    if report["retrain"]:
        yield f"To learn again from everybody else: {report['retrain']}"
    yield "Files:"
    yield from (f"  {what}: {file}" for file, what in report["files"].items())
    yield from ("  none held their words",) if not report["files"] else ()
    s = report["search"]
    yield (
        f"Search: {s['needles']} needles in {s['bytes']} bytes of {s['files']} files; {len(s['found'])} found, "
        f"{s['also_in_rows_of_others']} also in rows of others, {s['needles_left_out']} left out, "
        f"{s['texts_too_short_to_search']} texts too short to be searched"
    )
    yield from (f"  FOUND in {hit['file']} (needle {hit['needle']})" for hit in s["found"])
    if report["channels_that_name_the_user"]:
        yield f"Kept: {report['channels_that_name_the_user']} channels of this user's own, whose names name them"
    yield f"Out of reach: {report['out_of_reach']}"
    remedy = "NOT CLEAN: what stands in a file of yours is for you to remove; then run the command again"
    yield f"Result: {'clean' if report['clean'] else remedy}"


def check(store: Store, report: Json, user: str | None = None) -> list[Json]:
    """Is all of this still so? One entry {check, ok, detail} for each claim; `user` proves whom it is about."""
    try:
        return list(_checks(store, report, user))
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"this is no report of an erasure: {error!r}. Give a file of DIR/forget.") from error


def _checks(store: Store, report: Json, user: str | None) -> Iterator[Json]:
    def line(name: str, ok: bool, detail: str) -> Json:
        return {"check": name, "ok": ok, "detail": detail}

    known = {e: (salt, digest) for e, _, salt, digest in store.erasures()}
    same = known.get(report["erasure"]) == (report["user"]["salt"], report["user"]["hash"])
    yield line("erasure", same, "the database knows it under this hash" if same else "the database does not know it")
    gone = {table: {n for n, e in store.tombstones(table) if e == report["erasure"]} for table in report["rows"]}
    missing = [f"{t} {n}" for t, ids in report["rows"].items() for n in ids if n not in gone[t]]
    number = sum(map(len, report["rows"].values()))
    yield line("rows", not missing, f"{number - len(missing)} of {number} are tombstones" + _some(missing))
    with Eraser(store.path) as eraser:
        salt, digest = report["user"]["salt"], report["user"]["hash"]
        quoted = eraser.quoted(lambda name: user_hash(name, salt) == digest, report["redacted_at"])
    words = "no report or candidate quotes or names them" if not quoted else f"{len(quoted)} rows quote or name them"
    yield line("quoted", not quoted, words + _some([" ".join(one) for one in quoted]))
    tainted = store.tainted()
    states = {c: serving(store.rows(Release, channel=c)) for c in store.tally(Release, "channel")}
    served = [f"{c} serves {r.adapter}" for c, state in states.items() for r in (state.served, state.canary)
              if r is not None and r.candidate in tainted]  # fmt: skip
    yield line("served", not served, "no channel serves a tainted adapter" if not served else "; ".join(served))
    directory = store.path.parent
    left = [n for n in tainted if store.artifacts.exists(store.get(Candidate, n).path)]
    yield line("adapters", not left, f"{len(tainted)} are out of adapters/, see {QUARANTINE}/" + _some(left))
    pending = list((directory / "forget").glob("*.pending"))
    yield line("finished", not pending, "no erasure is unfinished" if not pending else f"{len(pending)} unfinished")
    if user is not None:
        right = user_hash(user, report["user"]["salt"]) == report["user"]["hash"]
        yield line("user", right, "the hash is of this name" if right else "the hash is of another name")
        with Eraser(store.path) as eraser:
            held = sum(map(len, eraser.find(user).rows.values()))
        back = store.newest(Turn, user=user)
        since = "" if back is None else f", the newest of {datetime.fromtimestamp(back.created_at, UTC):%Y-%m-%d}"
        yield line("held", held == 0, f"{held} rows are held of this user now{since}")


def _some(names: list[str]) -> str:
    return "" if not names else f"; not {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def read_report(path: Path) -> Json:
    """A report from its file. UsageError when it is none."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the report {path}: {error}. Give a JSON file of DIR/forget.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} is no report of an erasure. Give a JSON file of DIR/forget.")
    return data
