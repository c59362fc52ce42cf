"""Plays a user by a language model behind any OpenAI-compatible server.

Owns the two prompts, after the structure of arXiv 2603.12273 (persona and rules as the system message; request, answer
and the order to write the next message as the user's), in our own words. The persona's checkers take no part in what
is said; they only measure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import openai

from afterword.chat.trail import after_reasoning
from afterword.errors import ConfigError, UpstreamError
from afterword.simulate.personas import Persona
from afterword.simulate.users import Reaction

LEAVE = "(leaves)"
SYSTEM = f"""You play a person who uses a chat assistant. What this person wants from every answer:
{{wants}}

How you write:
- You are that person and never the assistant. Write the way people type in a chat.
- Look at the answer only for whether it is as this person wants it. Whether its facts are right does not matter.
- Never answer the request yourself, and never write the answer over again.
- Be very short: one sentence, two at most.
- Write the message and nothing else: no quotation marks around it, no explanation.
- When the answer is as wanted you may say that it is fine, or write only {LEAVE} to go without a word."""
ORDER = """The person asked:
{question}

The assistant answered:
{answer}

Write the person's next message to the assistant."""
LATER = """{question}

Later the person wrote:
{last}"""
"""The request of a longer conversation: without the first one the last message ("shorter") would be no request."""
LONGEST = 128
"""Tokens of a message."""
_LEAVES = re.compile(r"(?:the (?:person|user) |i )?leaves?", re.IGNORECASE)
_QUOTES = (('"', '"'), ("“", "”"))


@dataclass(frozen=True, slots=True)
class LLMUser:
    """A language model that plays personas."""

    url: str
    model: str
    api_key: str = "none"
    temperature: float = 0.7

    async def react(
        self,
        client: openai.AsyncOpenAI,
        persona: Persona,
        said: Sequence[str],
        answer: str,
        conversation: int,
        asked: int,
    ) -> Reaction:
        """The persona's message about an answer; an empty message, or an exhausted patience, is silence.

        `said` are the user's messages, the request first. ConfigError when the server refuses, or when the model never
        comes to an end of its thoughts; Raises UpstreamError, with the model's name, when it fails or does not answer.
        """
        if asked > persona.habits.patience:
            return Reaction("leave")
        question = said[0] if len(said) == 1 else LATER.format(question=said[0], last=said[-1])
        text = await self._write(client, persona, ORDER.format(question=question, answer=answer), conversation)
        if not text or text.casefold().startswith(LEAVE) or _LEAVES.fullmatch(text.strip(' ()[]*_.!"“”')):
            return Reaction("leave")
        return Reaction("complain" if persona.unmet(answer, said[0], conversation) else "thank", text)

    async def _write(self, client: openai.AsyncOpenAI, persona: Persona, order: str, conversation: int) -> str:
        """The message alone: without the model's thoughts and without quotation marks around it."""
        wants = " ".join(wish.wants for wish in persona.wished(conversation))
        try:
            given = await client.chat.completions.create(
                model=self.model, max_tokens=LONGEST, temperature=self.temperature,
                messages=[
                    {"role": "system", "content": SYSTEM.format(wants=wants)},
                    {"role": "user", "content": order},
                ],
            )  # fmt: skip
        except openai.APIStatusError as error:
            if error.status_code >= 500 or error.status_code == 429:
                raise UpstreamError(f"{self} fails with {error.status_code}: {error.message}") from error
            raise ConfigError(
                f"{self} rejects the request with {error.status_code}: {error.message}. "
                "Check both parts of --user-model, and --user-key.",
                param="user_model",
            ) from error
        except openai.APIConnectionError as error:
            raise UpstreamError(f"{self} does not answer: {error}") from error
        choice = given.choices[0]
        text = after_reasoning(choice.message.content or "").strip()
        # A server that parses thoughts gives them in a field of their own, and nothing here when they do not end.
        if text.casefold().startswith("<think>") or (not text and choice.finish_reason == "length"):
            raise ConfigError(
                f"{self} still thinks after {LONGEST} tokens and says nothing: turn its thinking off at its server.",
                param="user_model",
            )
        return _unquoted(text)

    def __str__(self) -> str:
        return f"the user model {self.model!r} at {self.url}"


def _unquoted(text: str) -> str:
    """Without one pair of quotation marks around the whole; marks inside stay."""
    for first, last in _QUOTES:
        inner = text.removeprefix(first).removesuffix(last)
        if len(text) == len(inner) + 2 and not {'"', "“", "”"} & set(inner):
            return inner.strip()
    return text
