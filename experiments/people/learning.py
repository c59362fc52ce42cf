"""personalise, change_of_mind, complementary, robustness: one user, and what is served after N interactions.

After arXiv 2603.12273, Figures 4, 5, 6, 8 and 9, with programs in place of a judge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from book import Line, by, chart, over_seeds, panels, percent, table
from common import Experiment, Options, Row
from lab import Lab, compared, open_lab, oracles, passed, respaced
from variants import AGAIN, LOOPS, VARIANTS, holds, made

from afterword.learn.recipes.recipe import Recipe
from afterword.records import Candidate, Skip
from afterword.simulate import Persona, TaskPrompt, load_persona
from afterword.train.data.examples import Example

FOLLOWED = ("brief", "numbered", "greeting", "spanish", "french", "german")
"""Under one complaint its answers win at least 70 % against the base (`run.py ceilings`)."""
UNABLE = ("capitals", "json")
"""The embedded model does not do it even when told to."""
STEPS = (25, 50, 100, 200)
PHASE = 100_000


def seeds(options: Options, **more: list[str]) -> list[Row]:
    """Every combination of `more` for each seed, seed by seed, so that a first answer comes early."""
    cells: list[Row] = [{"seed": seed} for seed in range(options.seeds)]
    for name, values in more.items():
        cells = [{**cell, name: value} for cell in cells for value in values]
    return [{**cell, "model": options.model, "scale": options.scale} for cell in cells]


LEAST = 8
"""New interactions that a round of training needs, as the product's own rounds do; fewer wait for the next one."""


def grow(
    lab: Lab, persona: Persona, steps: Sequence[int], options: Options, prompts: Sequence[TaskPrompt], *, at: int = 0,
    parent: Candidate | None = None, gated: bool = True, made: Recipe | None = None,
    earlier: list[Example] | None = None,
) -> tuple[list[Row], Candidate | None]:  # fmt: skip
    """Rounds of talking, training and releasing up to each of `steps` interactions; a row with the answers after each.

    With `earlier` each round starts from the base and learns those and its own, which are added to them.

    An interaction is an answer that the user did something about, praise and silence with an event included; those
    with words that are not held out are trained on. Without `gated` every follow-up is, whatever it says.
    """
    rows: list[Row] = []
    done, trained = 0, 0
    for step in steps:
        if options.sized(step) <= done:  # a smoke run has fewer steps
            continue
        lab.chat(persona, options.sized(step) - done, options.train(), at=at)
        done = options.sized(step)
        held = made is not None and holds(made)
        examples = lab.fresh(f"sim-{persona.name}", gated=gated, held=held)
        row: Row = {"wanted": step, "interactions": done}
        if sum(bool(e.interaction.hindsight) for e in examples) >= (LEAST if options.scale >= 0.25 else 1):
            if earlier is not None:
                earlier += examples
            parent = lab.learn(
                examples if earlier is None else earlier, made, parent=parent if earlier is None else None
            )
            lab.release(parent)
            trained += len(examples)
            row["metrics"] = _short(parent)
        rows.append({**row, "trained": trained, "answers": lab.ask(prompts)})
    return rows, parent


def again(cell: Row) -> list[Example] | None:
    """What the rounds of this cell learn again: nothing yet; None where each goes on from the one before."""
    return [] if cell["variant"] == AGAIN else None


def _short(candidate: Candidate) -> Row:
    return {
        key: candidate.metrics[key]
        for key in ("loss_first", "loss_last", "drift_last", "entropy_ratio", "tokens", "seconds")
    }


def personalise(cell: Row, options: Options) -> Row:
    """Win rate against the base by interactions, with the oracles in context."""
    persona, prompts = load_persona(cell["persona"]), options.measured()
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        base = lab.of_base(prompts)
        told = oracles(lab, persona, base, prompts)
        rows, last = grow(lab, persona, STEPS, options, prompts, made=made(cell["variant"]), earlier=again(cell))
        curve = [{"trained": 0, **compared(persona, base, base, prompts)}]
        curve += [{**compared(persona, row.pop("answers"), base, prompts), **row} for row in rows]
        few = zip(prompts[:4], base, lab.ask(prompts[:4]), strict=False)
        shown = [{"asked": p.text, "base": b.text, "after": a.text} for p, b, a in few]
        lab.serve_base()
        judged = lab.judge(last) if last is not None else None
        return {"curve": curve, "oracle": told, "judged": judged, "stages": lab.spent, "shown": shown}


def personalise_report(rows: list[Row]) -> tuple[str, str]:
    """Table by persona and number of interactions; a line for each persona."""
    charts: dict[str, list[Line]] = {}
    body = []
    for (persona, variant, scale), found in by(rows, "persona", "variant", "scale").items():
        variant = sized(variant, scale)
        steps = sorted({p["wanted"] for r in found for p in r["curve"] if "win" in p and "wanted" in p})
        at = {s: [p["win"] for r in found for p in r["curve"] if p.get("wanted") == s and "win" in p] for s in steps}
        charts.setdefault(persona, []).append((variant, [(0.0, [0.5]), *((s * scale, at[s]) for s in steps)]))
        last = [r["curve"][-1] for r in found]
        rise = [r["judged"]["loss_rise_base"]["value"] for r in found if r["judged"] and r["judged"]["loss_rise_base"]]
        body.append([
            persona, variant, len(found), *(percent(at[s]) if s in at else "" for s in STEPS),
            *(percent([r["oracle"][how]["win"] for r in found]) for how in ("system", "request")),
            percent([p.get("base_passed", 0.0) for p in last]), percent([p.get("passed", 0.0) for p in last]),
            percent([p.get("poor", 0.0) for p in last]), f"{100 * sum(rise) / len(rise):+.1f}" if rise else "",
            f"{sum(r['seconds'] for r in found) / len(found) / 60:.1f}",
        ])  # fmt: skip
    head = ["persona", "recipe", "seeds", *(f"win at {s}" for s in STEPS), "told (system)", "told (user)",
            "base has it", "has it", "poor answers", "loss on general text, %", "minutes a cell"]  # fmt: skip
    told = {p: [r["oracle"]["request"]["win"] for r in some] for (p,), some in by(rows, "persona").items()}
    shown = [(name, lines, (over_seeds(told[name])[0],)) for name, lines in charts.items()]
    return table(head, body), panels(
        shown, "interactions (dashed: told by the user)", "wins against the base, per cent"
    )


def change_of_mind(cell: Row, options: Options) -> Row:
    """100 interactions with the first wish, 250 with the opposite one."""
    persona, prompts = respaced(load_persona(cell["persona"]), PHASE), options.measured()
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        base = lab.of_base(prompts)
        way, kept = made(cell["variant"]), again(cell)
        first, parent = grow(lab, persona, (50, 100), options, prompts, made=way, earlier=kept)
        second, _ = grow(
            lab, persona, (50, 100, 175, 250), options, prompts, at=PHASE, parent=parent, made=way, earlier=kept
        )
        curve = []
        for phase, rows in enumerate((first, second)):
            for row in rows:
                answers = row.pop("answers")
                both = {str(w): compared(persona, answers, base, prompts, w * PHASE) for w in (0, 1)}
                curve.append({**row, "phase": phase, "wishes": both})
        return {"curve": curve, "stages": lab.spent}


def change_report(rows: list[Row]) -> tuple[str, str]:
    """Both wishes along both phases."""
    charts: dict[str, list[Line]] = {}
    body = []
    for (persona, variant, scale), found in by(rows, "persona", "variant", "scale").items():
        variant = sized(variant, scale)
        for wish in ("0", "1"):
            points: dict[float, list[float]] = {0.0: [r["curve"][0]["wishes"][wish]["base_passed"] for r in found]}
            for row in found:
                for p in row["curve"]:
                    points.setdefault(p["wanted"] + 100.0 * p["phase"], []).append(p["wishes"][wish]["passed"])
            line = ("the old wish" if wish == "0" else "the new wish", sorted(points.items()))
            charts.setdefault(_titled(persona, variant), []).append(line)
        ends = [[p for p in r["curve"] if p["phase"] == phase] for phase in (0, 1) for r in found]
        turn, end = [e[-1] for e in ends[: len(found)] if e], [e[-1] for e in ends[len(found) :] if e]
        body.append([
            persona, variant, len(found), percent([p["wishes"]["0"]["passed"] for p in turn]),
            percent([p["wishes"]["1"]["passed"] for p in turn]),
            percent([p["wishes"]["0"]["passed"] for p in end or turn]),
            percent([p["wishes"]["1"]["passed"] for p in end or turn]),
            percent([p["wishes"]["1"]["win"] for p in end or turn]),
            f"{sum(r['seconds'] for r in found) / len(found) / 60:.1f}",
        ])  # fmt: skip
    head = ["persona", "recipe", "seeds", "old wish before the change", "new wish before", "old wish at the end",
            "new wish at the end", "new wish, wins against the base", "minutes a cell"]  # fmt: skip
    shown = [(title, lines, (0.85,)) for title, lines in charts.items()]
    return table(head, body), panels(shown, "interactions at full scale; the mind changes at 100", "has it, per cent")


def sized(variant: str, scale: float) -> str:
    """The name of a line of a report, with the scale where it is not the whole experiment."""
    return variant if scale == 1.0 else f"{variant}, {scale:g} of the interactions"


def _titled(persona: str, variant: str) -> str:
    return persona if variant == "follow-ups" else f"{persona}, {variant}"


def complementary(cell: Row, options: Options) -> Row:
    """Wishes that are added one by one; after each, how many answers grant each of them."""
    persona, prompts = respaced(chained(cell["persona"]), PHASE), options.measured()
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        base = lab.of_base(prompts)
        told = [_told(lab, persona, prompts, phase * PHASE) for phase in range(len(persona.wishes))]
        parent, curve, way, kept = None, [], made(cell["variant"]), again(cell)
        for phase in range(len(persona.wishes)):
            rows, parent = grow(
                lab, persona, (40, 80), options, prompts, at=phase * PHASE, parent=parent, made=way, earlier=kept
            )
            for row in rows:
                each = [compared(wish, row["answers"], base, prompts) for wish in persona.wishes]
                curve.append({**{k: v for k, v in row.items() if k != "answers"}, "phase": phase, "wishes": each})
        return {"curve": curve, "told": told, "stages": lab.spent, "wishes": [w.wants for w in persona.wishes]}


def chained(name: str) -> Persona:
    """The persona, or one that gets the wishes of several one after the other: "numbered>greeting"."""
    first, *others = [load_persona(part) for part in name.split(">")]
    if not others:
        return first
    wishes = [wish for one in (first, *others) for wish in one.wishes]
    return dataclasses.replace(
        first, name=name.replace(">", "-"), wishes=tuple(dataclasses.replace(w, after=i) for i, w in enumerate(wishes))
    )


def _told(lab: Lab, persona: Persona, prompts: Sequence[TaskPrompt], at: int) -> list[float]:
    """For each wish the share of answers that grant it when the base is told all those of this time at once."""
    words = [[w.requests[i % len(w.requests)] for w in persona.wished(at)] for i in range(len(prompts))]
    asked = [dataclasses.replace(p, text=f"{p.text}\n\n{' '.join(w)}") for p, w in zip(prompts, words, strict=True)]
    answers = lab.ask(asked)
    return [passed(wish, answers, prompts) for wish in persona.wishes]


def complementary_report(rows: list[Row]) -> tuple[str, str]:
    """Each wish after each phase; the loss of the earlier ones."""
    charts: dict[str, list[Line]] = {}
    body = []
    for (persona, variant, scale), found in by(rows, "persona", "variant", "scale").items():
        variant = sized(variant, scale)
        for i, name in enumerate(found[0]["wishes"]):
            points: dict[float, list[float]] = {0.0: [r["curve"][0]["wishes"][i]["base_passed"] for r in found]}
            for row in found:
                for p in row["curve"]:
                    points.setdefault(80.0 * p["phase"] + p["wanted"], []).append(p["wishes"][i]["passed"])
            charts.setdefault(_titled(persona, variant), []).append((name, sorted(points.items())))
            own, last = points.get(80.0 * i + 80, []), points[max(points)]
            lost = [b - a for a, b in zip(own, last, strict=False)]
            told = [percent([r["told"][phase][i] for r in found]) for phase in (i, -1)]
            body.append([
                persona, variant, name, len(found), percent(points[0.0]), *told, percent(own or [0.0]), percent(last),
                f"{100 * sum(lost) / len(lost):+.0f}" if lost else "",
            ])  # fmt: skip
    head = ["persona", "recipe", "wish, in the order of their coming", "seeds", "base", "base, told so far",
            "base, told all", "after its own phase", "at the end", "change"]  # fmt: skip
    shown = [(title, lines, ()) for title, lines in charts.items()]
    return table(head, body), panels(shown, "interactions at full scale; a wish is added every 80", "has it, per cent")


SHARES = ("0", "25", "50", "75", "100")


def robustness(cell: Row, options: Options) -> Row:
    """A share of the follow-ups has nothing to do with the answer; with the product's filters and without."""
    share, gated = int(cell["share"]) / 100, cell["gate"] == "on"
    persona, prompts = load_persona(cell["persona"]), options.measured()
    habits = dataclasses.replace(
        persona.habits, off_topic=share, silence=0.0, accepted=0.0, thanks=0.0, rating=0.0, edit=0.0, retry=0.0,
        wrong=0.0, request=0.0,
    )  # fmt: skip
    persona = dataclasses.replace(persona, habits=habits)
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        base = lab.of_base(prompts)
        again = lab.of_base(prompts, temperature=0.7, seed=1)
        rows, last = grow(lab, persona, (100,), options, prompts, gated=gated, made=made(cell["variant"]))
        found = compared(persona, rows[-1].pop("answers"), base, prompts)
        return {
            **rows[-1], **found, "noise": compared(persona, again, base, prompts), "released": last is not None,
            "skips": lab.store.tally(Skip, "reason"), "stages": lab.spent,
        }  # fmt: skip


def robustness_report(rows: list[Row]) -> tuple[str, str]:
    """Pass rate and win rate by share of irrelevant follow-ups, with and without the filters."""
    body, lines = [], []
    for (persona, variant, gate), found in by(rows, "persona", "variant", "gate").items():
        at = by(found, "share")
        points = [(float(share), [r["win"] for r in some]) for (share,), some in at.items()]
        lines.append((f"{persona}, {variant}, filters {gate}", sorted(points)))
        for (share,), some in at.items():
            body.append([
                persona, variant, share, gate, len(some), f"{sum(r['trained'] for r in some) / len(some):.0f}",
                percent([r["win"] for r in some]), percent([r["passed"] for r in some]),
                percent([r["poor"] for r in some]), percent([r["noise"]["win"] for r in some]),
            ])  # fmt: skip
    head = ["persona", "recipe", "irrelevant, per cent", "filters",
            "seeds", "trained", "wins against the base", "has it", "poor answers",
            "base against itself at another temperature"]  # fmt: skip
    return table(head, body), chart(lines, "irrelevant follow-ups, per cent", marks=(0.5,))


def variants(options: Options) -> list[str]:
    """The recipes that were asked for; the default alone when none was."""
    return options.chosen((*VARIANTS, *LOOPS), "variants") if options.variants else ["follow-ups"]


PERSONALISE = Experiment(
    "win rate against the base by number of interactions, with the oracles in context (paper: Figures 5 and 9)",
    lambda o: seeds(o, persona=o.chosen((*FOLLOWED, *UNABLE), "personas"), variant=variants(o)),
    personalise, personalise_report,
)  # fmt: skip
CHANGE = Experiment(
    "a preference is learned and then turned into its opposite (paper: Figure 4)",
    lambda o: seeds(o, persona=o.chosen(("turns_to_detail", "list_to_prose"), "personas"), variant=variants(o)),
    change_of_mind, change_report,
)  # fmt: skip
COMPLEMENTARY = Experiment(
    "preferences are added one by one and the earlier ones are kept (paper: Figure 6)",
    lambda o: seeds(o, persona=o.chosen(("layers", "numbered>greeting"), "personas"), variant=variants(o)),
    complementary, complementary_report,
)  # fmt: skip
ROBUSTNESS = Experiment(
    "a growing share of irrelevant follow-ups, with and without the product's filters (paper: Figure 8 as a curve)",
    lambda o: seeds(
        o, persona=o.chosen(("brief",), "personas"), variant=variants(o), gate=["on", "off"], share=list(SHARES)
    ),
    robustness, robustness_report,
)  # fmt: skip
