"""continual and adapters: one adapter for many tasks after one another, and for many users at once.

After section 3 of the tutorial of on-policy self-distillation, and its item A2 (merging).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from book import by, chart, percent, table
from common import Experiment, Options, Row
from controls import gathered
from lab import Lab, mean, open_lab, taught, worded
from learning import seeds, sized
from other_ways import as_answers, edited, imitate, merged
from variants import made

from afterword.learn.recipes.recipe import Recipe
from afterword.records import Candidate
from afterword.simulate import Persona, ServedAnswer, TaskPrompt, Wish, load_persona, load_prompts
from afterword.train.data.examples import Example

TASKS = (
    ("question", "brief"), ("ideas", "numbered"), ("explain", "greeting"), ("summarise", "bullets"),
    ("write", "signoff"), ("rewrite", "lively"), ("plan", "emojis"), ("compare", "recap"),
)  # fmt: skip
"""Eight kinds of work, each with what is wanted of it: what is learned for one need not hold for another."""
EACH, SAMPLES = 40, 2
IMITATES = "sft on edits"
ARMS = ("self-distillation", "replay", IMITATES, "merge")


def scores(lab: Lab, tasks: Sequence[tuple[str, str]], options: Options, *, base: bool = False) -> dict[str, float]:
    """For each task the share of held-out answers that are as wanted, several answers to each request."""
    found, ask = {}, lab.of_base if base else lab.ask
    for task, name in tasks:
        prompts = load_prompts("heldout", [task])[: max(2, options.heldout // 8)]
        answers = [ask(prompts, seed=100 * k, temperature=0.7) for k in range(SAMPLES)]
        persona = load_persona(name)
        found[task] = mean([
            persona.mark(a.text, p.text).passed for given in answers for a, p in zip(given, prompts, strict=True)
        ])  # fmt: skip
    return found


def continual(cell: Row, options: Options) -> Row:
    """Task after task by one arm; after each, every task seen so far, and at the end all of them."""
    tasks = TASKS[: max(2, round(len(TASKS) * min(1.0, options.scale * 3)))]
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        base, after = scores(lab, tasks, options, base=True), []
        parent: Candidate | None = None
        seen: list[Example] = []
        parts: list[Candidate] = []
        for k, (task, name) in enumerate(tasks, 1):
            persona = load_persona(name)
            examples = lab.gather(persona, options.sized(EACH), load_prompts("train", [task]))
            parent = _learned(lab, cell, persona, examples, seen, parent, parts)
            seen += examples
            lab.release(parent)
            after.append(
                {"task": task, "persona": name, "n": len(examples), **{"scores": scores(lab, tasks[:k], options)}}
            )
            if cell["variant"] == "merge":
                lab.serve_base()  # the next task is answered, and learned, from the base
        if cell["variant"] == "merge":
            return {"base": base, "after": after, **_merges(lab, parts, tasks, options), "stages": lab.spent}
        return {"base": base, "after": after, "end": after[-1]["scores"], "stages": lab.spent}


def _learned(
    lab: Lab, cell: Row, persona: Persona, examples: list[Example], seen: list[Example], parent: Candidate | None,
    parts: list[Candidate],
) -> Candidate:  # fmt: skip
    arm, way = cell["variant"], made(cell["recipe"])
    if arm == IMITATES:
        return imitate(lab, as_answers(edited(worded(examples), persona)), parent)
    examples = taught(examples, way)
    if arm == "replay":
        old = seen[:: max(1, len(seen) // max(1, len(examples)))][: len(examples)]
        return lab.learn([*examples, *taught(old, way)], way, parent=parent)
    if arm == "merge":
        parts.append(lab.learn(examples, way))
        return parts[-1]
    return lab.learn(examples, way, parent=parent)


def _merges(lab: Lab, parts: Sequence[Candidate], tasks: Sequence[tuple[str, str]], options: Options) -> Row:
    """The mean of the updates, and half of their sum."""
    found = {}
    for name, share in (("mean", 1 / len(parts)), ("half the sum", 0.5)):
        lab.serve_base()
        lab.release(merged(lab, parts, share))
        found[name] = scores(lab, tasks, options)
    return {"merges": found}  # both are reported: the better one would be chosen by what measures it


def continual_report(rows: list[Row]) -> tuple[str, str]:
    """Right after its own task, at the end, and the base; the mean over tasks as a curve."""
    body, lines = [], []
    for (arm, recipe, scale), found in by(rows, "variant", "recipe", "scale").items():
        arm = sized(arm if arm == IMITATES else f"{arm} ({recipe})", scale)
        tasks = [one["task"] for one in found[0]["after"]]
        own = percent([mean([one["scores"][one["task"]] for one in r["after"]]) for r in found])
        base = percent([mean(list(r["base"].values())) for r in found])
        minutes = f"{sum(r['seconds'] for r in found) / len(found) / 60:.1f}"
        for way in found[0].get("merges", {"": None}):
            ends = [r["merges"][way] if way else r["end"] for r in found]
            kept = [mean([end[one["task"]] - one["scores"][one["task"]] for one in r["after"][:-1]])
                    for r, end in zip(found, ends, strict=True)]  # fmt: skip
            at_end, change = [mean(list(end.values())) for end in ends], f"{100 * sum(kept) / len(kept):+.0f}"
            named = f"{arm}: {way}" if way else arm
            body.append([named, len(found), len(tasks), base, own, percent(at_end), change, minutes])
            if way:  # before the merge each adapter knows one task: a curve over them would say nothing
                lines.append((named, [(float(len(tasks)), at_end)]))
        if "merges" not in found[0]:
            points = [
                (float(k + 1), [mean(list(r["after"][k]["scores"].values())) for r in found]) for k in range(len(tasks))
            ]
            lines.append((arm, points))
    head = ["arm", "seeds", "tasks", "base", "right after each task", "at the end", "change of earlier tasks, points",
            "minutes a cell"]  # fmt: skip
    return table(head, body), chart(lines, "tasks learned; mean over the tasks so far")


TEAMS = (("greeting", ("tutor", "lively")), ("coach", ("signoff", "emojis")))
"""Of each team: what it wants, and what each of its two users wants beside that. All want short answers."""


def people() -> dict[str, tuple[int, Persona, dict[str, Wish]]]:
    """Four users: team, persona, and the wish of each level."""
    everyone, found = load_persona("brief").wishes[0], {}
    everyone = dataclasses.replace(everyone, options={"min_words": 6, "max_words": 46})
    for team, (shared, users) in enumerate(TEAMS):
        for name in users:
            wishes = {"all": everyone, "team": load_persona(shared).wishes[0], "user": load_persona(name).wishes[0]}
            persona = dataclasses.replace(load_persona(name), name=f"{name}-{team}", wishes=tuple(wishes.values()))
            found[persona.name] = (team, persona, wishes)
    return found


def adapters(cell: Row, options: Options) -> Row:
    """Four users in two teams: one adapter for all, one each, or global, then team, then user."""
    prompts, everyone = options.measured()[: max(8, options.heldout // 2)], people()
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        way = made(cell["recipe"])
        said = {
            name: taught(gathered(lab, cell["seed"], p, options.sized(2 * EACH), options), way)
            for name, (_, p, _) in everyone.items()
        }
        answers = lab.of_base(prompts)
        found: Row = {"base": {n: _granted(answers, w, prompts) for n, (_, _, w) in everyone.items()}, "users": {}}
        served = _trained(lab, cell["variant"], way, everyone, said)
        for name, candidate in served.items():
            current = lab.store.release("default")
            if current is None or current.candidate != candidate.id:
                lab.release(candidate)
                answers = lab.ask(prompts)
            found["users"][name] = _granted(answers, everyone[name][2], prompts)
        count = len({c.id for c in served.values()})
        return {**found, "interactions": {n: len(e) for n, e in said.items()}, "adapters": count, "stages": lab.spent}


def _granted(
    answers: Sequence[ServedAnswer], wishes: dict[str, Wish], prompts: Sequence[TaskPrompt]
) -> dict[str, float]:
    return {
        level: mean([wish.mark(a.text, p.text).passed for a, p in zip(answers, prompts, strict=True)])
        for level, wish in wishes.items()
    }


def _trained(
    lab: Lab, arm: str, way: Recipe, everyone: dict[str, tuple[int, Persona, dict[str, Wish]]],
    said: dict[str, list[Example]],
) -> dict[str, Candidate]:  # fmt: skip
    """User -> the adapter that answers them."""
    whole = [e for examples in zip(*said.values(), strict=False) for e in examples]
    if arm == "own":
        return {name: lab.learn(said[name], way) for name in everyone}
    shared = lab.learn(whole, way)
    if arm == "shared":
        return dict.fromkeys(everyone, shared)
    teams = {
        team: lab.learn([e for n, (t, _, _) in everyone.items() if t == team for e in said[n]], way, parent=shared)
        for team in range(len(TEAMS))
    }
    return {name: lab.learn(said[name], way, parent=teams[team]) for name, (team, _, _) in everyone.items()}


def adapters_report(rows: list[Row]) -> tuple[str, str | None]:
    """Share of answers that grant the wish of each level, over the users."""
    body = []
    for (arm, recipe, scale), found in by(rows, "variant", "recipe", "scale").items():
        arm = sized(f"{arm} ({recipe})", scale)
        cells: list[object] = [arm, len(found), found[0]["adapters"]]
        for level in ("all", "team", "user"):
            before = [mean([one[level] for one in r["base"].values()]) for r in found]
            after = [mean([one[level] for one in r["users"].values()]) for r in found]
            cells.append(f"{percent(before)} → {percent(after)}")
        body.append([*cells, f"{sum(r['seconds'] for r in found) / len(found) / 60:.1f}"])
    head = ["arm", "seeds", "adapters", "wish of all", "wish of the team", "wish of the user", "minutes a cell"]
    return table(head, body), None


CONTINUAL = Experiment(
    "eight kinds of work, each with its preference, one after another: retention after each",
    lambda o: seeds(o, recipe=[o.recipe], variant=o.chosen(ARMS, "variants")), continual, continual_report,
)  # fmt: skip
ADAPTERS = Experiment(
    "one shared adapter for several users, one each, and the hierarchy of global, team and user",
    lambda o: seeds(o, recipe=[o.recipe], variant=o.chosen(("shared", "own", "hierarchy"), "variants")),
    adapters, adapters_report,
)  # fmt: skip
