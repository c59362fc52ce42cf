"""Runs one task by a harness that nobody here wrote, unmodified, against a base URL; prints its final answer as JSON.

    python agent_harness.py smolagents|agents-chat|agents-responses URL/episodes/ID/v1

Needs `pip install 'smolagents[openai]' openai-agents` in an environment of its own; imports nothing of Afterword.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

TASK = "Weather in Rome?"


def smolagents(url: str) -> Any:
    """A CodeAgent with one tool."""
    from smolagents import CodeAgent, OpenAIModel, tool

    @tool  # type: ignore[untyped-decorator]
    def look(city: str) -> str:
        """Tells the weather.

        Args:
            city: Name of a city.
        """
        return f"18 degrees in {city}, rain"

    model = OpenAIModel(model_id="afterword", api_base=url, api_key="none")
    return CodeAgent(tools=[look], model=model, max_steps=4, verbosity_level=0).run(TASK)


def agents_sdk(url: str, responses: bool) -> Any:
    """An Agent with one tool, over the chat or the Responses API."""
    from agents import (
        Agent,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    set_tracing_disabled(True)

    @function_tool  # type: ignore[untyped-decorator]
    def look(city: str) -> str:
        """Tells the weather."""
        return f"18 degrees in {city}, rain"

    client = AsyncOpenAI(base_url=url, api_key="none")
    kind = OpenAIResponsesModel if responses else OpenAIChatCompletionsModel
    agent = Agent(
        name="clerk",
        instructions="You are a clerk.",
        tools=[look],
        model=kind(model="afterword", openai_client=client),
    )
    return asyncio.run(Runner.run(agent, TASK, max_turns=4)).final_output


if __name__ == "__main__":
    name, address = sys.argv[1:]
    found = smolagents(address) if name == "smolagents" else agents_sdk(address, name == "agents-responses")
    print(json.dumps({"answer": str(found)}))
