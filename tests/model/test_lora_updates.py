"""The average of updates: exact against a dense one, and never larger."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afterword.model.lora import Delta, mixed

OUT, WIDTH, RANK = 24, 40, 3


def update(seed: int, size: float = 1.0) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, WIDTH, generator=generator) * size
    return Delta(down, torch.randn(OUT, RANK, generator=generator) * size, scale=2.0)


def walk(steps: int, size: float = 0.02) -> list[Delta]:
    """A student whose factors move a little at each step, as AdamW moves them."""
    at, path = update(0), []
    for step in range(1, steps + 1):
        by = update(step)
        at = Delta(at.down + size * by.down.sign(), at.up + size * by.up.sign(), at.scale)
        path.append(at)
    return path


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_the_average_is_of_the_product_exactly() -> None:
    average, dense, sizes = update(0), update(0).full(), []
    for at in walk(60):
        average = mixed(average, at, 0.05)
        dense = 0.95 * dense + 0.05 * at.full()
        sizes.append(average.numel)
        assert relative(average.full(), dense) < 1e-5
    assert sizes[0] == 2 * RANK * (OUT + WIDTH)  # two stacks of factors
    assert max(sizes) <= OUT * WIDTH == sizes[-1]  # and never more than the matrix


@pytest.mark.parametrize(("rate", "steps", "left"), [(0.05, 14, 0.488), (0.01, 50, 0.605)])
def test_the_gap_to_a_fixed_student_shrinks_by_its_rate(rate: float, steps: int, left: float) -> None:
    """methods_core 0.4, property 3."""
    average, student = update(1), update(2)
    gap = average.full() - student.full()
    for _ in range(steps):
        average = mixed(average, student, rate)
    torch.testing.assert_close(average.full() - student.full(), (1 - rate) ** steps * gap, atol=1e-5, rtol=1e-4)
    assert (1 - rate) ** steps == pytest.approx(left, abs=1e-3)


def test_averaged_factors_would_be_another_update() -> None:
    """From zero over n steps: 1 - (1-r)^n for the product, its square for the factors (algorithm_peers 5.3)."""
    student, rate, n = update(3), 0.1, 10
    average = Delta(torch.zeros(RANK, WIDTH), torch.zeros(OUT, RANK), student.scale)
    for _ in range(n):
        average = mixed(average, student, rate)
    share = 1 - (1 - rate) ** n
    torch.testing.assert_close(average.full(), share * student.full(), atol=1e-5, rtol=1e-4)
    assert share - share**2 > 0.2


def test_a_bounded_rank_stays_near() -> None:
    average, dense = update(0), update(0).full()
    for at in walk(200, size=0.002):
        average = mixed(average, at, 0.05, rank=2 * RANK)
        dense = 0.95 * dense + 0.05 * at.full()
        assert len(average.down) <= 5 * RANK
    assert relative(average.full(), dense) < 0.01


def test_an_average_of_bounded_rank_never_grows_dense() -> None:
    def moved(part: Tensor) -> Tensor:
        return part + 1e-3 * torch.randn_like(part).sign()

    average = student = Delta(torch.randn(4, 400), torch.randn(300, 4))
    for step in range(60):
        student = Delta(moved(student.down), moved(student.up))
        average = mixed(average, student, 0.05, rank=16)
        assert average.dense is None and len(average.down) <= 2 * 16 + 4, step
