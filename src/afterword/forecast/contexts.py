"""The contexts that a forecast compares: the self-teacher's privileged text about a prompt, by name.

Each is one of `learn`'s contexts with a way to make its text from a task: the text never reaches the student.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from afterword.errors import ConfigError
from afterword.forecast.tasks import RIGHT, TaskItem, VerifiableTask
from afterword.learn.parts.contexts import CONTEXTS, Context, with_template, with_text

PREAMBLE = (
    "You are an expert. Read the request twice, work it out step by step in your head, check the result, and answer "
    "exactly what is asked in the form that is asked for."
)
"""The static preamble: the same for every prompt."""
TextOf = Callable[[VerifiableTask, TaskItem, str, str | None], str]
"""(task, prompt, the student's answer, another right answer or None) -> the privileged text; "" for none."""


@dataclass(frozen=True, slots=True)
class TeacherContext:
    """One way to teach."""

    name: str
    about: str
    where: Context
    kind: str
    """Kind of feedback whose words stand around the text."""
    text: TextOf
    peers: bool = False
    """It needs other answers to the same prompt."""

    def shows(self, task: VerifiableTask, item: TaskItem, answer: str, peer: str | None) -> str:
        """The text for one answer; "" where the student already did it right, or where there is none."""
        if self.name == "none":
            return ""
        if self.where.text is not None:
            return self.where.text
        return "" if task.score(item, answer) >= RIGHT else self.text(task, item, answer, peer)


_HINTS = with_template(
    CONTEXTS["block"],
    "[Hints about a good answer to this request.]\n{hindsight}\n\n[Answer the request with their help.]",
)


def _peer_and_feedback(task: VerifiableTask, item: TaskItem, answer: str, peer: str | None) -> str:
    """SDPO's rule: feedback only where no peer solved it."""
    return peer or task.feedback(item, answer)


TEACHER_CONTEXTS: dict[str, TeacherContext] = {
    one.name: one
    for one in (
        TeacherContext("none", "nothing: the student asked again", CONTEXTS["none"], "", lambda *_: ""),
        TeacherContext(
            "static", "the same preamble before every prompt", with_text(CONTEXTS["system"], PREAMBLE), "follow_up",
            lambda *_: PREAMBLE,
        ),
        TeacherContext(
            "feedback", "what a program says about a wrong answer", CONTEXTS["by_kind"], "tests",
            lambda task, item, answer, peer: task.feedback(item, answer),
        ),
        TeacherContext(
            "hints", "facts about a right answer that do not give it away", _HINTS, "comment",
            lambda task, item, answer, peer: task.hints(item),
        ),
        TeacherContext(
            "peer", "another attempt that was right", CONTEXTS["by_kind"], "retried",
            lambda task, item, answer, peer: peer or "", peers=True,
        ),
        TeacherContext(
            "peer_feedback", "another attempt that was right, else feedback", CONTEXTS["by_kind"], "retried",
            _peer_and_feedback, peers=True,
        ),
        TeacherContext(
            "follow_up", "what the user wrote next", CONTEXTS["appended"], "follow_up",
            lambda task, item, answer, peer: task.follow_up(item, answer),
        ),
        TeacherContext(
            "edit", "the answer as the user left it", CONTEXTS["by_kind"], "edited",
            lambda task, item, answer, peer: task.edit(item, answer),
        ),
        TeacherContext(
            "reference", "a reference solution", CONTEXTS["by_kind"], "demonstration",
            lambda task, item, answer, peer: item.reference,
        ),
    )
}  # fmt: skip
"""By name, from the least to the most that they tell."""


def teacher_context(name: str) -> TeacherContext:
    """A context by its name.

    Raises:
        ConfigError: The name is unknown; names the nearest and all.
    """
    if name not in TEACHER_CONTEXTS:
        near = difflib.get_close_matches(name, TEACHER_CONTEXTS, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(TEACHER_CONTEXTS)
        raise ConfigError(f"unknown context {name!r}: {guess}use one of {known}", param="context")
    return TEACHER_CONTEXTS[name]
