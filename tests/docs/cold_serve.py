"""Run by `.ci/run` with an empty cache: `afterword serve` starts and answers the `openai` client, streamed.

python tests/docs/cold_serve.py EMPTY_FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from afterword.cli.demo_processes import serving


def main(folder: Path) -> None:
    """Start, ask, print how long each took; an exception ends it with exit code 1."""
    started = time.monotonic()
    with serving(folder / "cold") as url:
        print(f"ready after {time.monotonic() - started:.1f} s at {url}")
        client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60.0, max_retries=0)
        question: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name three colours."}]
        stream = client.chat.completions.create(
            model="afterword", messages=question, max_tokens=32, temperature=0.0, stream=True
        )
        pieces = [choice.delta.content for chunk in stream for choice in chunk.choices if choice.delta.content]
    text = "".join(pieces)
    assert len(pieces) > 1 and text.strip(), f"the streamed answer is {pieces!r}"
    print(f"answered after {time.monotonic() - started:.1f} s in {len(pieces)} pieces: {text.strip()!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
