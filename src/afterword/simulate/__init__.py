"""Simulates users with a lasting preference over the public HTTP API.

Owns personas, their checkers and questions, and the conversations. Never reads the store, and training never reads
anything from here: a persona's wish reaches the model only through its messages and actions.
"""

from afterword.simulate.checkers import CheckResult, check
from afterword.simulate.client import ServedAnswer, ask_heldout
from afterword.simulate.conversations import SimulationSummary, simulate_users
from afterword.simulate.llm_user import LLMUser
from afterword.simulate.personas import Habits, Persona, Wish, load_persona, persona_names
from afterword.simulate.prompts import TASKS, TaskPrompt, load_prompts

__all__ = [
    "TASKS",
    "CheckResult",
    "Habits",
    "LLMUser",
    "Persona",
    "ServedAnswer",
    "SimulationSummary",
    "TaskPrompt",
    "Wish",
    "ask_heldout",
    "check",
    "load_persona",
    "load_prompts",
    "persona_names",
    "simulate_users",
]  # fmt: skip
