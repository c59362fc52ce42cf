"""teachers: what the model itself answers when it reads a complaint, by where and how the complaint is shown.

The self-teacher can teach no more than this: its grade under a template is the ceiling of a training run, and what it
says besides (an apology, thanks) is what such a run teaches by accident.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

from book import by, percent, table
from common import Experiment, Options, Row
from lab import compared, mean, open_lab
from learning import FOLLOWED, UNABLE, seeds

from afterword.simulate import Persona, ServedAnswer, TaskPrompt, load_persona, persona_names

SHOWN = {
    "appended": "{question}\n\n{words}",
    "before": "{words}\n\n{question}",
    "note before": "[What the user wrote after an earlier answer: {words}]\n\n{question}",
    "note after": "{question}\n\n[What the user wrote after an earlier answer: {words}]",
    "wish after": "{question}\n\n{words} Answer that way at once.",
    "answer only": "{question}\n\n{words}\n\nDo not apologise and do not mention this. Only answer.",
    "answer only, before": "{words} Do not apologise.\n\n{question}",
}
SORRY = re.compile(
    r"\b(sorry|apolog\w*|my mistake|i understand|thank you for|thanks for|lo siento|disculp\w*|i'm here to help|"
    r"let me (know|try)|i'll (try|do|keep)|i'm glad)\b",
    re.IGNORECASE,
)


THREE, TOLD = "three at once", "told"
"""Three complaints after the request, and the persona's own way to ask for it there."""


def teachers(cell: Row, options: Options, names: Sequence[str] = tuple(SHOWN)) -> Row:
    """Every template on the same held-out requests, each with one of the persona's complaints."""
    persona, prompts = load_persona(cell["persona"]), options.measured()
    rng = random.Random(f"teachers/{cell['seed']}/{cell['persona']}")
    complaints = [phrase for wish in persona.wished(0) for phrase in wish.complaints]
    words = [rng.choice(complaints) for _ in prompts]
    many = ["\n".join(rng.sample(complaints, min(3, len(complaints)))) for _ in prompts]
    wanted = [" ".join(w.requests[i % len(w.requests)] for w in persona.wished(0)) for i in range(len(prompts))]
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        base = lab.ask(prompts)
        found: Row = {}
        for name in names:
            said = {THREE: many, TOLD: wanted}.get(name, words)
            template = SHOWN.get(name, SHOWN["appended"])
            shown = [
                dataclasses.replace(p, text=template.format(question=p.text, words=w))
                for p, w in zip(prompts, said, strict=True)
            ]
            found[name] = _measured(persona, lab.ask(shown), base, prompts)
        found["none"] = _measured(persona, base, base, prompts)
        return {"templates": found, "stages": lab.spent}


def ceilings(cell: Row, options: Options) -> Row:
    """What the base does under one complaint (the self-teacher), under three, and when it is told."""
    return teachers(cell, options, ("appended", THREE, TOLD))


def _measured(
    persona: Persona, answers: Sequence[ServedAnswer], base: Sequence[ServedAnswer], prompts: Sequence[TaskPrompt]
) -> Row:
    sorry = mean([bool(SORRY.search(a.text[:160])) for a in answers])
    return {**compared(persona, answers, base, prompts), "sorry": sorry, "seen": answers[0].text}


def teachers_report(rows: list[Row]) -> tuple[str, None]:
    """By persona and template, and the mean over those that the model follows."""
    body, keys = [], ("win", "passed", "poor", "loops", "sorry")
    names = list(dict.fromkeys(name for row in rows for name in row["templates"]))
    for (persona,), found in by(rows, "persona").items():
        for name in names:
            some = [r["templates"][name] for r in found if name in r["templates"]]
            if some:
                body.append([persona, name, *(percent([s[key] for s in some]) for key in keys)])
    for name in names:
        some = [r["templates"][name] for r in rows if r["cell"]["persona"] in FOLLOWED and name in r["templates"]]
        if some:
            means = [f"{100 * mean([s[key] for s in some]):.0f}" for key in keys]
            body.append(["mean of the followed", name, *means])
    head = ["persona", "template", "wins against the base", "has it", "poor", "repeating", "apologises or thanks"]
    return table(head, body), None


TEACHERS = Experiment(
    "what the self-teacher answers, by the template that shows it the complaint",
    lambda o: seeds(o, persona=o.chosen((*FOLLOWED, *UNABLE), "personas")), teachers, teachers_report,
)  # fmt: skip
CEILINGS = Experiment(
    "which personas the model can follow at all: under a complaint, under three at once, told; every persona",
    lambda o: seeds(o, persona=o.chosen(persona_names(), "personas")), ceilings, teachers_report,
)  # fmt: skip
