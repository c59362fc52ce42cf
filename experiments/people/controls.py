"""control_sft and recipes: the same interactions, learned from in different ways. One cell is one way.

The interactions of a (persona, seed) are collected once, from the base model, and kept beside the results, so that all
ways see the same data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from book import bars, by, percent, table
from common import Experiment, Options, Row
from lab import KEPT, Lab, compared, open_lab, oracles, taught, worded
from learning import seeds
from other_ways import as_answers, edited, imitate, prefer
from variants import AGAIN, VARIANTS, made

from afterword.learn.recipes import sft
from afterword.records import Candidate, Interaction, Turn
from afterword.simulate import Persona, load_persona
from afterword.train.data.examples import Example

N = 100


def gathered(lab: Lab, seed: int, persona: Persona, n: int, options: Options) -> list[Example]:
    """The interactions of this persona and seed with the base model: read, or made now."""
    file = KEPT / f"{persona.name}-{seed}-{n}-{options.max_tokens}-{Path(options.model).name}.jsonl"
    if not file.is_file():
        examples = lab.gather(persona, n, options.train())
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps([e.interaction.to_dict(), e.turn.to_dict()]) for e in examples]
        work = file.with_suffix(".new")
        work.write_text("\n".join(lines) + "\n", encoding="utf-8")
        work.replace(file)
    pairs = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [Example(Interaction.from_dict(i), Turn.from_dict(t)) for i, t in pairs]


def _self(lab: Lab, examples: list[Example], cell: Row) -> Candidate:
    way = made(cell["recipe"])
    return lab.learn(taught(examples, way), way)


def _served(lab: Lab, examples: list[Example], cell: Row) -> Candidate:
    return lab.learn(worded(examples), sft(epochs=2))


def _edits(lab: Lab, examples: list[Example], cell: Row) -> Candidate:
    return imitate(lab, as_answers(edited(worded(examples), load_persona(cell["persona"]))))


def _preferred(lab: Lab, examples: list[Example], cell: Row) -> Candidate:
    return prefer(lab, edited(worded(examples), load_persona(cell["persona"])))


WAYS: dict[str, Callable[[Lab, list[Example], Row], Candidate] | None] = {
    "self-distillation": _self, "sft on served answers": _served, "sft on edits": _edits,
    "preference from edits": _preferred, "told in the prompt": None,
}  # fmt: skip


def control(cell: Row, options: Options) -> Row:
    """One way of spending the same interactions."""
    persona, prompts = load_persona(cell["persona"]), options.measured()
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        base, way = lab.of_base(prompts), WAYS[cell["variant"]]
        examples = gathered(lab, cell["seed"], persona, options.sized(N), options)
        if way is None:
            return {**oracles(lab, persona, base, prompts)["request"], "interactions": 0, "stages": lab.spent}
        candidate = way(lab, examples, cell)
        general = lab.general(candidate)
        lab.release(candidate)
        found = compared(persona, lab.ask(prompts), base, prompts)
        kept = {k: candidate.metrics.get(k) for k in ("loss_first", "loss_last", "drift_last", "tokens")}
        return {
            **found, **kept, "interactions": len(candidate.interactions), "general": general, "stages": lab.spent,
            "shown": [a.text for a in lab.ask(prompts[:4])],
        }  # fmt: skip


def _with(rows: list[Row], **more: str) -> list[Row]:
    """The rows, their cells with these keys where they lack them."""
    return [{**row, "cell": {**more, **row["cell"]}} for row in rows]


def control_report(rows: list[Row]) -> tuple[str, str]:
    """A line for each persona and way."""
    charts: dict[str, list[tuple[str, list[float]]]] = {}
    body = []
    for (persona, way, recipe, _), found in by(_with(rows, recipe=""), "persona", "variant", "recipe", "scale").items():
        way = f"{way} ({recipe})" if way == "self-distillation" else way
        body.append([
            persona, way, len(found), f"{sum(r['interactions'] for r in found) / len(found):.0f}",
            percent([r["win"] for r in found]), percent([r["base_passed"] for r in found]),
            percent([r["passed"] for r in found]), percent([r["poor"] for r in found]),
            percent([r["loops"] for r in found]), f"{sum(r['words'] for r in found) / len(found):.0f}", _rise(found),
            f"{sum(r['seconds'] for r in found) / len(found) / 60:.1f}",
        ])  # fmt: skip
        charts.setdefault(persona, []).append((way, [r["win"] for r in found]))
    head = ["persona", "way", "seeds", "interactions", "wins against the base", "base has it", "has it", "poor answers",
            "repeating", "words", "loss on general text, %", "minutes a cell"]  # fmt: skip
    return table(head, body), bars(list(charts.items()), "wins against the base, per cent", 0.5)


def _rise(found: list[Row]) -> str:
    rises = [r["general"]["loss_rise"] for r in found if r.get("general")]
    return f"{100 * sum(rises) / len(rises):+.1f}" if rises else ""


def recipes(cell: Row, options: Options) -> Row:
    """One recipe on the same interactions, from the base."""
    persona, prompts = load_persona(cell["persona"]), options.measured()
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        base, examples = lab.of_base(prompts), gathered(lab, cell["seed"], persona, options.sized(N), options)
        way = made(cell["variant"])
        candidate = lab.learn(taught(examples, way), way)
        general = lab.general(candidate)
        lab.release(candidate)
        found = compared(persona, lab.ask(prompts), base, prompts)
        kept = {k: candidate.metrics.get(k) for k in ("loss_first", "loss_last", "drift_last", "tokens", "stopped")}
        return {
            **found, **kept, "interactions": len(candidate.interactions), "general": general, "stages": lab.spent
        }  # fmt: skip


CONTROL = Experiment(
    "plain fine-tuning on the logged answers, and other uses of the same interactions (paper: Table 4)",
    lambda o: seeds(
        o, persona=o.chosen(("brief", "numbered", "tutor"), "personas"), recipe=[o.recipe],
        variant=o.chosen(tuple(WAYS), "variants"),
    ),
    control, control_report,
)  # fmt: skip
RECIPES = Experiment(
    "the engine's recipes side by side on the same interactions, one factor at a time",
    lambda o: seeds(
        o, persona=o.chosen(("brief", "numbered"), "personas"),
        variant=o.chosen(tuple(name for name in VARIANTS if name != AGAIN), "variants"),
    ),
    recipes, control_report,
)  # fmt: skip
