"""`afterword recipes`: which methods there are, and which parts each is made of.

Only shows; the recipes live in `learn`, which is imported when a command runs because it brings torch.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from afterword.cli.context import CommandContext
from afterword.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from afterword.cycle import Settings
    from afterword.learn.recipes.advise import EpisodeFacts, Facts
    from afterword.records import Interaction
    from afterword.store import Store

_RUN_FIRST = ("lr", "epochs", "fresh", "batch")


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    recipes = commands.add_parser("recipes", parents=[common])
    verbs = recipes.add_subparsers(dest="verb", metavar="list|show|advise|compare")
    recipes.set_defaults(run=run_list)
    listing = verbs.add_parser("list", parents=[common], help="list all recipes")
    listing.set_defaults(run=run_list)
    show = verbs.add_parser("show", parents=[common], help="show the parts and options of one recipe")
    show.add_argument("name", help="as `recipes list` shows it")
    show.set_defaults(run=run_show)
    advising = verbs.add_parser("advise", parents=[common], help="recipes that fit what was captured, best first")
    advising.set_defaults(run=run_advise)
    comparing = verbs.add_parser(
        "compare", parents=[common], help="train several recipes on one task with equal tokens; goes on where it was"
    )
    comparing.add_argument(
        "names", nargs="+", metavar="NAME", help="recipes, each with options of its own as NAME:KEY=VALUE,KEY=VALUE"
    )
    comparing.add_argument("--on", required=True, metavar="TASK", help="gym:FAMILY (extra tasks) or persona:NAME")
    comparing.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each recipe (default 3)")
    comparing.add_argument("--prompts", type=int, default=64, metavar="N", help="training prompts (default 64)")
    comparing.add_argument("--heldout", type=int, default=48, metavar="N", help="held-out prompts (default 48)")
    comparing.add_argument("--tokens", type=int, metavar="N", help="tokens of each (default: what the cheapest needs)")
    comparing.add_argument("--runs", type=Path, metavar="FILE", help="finished trainings (DIR/recipes/TASK.jsonl)")
    comparing.add_argument("--html", type=Path, metavar="FILE", help="also write the comparison as a page")
    comparing.set_defaults(run=run_compare)


def run_list(context: CommandContext) -> int:
    """List every recipe with its method and its required options."""
    from afterword.learn.recipes import RECIPES, recipe

    rows = [(name, _summary(make), _missing(recipe(name))) for name, make in RECIPES.items()]
    if context.json:
        context.emit({"recipes": [{"name": n, "summary": s, "needs": m} for n, s, m in rows]})
        return 0
    context.table("recipes", ("name", "does", "needs"), [(n, escape(s), escape(m or "")) for n, s, m in rows])
    context.say("`afterword recipes show NAME` shows the parts, docs/recipes/ the papers.")
    return 0


def run_show(context: CommandContext) -> int:
    """Show the composition of one recipe, as its manifest will record it, and its options."""
    from afterword.learn.recipes import RECIPES, describe, recipe
    from afterword.learn.recipes.formula import formula
    from afterword.learn.recipes.from_config import SETTINGS
    from afterword.learn.recipes.spec import options

    made = recipe(context.args.name)
    described: dict[str, Any] = describe(made)
    settable = [
        {"setting": f"train.{SETTINGS.get(o.name, f'options.{o.name}')}", "default": o.default, "takes": o.takes}
        for o in options(RECIPES[made.name])
    ]
    if context.json:
        found = {
            "recipe": described,
            "formula": formula(made),
            "summary": _summary(RECIPES[made.name]),
            "needs": _missing(made),
        }
        context.emit(found | {"options": settable})
        return 0
    context.out.print(f"[bold]{made.name}[/]: {escape(_summary(RECIPES[made.name]))}")
    for line in formula(made):
        context.out.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    context.table("", ("slot", "part"), [(slot, escape(part)) for slot, part in _slots(described)])
    context.table(
        "what can be set", ("setting", "default", "takes"), [[*map(escape, row.values())] for row in settable]
    )
    if missing := _missing(made):
        context.say(f"[yellow]needs[/] {escape(missing)}")
    return 0


def run_advise(context: CommandContext) -> int:
    """Rank the recipes that fit the store and the settings; list what the others lack."""
    from afterword.cli.stages import stage_settings
    from afterword.learn.recipes.advise import advise

    with context.open_store() as store:
        facts = _facts(store, stage_settings(context, model=False))
    found = advise(facts)
    if context.json:
        context.emit({
            "interactions": dict(facts.kinds), "episodes": asdict(facts.episodes),
            "advice": [asdict(one) for one in found],
        })  # fmt: skip
        return 0
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(facts.kinds.items(), key=lambda k: -k[1]))
    kinds += f"{', ' if kinds else ''}{facts.imported} without served token ids" if facts.imported else ""
    context.out.print(f"{facts.total} interactions to train on" + (f": {kinds}" if kinds else ""))
    if facts.episodes.turns or facts.episodes.imported:
        number = facts.episodes.turns + facts.episodes.imported
        context.out.print(f"{number} turns of episodes, {facts.episodes.scored} scored episodes")
    for title, fits in (("fits", True), ("does not fit yet", False)):
        rows = [(one.recipe, escape(one.reason)) for one in found if one.fits is fits]
        if rows:
            context.table(title, ("recipe", "why" if fits else "missing"), rows)
    if best := next((one.recipe for one in found if one.fits), None):
        context.say(f"Next: `afterword train --recipe {best}`; `afterword forecast predict` estimates the gain first.")
    return 0


def run_compare(context: CommandContext) -> int:
    """Train the recipes on the task and print their gains, the largest first."""
    from afterword.cli.server_state import served_model
    from afterword.config import ServeConfig
    from afterword.forecast.recipe_comparison import (
        RecipeComparison,
        comparison_page,
        read_runs,
        run_comparison,
        summary,
    )
    from afterword.store.files import write_whole

    args = context.args
    for name, least in (("seeds", 1), ("prompts", 4), ("heldout", 4), ("tokens", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise UsageError(f"--{name} {value} is too small: at least {least}", param=name)
    recipes = tuple(_compared(context, text) for text in dict.fromkeys(args.names))
    names = [one.name for one in recipes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{twice[0]!r} is named twice: use one call and one --runs for each", param="names")
    how = RecipeComparison(
        task=args.on, recipes=recipes, model=served_model(context),
        seeds=tuple(range(args.seeds)), prompts=args.prompts, heldout=args.heldout, tokens=args.tokens,
    )  # fmt: skip
    file = args.runs or context.dir / "recipes" / f"{args.on.replace(':', '-')}.jsonl"
    work = context.dir / "recipes" / "work"
    made = run_comparison(how, file, work, device=context.config.get(ServeConfig).device, say=context.say)
    rows = summary(how.own(read_runs(file)))
    if args.html:
        write_whole(args.html, comparison_page(rows, args.on, args.prompts))
    if context.json:
        context.emit({"task": args.on, "trained": made, "runs": str(file), "recipes": rows})
        return 0
    shown = [
        (row["recipe"], row["seeds"], f"{row['before']:.2f}", f"{row['after']:.2f}", f"{row['gain']:+.3f}",
         f"{row['low']:+.3f} to {row['high']:+.3f}", row["tokens"], f"{row['seconds']:.0f}")
        for row in rows
    ]  # fmt: skip
    columns = ("recipe", "seeds", "before", "after", "gain", "95 % interval", "tokens", "CPU s")
    context.table(f"mean mark on held-out prompts of {args.on}", columns, shown)
    context.say(f"{made} trainings in this call; all are in {file}")
    return 0


def _compared(context: CommandContext, text: str) -> Any:
    """The recipe `NAME:KEY=VALUE,...` with what the settings say of teacher and experience, and the task's verifier."""
    from afterword.config import TrainConfig
    from afterword.forecast.recipe_comparison import for_task
    from afterword.learn.recipes import RECIPES, recipe
    from afterword.learn.recipes.spec import kinds

    name, _, rest = text.partition(":")
    own: dict[str, Any] = {}
    for piece in filter(None, rest.split(",")):
        key, equals, value = piece.partition("=")
        if not equals:
            raise UsageError(f"{piece!r} in {text!r} is no option: write NAME:KEY=VALUE,KEY=VALUE", param="names")
        try:
            own[key.strip()] = json.loads(value)
        except ValueError:
            own[key.strip()] = value
    train = context.config.get(TrainConfig)
    takes = kinds(RECIPES[name]) if name in RECIPES else {}
    told: dict[str, Any] = {key: value for key in ("teacher", "experience") if (value := getattr(train, key))}
    told |= train.options
    return for_task(recipe, name, context.args.on, {k: v for k, v in told.items() if k in takes} | own)


def _facts(store: Store, settings: Settings) -> Facts:
    """What the store offers to trainings, learned before or not, and what the settings name."""
    from afterword.learn.recipes.advise import Facts
    from afterword.records import Interaction

    everything = [one for one in store.rows(Interaction) if one.split == "train"]
    chosen = [one for one in everything if one.episode_id is None]
    return Facts(
        kinds=Counter(one.kind for one in chosen if one.on_policy),
        praised=sum(one.polarity > 0 for one in chosen),
        imported=sum(not one.on_policy for one in chosen),
        tasks=tuple(sorted({one.task for one in chosen if one.task})),
        verifier=bool(settings.train.verifier),
        teacher=bool(settings.train.teacher),
        experience=bool(settings.train.experience),
        episodes=_episode_facts(store, [one for one in everything if one.episode_id is not None]),
    )


def _episode_facts(store: Store, turns: list[Interaction]) -> EpisodeFacts:
    """What the collected episodes offer."""
    from afterword.learn.recipes.advise import EpisodeFacts
    from afterword.records import Episode, TaskSkill
    from afterword.store.episodes import episode_views

    if not turns:
        return EpisodeFacts()
    names = list(dict.fromkeys(one.episode_id for one in turns if one.episode_id))
    views = list(episode_views(store, [row for _, row in store.among(Episode, "id", names)]))
    rewards: dict[str, list[float]] = defaultdict(list)
    for view in views:
        if view.episode.outcome is not None:
            rewards[view.task_key].append(view.episode.outcome)
    return EpisodeFacts(
        turns=sum(one.on_policy for one in turns),
        imported=sum(not one.on_policy for one in turns),
        observed=sum(bool(one.hindsight.strip()) for one in turns),
        scored=sum(map(len, rewards.values())),
        compared=sum(len(group) for group in rewards.values() if len(set(group)) > 1),
        skills=store.count(TaskSkill),
        solved=sum((view.episode.outcome or 0.0) > 0 or "oracle" in view.episode.metadata for view in views),
    )


def _summary(make: Any) -> str:
    return str(make.__doc__).split("\n", maxsplit=1)[0]


def _missing(made: Any) -> str | None:
    """What the validator still wants; None for a recipe that runs as it is."""
    from afterword.learn.recipes.validate import validate

    try:
        validate(made)
    except ConfigError as error:
        return error.message
    return None


def _slots(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for term in described["terms"]:
        for key, value in term.items():
            if key not in ("part", "name"):
                yield f"{term['name']}.{key}", phrase(value)
    settings = {k: v for k, v in described.items() if k not in ("part", "name", "terms")}
    for key in sorted(settings, key=lambda k: (k not in _RUN_FIRST, list(settings).index(k))):
        yield key, phrase(settings[key])


def phrase(value: Any) -> str:
    """A described part as one reads it in code: `JSD(beta=0.5)`."""
    if isinstance(value, dict):
        fields = ", ".join(f"{k}={phrase(v)}" for k, v in value.items() if k != "part")
        return f"{value.get('part', '')}({fields})" if fields else str(value.get("part", "{}"))
    if isinstance(value, list):
        return ", ".join(map(phrase, value)) or "-"
    return "-" if value is None else str(value)
