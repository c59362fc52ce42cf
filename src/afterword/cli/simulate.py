"""`afterword simulate`: simulated users against a running gateway, played by their phrases or by a language model."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.cli.progress import step_bar
from afterword.cli.server_state import running_server
from afterword.errors import ConfigError, UsageError
from afterword.simulate import (
    TASKS,
    LLMUser,
    Persona,
    SimulationSummary,
    load_persona,
    load_prompts,
    persona_names,
    simulate_users,
)

CONVERSATIONS = 32


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    simulate = commands.add_parser(
        "simulate", parents=[common],
        description="Users with lasting preferences talk with a server through the openai client and react as people "
        "do: they complain, thank, edit, ask again, rate and leave (docs/simulate.md).",
    )  # fmt: skip
    simulate.add_argument("--list", action="store_true", help="list the personas with their wishes")
    simulate.add_argument("--url", help="the server (default: the gateway running on this data directory)")
    simulate.add_argument(
        "--personas", "--persona", default="greeting", metavar="A,B",
        help="names or TOML files; all: every one (default %(default)s)",
    )  # fmt: skip
    size = simulate.add_mutually_exclusive_group()
    size.add_argument("--conversations", type=int, metavar="N", help=f"for each persona (default {CONVERSATIONS})")
    size.add_argument("--interactions", type=int, metavar="N", help="stop after so many reactions of each persona")
    simulate.add_argument("--tasks", metavar="A,B", help=f"tasks of the questions (default: all of {', '.join(TASKS)})")
    simulate.add_argument("--from", dest="first", type=int, default=0, metavar="N", help="number of the first "
                          "conversation, which is a persona's time (default 0)")  # fmt: skip
    simulate.add_argument("--seed", type=int, default=0, help="default %(default)s")
    simulate.add_argument("--model", default="afterword", help="model name in the requests (default afterword)")
    simulate.add_argument(
        "--max-tokens", type=int, default=64, metavar="N", help="token limit of an answer (default %(default)s)"
    )
    simulate.add_argument("--concurrency", type=int, default=16, metavar="N", help="conversations at once, default "
                          "%(default)s")  # fmt: skip
    simulate.add_argument("--api-key", default="none", help="API key of the gateway, if it needs one")
    simulate.add_argument(
        "--user-model", nargs=2, metavar=("URL", "NAME"), help="let the language model NAME at URL play the users"
    )
    simulate.add_argument("--user-key", default="none", metavar="KEY", help="its API key")
    simulate.set_defaults(run=run_simulate)


def run_simulate(context: CommandContext) -> int:
    """Let simulated users chat with a server and react in their own words."""
    args = context.args
    if args.list:
        return _list(context)
    names = persona_names() if args.personas.strip() == "all" else _parts(args.personas, "personas")
    personas = [load_persona(name) for name in names]
    twice = [name for name, times in Counter(persona.name for persona in personas).items() if times > 1]
    if twice:
        raise UsageError(f"two personas are called {twice[0]!r} and would be one user: give the file another name")
    prompts = load_prompts("train", None if args.tasks is None else _parts(args.tasks, "tasks"))
    if args.user_model is None and args.user_key != "none":
        raise UsageError("--user-key without --user-model: name the model that plays the users, URL and NAME")
    player = LLMUser(args.user_model[0], args.user_model[1], args.user_key) if args.user_model else None
    url = args.url or _running_url(context)
    summaries, counted = [], "conversations" if args.interactions is None else "interactions"
    for persona in personas:
        with step_bar(context, f"{persona.name} chats", counted) as on:
            summaries.append(
                simulate_users(
                    url, persona, conversations=None if args.interactions is not None else _conversations(args),
                    interactions=args.interactions, seed=args.seed, first=args.first, prompts=prompts,
                    user_model=player, concurrency=args.concurrency, model=args.model, max_tokens=args.max_tokens,
                    api_key=args.api_key, progress=on,
                )
            )  # fmt: skip
    _show(context, summaries)
    short = [one for one in summaries if args.interactions is not None and one.interactions < args.interactions]
    for one in short:
        context.say(
            f"{escape(one.persona)}: only {one.interactions} of {args.interactions} interactions after "
            f"{one.conversations} conversations: these users were silent, or content and said nothing of it"
        )
    return 1 if short else 0


def _parts(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"--{option} {text!r} has an empty name: write names with one comma between them")
    if "all" in parts:
        raise UsageError(f"--{option} {text!r}: `all` stands alone")
    return parts


def _conversations(args: argparse.Namespace) -> int:
    return CONVERSATIONS if args.conversations is None else int(args.conversations)


def _show(context: CommandContext, summaries: Iterable[SimulationSummary]) -> None:
    found = [summary.to_dict() for summary in summaries]
    if context.json:
        context.emit(found[0] if len(found) == 1 else {"personas": found})
        return
    for one in found:
        rates = [(f"  {name}", f"{rate:.0%}") for name, rate in one.pop("rates").items()]
        rows = [(key, value) for key, value in one.items() if key not in ("acts", "events", "persona")]
        context.table(escape(one["persona"]), ("figure", "value"), [*rows, ("by answer looked at", ""), *rates])


def _list(context: CommandContext) -> int:
    personas = [load_persona(name) for name in persona_names()]
    if context.json:
        context.emit({"personas": [_about(persona) for persona in personas]})
    else:
        context.table("Personas", ("name", "wants"), [(p.name, escape(p.wants)) for p in personas])
    return 0


def _about(persona: Persona) -> dict[str, Any]:
    return {
        "name": persona.name, "wants": persona.wants, "wishes": [wish.wants for wish in persona.wishes],
        "checkers": [wish.checker for wish in persona.wishes], "phrasings": len(persona.phrasings),
    }  # fmt: skip


def _running_url(context: CommandContext) -> str:
    server = running_server(context.dir)
    if server is None:
        raise ConfigError(
            f"no gateway runs on {str(context.dir)!r}: start `afterword serve --dir {context.dir}`, or name one with "
            "--url"
        )
    return f"{server['url']}/v1"
