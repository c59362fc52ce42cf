"""teachers: what the model itself answers when it reads a complaint, by where and how the complaint is shown.

The self-teacher can teach no more than this: its grade under a template is the ceiling of a training run, and what it
says besides (an apology, thanks) is what such a run teaches by accident.
"""

from __future__ import annotations

import dataclasses
import random
import re

from book import by, percent, table
from common import Experiment, Options, Row
from lab import compared, mean, open_lab
from learning import FOLLOWED, UNABLE, seeds

from afterword.simulate import load_persona

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


def teachers(cell: Row, options: Options) -> Row:
    """Every template on the same held-out requests, each with one of the persona's complaints."""
    persona, prompts = load_persona(cell["persona"]), options.measured()
    rng = random.Random(f"teachers/{cell['seed']}/{cell['persona']}")
    complaints = [phrase for wish in persona.wished(0) for phrase in wish.complaints]
    words = [rng.choice(complaints) for _ in prompts]
    with open_lab(cell["seed"], model=options.model, max_tokens=options.max_tokens, device=options.device) as lab:
        base = lab.ask(prompts)
        found: Row = {}
        for name, template in SHOWN.items():
            shown = [
                dataclasses.replace(p, text=template.format(question=p.text, words=w))
                for p, w in zip(prompts, words, strict=True)
            ]
            answers = lab.ask(shown)
            sorry = mean([bool(SORRY.search(a.text[:160])) for a in answers])
            found[name] = {**compared(persona, answers, base, prompts), "sorry": sorry, "seen": answers[0].text}
        sorry = mean([bool(SORRY.search(a.text[:160])) for a in base])
        found["none"] = {**compared(persona, base, base, prompts), "sorry": sorry, "seen": base[0].text}
        return {"templates": found, "stages": lab.spent}


def teachers_report(rows: list[Row]) -> tuple[str, None]:
    """By persona and template, and the mean over those that the model follows."""
    body = []
    for (persona,), found in by(rows, "persona").items():
        for name in (*SHOWN, "none"):
            some = [r["templates"][name] for r in found if name in r["templates"]]
            body.append(
                [persona, name, *(percent([s[key] for s in some]) for key in ("win", "passed", "poor", "sorry"))]
            )
    for name in (*SHOWN, "none"):
        some = [r["templates"][name] for r in rows if r["cell"]["persona"] in FOLLOWED and name in r["templates"]]
        if some:
            means = [f"{100 * mean([s[key] for s in some]):.0f}" for key in ("win", "passed", "poor", "sorry")]
            body.append(["mean of the followed", name, *means])
    head = ["persona", "template", "wins against the base", "has it", "poor answers", "apologises or thanks"]
    return table(head, body), None


TEACHERS = Experiment(
    "what the self-teacher answers, by the template that shows it the complaint",
    lambda o: seeds(o, persona=o.chosen((*FOLLOWED, *UNABLE), "personas")), teachers, teachers_report,
)  # fmt: skip
