"""The difference between two renderings, laid into what was served."""

from __future__ import annotations

import pytest

from afterword.chat.splice import spliced

HEAD, ASK, END, OPEN = [1, 2, 3], list(range(10, 30)), [4, 5], [6, 7]
PLAIN, TOLD = [*HEAD, *ASK, *END, *OPEN], [*HEAD, *ASK, 90, 91, *END, *OPEN]
FIRST = [*HEAD, 80, 81, *ASK, *END, *OPEN]
"""With more in the system message."""
NEXT = [*PLAIN, 70, *END, 71, *END, *OPEN]
"""With the answer and another message behind it."""


@pytest.mark.parametrize(
    ("told", "served", "want"),
    [
        pytest.param(TOLD, PLAIN, TOLD, id="as it is written today"),
        pytest.param(TOLD, [1, 8, 8, 8, 3, *ASK, *END, *OPEN], [1, 8, 8, 8, 3, *ASK, 90, 91, *END, *OPEN], id="a date"),
        pytest.param(TOLD, [*PLAIN, 50, 51], [*TOLD, 50, 51], id="an empty thought behind the header"),
        pytest.param(TOLD, [1, 8, 3, *ASK, *END, *OPEN, 50], [1, 8, 3, *TOLD[3:], 50], id="both"),
        pytest.param(FIRST, [*HEAD, *ASK, *END, *OPEN, 50], [*FIRST, 50], id="first, thought"),
        pytest.param(FIRST, [1, 9, 3, *ASK, *END, *OPEN], [1, 9, 3, 80, 81, *ASK, *END, *OPEN], id="first, date"),
        pytest.param(NEXT, [1, 8, *ASK, *END, *OPEN], [1, 8, *ASK, *END, *OPEN, *NEXT[len(PLAIN) :]], id="behind"),
        pytest.param(TOLD, [60, 61, 62, 63], None, id="another prompt"),
        pytest.param(TOLD, [], None, id="no prompt"),
        pytest.param(PLAIN, [1, 8, 3, *ASK, *END, *OPEN], [1, 8, 3, *ASK, *END, *OPEN], id="nothing more is told"),
    ],
)
def test_only_the_difference_is_taken(told: list[int], served: list[int], want: list[int] | None) -> None:
    got = spliced(PLAIN, told, served)
    assert got == (None if want is None else tuple(want))


def test_a_place_between_two_changes_is_found_by_what_stands_around_it() -> None:
    more = list(range(100, 120))
    plain, told = [*HEAD, *ASK, *more, *OPEN], [*HEAD, *ASK, 90, *more, *OPEN]
    served = [1, 8, 3, *ASK, *more, *OPEN, 50]
    assert spliced(plain, told, served) == (1, 8, 3, *ASK, 90, *more, *OPEN, 50)
    assert spliced(plain, told, [1, 8, 3, *ASK[:-4], *more, *OPEN, 50]) is None


def test_of_several_places_the_one_with_more_in_common_is_taken() -> None:
    once = [30, *ASK, 31, *ASK, 32]
    plain, told = [*HEAD, *once, *OPEN], [*HEAD, 30, *ASK, 31, *ASK[:10], 90, *ASK[10:], 32, *OPEN]
    served = [1, 8, 3, *once, *OPEN, 50]
    assert spliced(plain, told, served) == (1, 8, 3, *told[3:], 50)


def test_a_place_that_cannot_be_told_from_others_is_not_found() -> None:
    plain = [7] * 4000
    assert spliced(plain, [*plain[:2000], 9, *plain[2000:]], [1, *plain[1:-1], 2]) is None
