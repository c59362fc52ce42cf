"""Episodes that a tiny model "played": stored turns with their served ids, observations and rewards."""

from __future__ import annotations

from typing import Any

from afterword.chat.render import encode, end_of_turn_ids, render_prompt
from afterword.chat.sampling_fields import PLAIN
from afterword.model.loading import load_tokenizer
from afterword.records import Episode, EpisodeEnd, Feedback, Turn
from afterword.store import Store

END = 2e9


def play(
    store: Store,
    model: str,
    name: str,
    said: list[str],
    observed: list[str],
    *,
    value: float | None = None,
    task: str = "walk",
    rewards: dict[int, float] | None = None,
    **episode: Any,
) -> list[Turn]:
    """Store an ended episode: the agent's answers, what came back after each but the last, the reward."""
    turns: list[Turn] = []
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"Task {task}."}]
    for number, answer in enumerate(said):
        turns.append(
            turn(model, f"{name}-{number}", messages, answer, number, name, turns[-1].id if turns else None)
        )  # fmt: skip
        messages = [*messages, {"role": "assistant", "content": answer}]
        if number < len(observed):
            messages.append({"role": "user", "content": observed[number]})
    ends = EpisodeEnd(id=f"end-{name}", episode=name, status="finished", ended_at=END)
    store.write(Episode(id=name, task_id=task, **episode), *turns, ends)
    if value is not None:
        store.write(Feedback(id=f"r-{name}", turn=name, kind="outcome", value=value, metadata={"episode": name}))
    for number, reward in (rewards or {}).items():
        store.write(Feedback(id=f"r-{name}-{number}", turn=f"{name}-{number}", kind="outcome", value=reward))
    return turns


def turn(
    model: str, name: str, messages: list[dict[str, Any]], answer: str, index: int, episode: str, previous: str | None
) -> Turn:
    """A turn as the engine would have served it."""
    tokenizer = load_tokenizer(model)
    ids = (*encode(tokenizer, answer), end_of_turn_ids(tokenizer)[0])
    return Turn(
        id=name,
        messages=tuple(messages),
        answer={"role": "assistant", "content": answer},
        prompt_ids=render_prompt(tokenizer, messages).ids,
        completion_ids=ids,
        logprobs=(-5.0,) * len(ids),
        sampling=PLAIN,
        previous=previous,
        episode_id=episode,
        episode_index=index,
    )


def four(store: Store, model: str) -> None:
    """Four episodes of one task, two of them successful, and one of another task alone."""
    play(store, model, "e1", ["north", "east", "east"], ["wall", "1 east"], value=1.0)
    play(store, model, "e2", ["north", "west"], ["wall"], value=0.0)
    play(store, model, "e3", ["east", "east"], ["1 east"], value=1.0)
    play(store, model, "e4", ["west"], [], value=0.0)
    play(store, model, "f1", ["up"], [], value=1.0, task="climb")
