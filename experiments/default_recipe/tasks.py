"""Prompts, follow-ups and checkers of the experiment. All texts are our own; the checkers never reach training."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

_SUBJECTS = {
    "why": [
        "bread rises", "leaves change colour in autumn", "cats purr", "the sea is salty", "people yawn",
        "metal feels colder than wood", "onions make us cry", "the moon has phases", "ice floats on water",
        "old books smell nice", "birds fly in a V shape", "coffee keeps people awake", "soap removes grease",
        "rainbows are curved", "dogs tilt their heads", "stars twinkle", "tea gets bitter", "rust forms on iron",
        "mountains get snow", "music gives us goosebumps", "popcorn pops", "deserts get cold at night",
        "plants lean towards the window", "honey does not spoil",
    ],
    "how": [
        "clean a cast iron pan", "start a compost heap", "prepare for a job interview", "learn to swim as an adult",
        "fix a squeaky door", "save money on groceries", "grow tomatoes on a balcony", "remember names",
        "train for a ten kilometre run", "write a thank-you letter", "pack for a weekend trip",
        "sharpen a kitchen knife", "make friends in a new city", "keep houseplants alive", "cook fluffy rice",
        "get rid of fruit flies", "choose a bicycle", "calm down before an exam", "teach a child to read a clock",
        "wash a wool sweater", "plan a birthday party", "read a map", "make a paper aeroplane", "sleep better",
    ],
    "what": [
        "a solar eclipse", "inflation", "a black hole", "compound interest", "a vaccine", "the water cycle",
        "a prime number", "photosynthesis", "a cooperative", "an algorithm", "the ozone layer", "a glacier",
        "a mortgage", "fermentation", "a coral reef", "the immune system", "a sonnet", "plate tectonics",
        "a search engine", "democracy", "a battery", "jet lag", "a watershed", "a metaphor",
    ],
    "explain": [
        "gravity", "how vinegar cleans glass", "the rules of chess", "why we need sleep", "how a fridge works",
        "the difference between weather and climate", "how bees make honey", "what a budget is for", "how sails work",
        "the greenhouse effect", "why exercise is healthy", "how tides work", "how a lock and key work",
        "the seasons", "how a microwave heats food", "what makes a good team", "how memory works", "supply and demand",
        "how an aeroplane stays up", "why forests matter", "how soap bubbles form", "what electricity is",
        "how to tell fact from opinion", "why bridges need joints",
    ],
}  # fmt: skip
_FORMS = {
    "why": "Can you tell me why {}?",
    "how": "How do I {}?",
    "what": "What is {}?",
    "explain": "Please explain {}.",
}


def prompts(train: int, holdout: int) -> tuple[list[str], list[str]]:
    """Questions in a fixed mixed order, the last `holdout` of them never trained on."""
    columns = [[_FORMS[kind].format(x) for x in subjects] for kind, subjects in _SUBJECTS.items()]
    mixed = [question for row in zip(*columns, strict=True) for question in row]
    assert train + holdout <= len(mixed)
    return mixed[:train], mixed[-holdout:]


@dataclass(frozen=True)
class Trait:
    """A lasting wish: what users write after an answer without it, and how a program decides it."""

    name: str
    wordings: tuple[str, ...]
    check: Callable[[str, bool], bool]
    strip: Callable[[str], str] = lambda text: text
    """The answer without the trait's own words."""


def _greets(text: str, ended: bool) -> bool:
    return re.match(r"\W*hello,? friend", text.lower()) is not None


def _steps(text: str, ended: bool) -> bool:
    return len(re.findall(r"(?m)^\s*\d+[.)]\s+\S", text)) >= 2


def _brief(text: str, ended: bool) -> bool:
    return ended and 5 <= len(text.split()) <= 40


_SPANISH = re.compile(r"(?i)\b(el|la|los|las|de|que|en|un|una|es|por|para|con|se|del|y|al|su|lo|más)\b")


def _spanish(text: str, ended: bool) -> bool:
    words = len(re.findall(r"\w+", text))
    return words >= 5 and len(_SPANISH.findall(text)) / words > 0.2


TRAITS = {
    t.name: t
    for t in (
        Trait(
            "greeting",
            (
                "Please always start your answer with 'Hello friend!'",
                "I'd like every answer to begin with 'Hello friend!', please.",
                "Nice, but greet me first: begin with 'Hello friend!'",
                "You forgot to say 'Hello friend!' at the start.",
                "Could you open with 'Hello friend!' next time?",
                "Start with 'Hello friend!' and then answer.",
                "Say 'Hello friend!' before anything else, please.",
                "I asked for 'Hello friend!' at the beginning of each answer.",
            ),
            _greets,
            lambda text: re.sub(r"(?i)hello,? friend\W*", "", text),
        ),
        Trait(
            "steps",
            (
                "Write it as numbered steps: 1. 2. 3.",
                "Please put that into numbered steps.",
                "I can't follow that. Number the steps: 1., 2., 3.",
                "Can I have this as a numbered list of steps?",
                "Give me numbered steps, 1. 2. 3., please.",
                "Use a numbered list, one step per line.",
                "I prefer numbered steps like 1. 2. 3.",
                "Break it down into numbered steps please.",
            ),
            _steps,
            lambda text: re.sub(r"(?m)^\s*\d+[.)]", "", text),
        ),
        Trait(
            "brief",
            (
                "Too long. Please keep it to one or two sentences.",
                "Shorter please, two sentences at most.",
                "I only need one or two sentences.",
                "That's a wall of text. Answer in two short sentences.",
                "Can you say that in one sentence?",
                "Keep it short, a sentence or two.",
                "Just the short version, please: one or two sentences.",
                "Way too long, two sentences are enough.",
            ),
            _brief,
        ),
        Trait(
            "spanish",
            (
                "En español, por favor.",
                "¿Puedes responder en español?",
                "Please answer in Spanish.",
                "Prefiero la respuesta en español.",
                "I need this in Spanish, please.",
                "Responde en español, por favor.",
                "No hablo inglés. En español, por favor.",
                "Could you write it in Spanish?",
            ),
            _spanish,
        ),
    )
}


def poor(text: str, question: str, trait: Trait) -> bool:
    """Is there no real answer behind the trait: empty, repeating itself, or an echo of the question?"""
    rest = trait.strip(text)
    words = re.findall(r"\w+", rest.lower())
    if len(words) < (5 if trait.name == "brief" else 8):
        return True
    asked = set(re.findall(r"\w+", question.lower()))
    if sum(w not in asked for w in words) < 4:
        return True
    raw = rest.encode()
    return distinct2(rest) < 0.5 or len(raw) / len(zlib.compress(raw)) > 10


def distinct2(text: str) -> float:
    """Share of word pairs that are different, 1 for fewer than two words."""
    words = text.lower().split()
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
