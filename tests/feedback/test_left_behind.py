"""Messages that a conversation did not go on from are a program's, in any language; the others are a person's."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterword.feedback.collect.collect import collect
from afterword.records import Interaction, Record, Skip
from afterword.store import Store
from tests.feedback.feedback_builders import feedback, turn

UNKNOWN = "Zorbla kwentu pilmaro deshi vantu, okelo brinda samuti perlo."
"""A request of a front end, in a language that no vocabulary knows."""
SAID = "That's wrong, six minutes are too long."


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "afterword.db")


def conversation(
    name: str, beside: str = UNKNOWN, said: str = SAID, *, gone_on: bool = True, source: str = "gateway"
) -> list[Record]:
    """An answer, a request beside it, and the user's message from which the conversation goes on."""
    user = {"user": f"u-{name}", "conversation": name, "source": source}
    rows: list[Record] = [turn(f"{name}-1", **user)]
    for number, text in ((2, beside), (3, said)):
        rows.append(turn(f"{name}-{number}", previous=f"{name}-1", **user))
        rows.append(
            feedback("follow_up", f"{name}-f{number}", f"{name}-1", text=text, next_turn=f"{name}-{number}",
                     user=f"u-{name}", source="detector")
        )  # fmt: skip
    return [*rows, turn(f"{name}-4", previous=f"{name}-3", **user)] if gone_on else rows


def reasons(store: Store) -> dict[str, str]:
    return {skip.feedback: skip.reason for skip in store.rows(Skip)}


def test_what_the_conversation_did_not_go_on_from_teaches_nothing(store: Store) -> None:
    with store:
        store.write(*conversation("c"))
        collect(store)
        assert reasons(store) == {"c-f2": "left_behind"}
        assert [made.feedback for made in store.rows(Interaction)] == [("c-f3",)]


def test_while_nothing_went_on_both_are_a_persons(store: Store) -> None:
    with store:
        store.write(*conversation("c", "Wrong, eight minutes.", gone_on=False))
        collect(store)
        assert "left_behind" not in reasons(store).values()


def test_a_branch_that_went_on_is_a_persons(store: Store) -> None:
    with store:
        store.write(*conversation("c", "Wrong, eight minutes."), turn("c-5", previous="c-2", conversation="c"))
        collect(store)
        assert "left_behind" not in reasons(store).values()


def test_branches_of_a_file_are_all_a_persons(store: Store) -> None:
    with store:
        store.write(*conversation("c", "Wrong, eight minutes.", source="import:openai"))
        collect(store)
        assert "left_behind" not in reasons(store).values()


def test_a_message_that_was_sent_again_is_not_left_behind(store: Store) -> None:
    """The first answer to it was thrown away, the second one went on."""
    with store:
        store.write(*conversation("c", SAID))
        collect(store)
        assert "left_behind" not in reasons(store).values()


def test_a_text_that_two_conversations_left_behind_is_a_template_in_the_next_one(store: Store) -> None:
    """Also where the user said nothing more, and by what earlier collections skipped."""
    with store:
        store.write(*conversation("a"))
        collect(store)
        store.write(*conversation("b"))
        collect(store)
        last: list[Record] = [
            turn("d-1", user="u-d"), turn("d-2", previous="d-1", user="u-d"),
            feedback("follow_up", "d-f", "d-1", text=UNKNOWN, next_turn="d-2", user="u-d", source="detector"),
        ]  # fmt: skip
        store.write(*last)
        collect(store)
        assert reasons(store)["d-f"] == "left_behind"


def test_a_short_text_that_was_left_behind_is_no_template(store: Store) -> None:
    with store:
        store.write(*conversation("a", "No, shorter."), *conversation("b", "No, shorter."))
        collect(store)
        store.write(
            turn("d-1"), turn("d-2", previous="d-1"),
            feedback("follow_up", "d-f", "d-1", text="No, shorter.", next_turn="d-2", source="detector"),
        )  # fmt: skip
        collect(store)
        assert "d-f" not in reasons(store)
