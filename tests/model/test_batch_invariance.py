"""What is drawn does not depend on what is drawn beside it: bit for bit, on the built-in model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch

from afterword.model.generation import sampler
from afterword.model.generation.drawing import Drawer, DrawnAnswer
from afterword.model.generation.fused_linear import AdapterMask, FusedLinear
from afterword.model.generation.sampler import Draw
from afterword.model.loading import load_model
from afterword.model.lora import Delta

ENDS = (2,)
SIZES = (3, 17, 40, 129, 131, 1)
"""Tokens of the prompts: one longer than a block by a single token, one by more."""
LIMITS = (6, 3, 8, 5, 2, 7)


@pytest.fixture
def one_thread() -> Iterator[None]:
    known = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(known)


def prompts(sizes: tuple[int, ...] = SIZES) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(100, 40_000, (size,), generator=generator).tolist() for size in sizes]


def update(model: Any) -> dict[str, Delta]:
    """A random update of two layers of each kind."""
    generator, found = torch.Generator().manual_seed(5), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and (".0." in name or ".7." in name):
            down = torch.randn(8, module.in_features, generator=generator)
            up = torch.randn(module.out_features, 8, generator=generator)
            found[name] = Delta(down=down, up=up, scale=0.002)
    return found


def drawn(model: Any, rows: int, adapter: dict[str, Delta] | None, temperature: float) -> list[DrawnAnswer]:
    drawer = Drawer(model, ENDS, rows=rows)
    return drawer.draw(prompts(), LIMITS, adapter=adapter, temperature=temperature, seed=11)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("one_thread")
def test_an_answer_is_the_same_in_every_batch_and_on_all_threads(
    dtype: Literal["bfloat16", "float32"],
) -> None:
    model = load_model("smollm2-135m-instruct", dtype=dtype, device="cpu")
    adapter = update(model)
    alone = drawn(model, 1, adapter, 1.0)
    base = drawn(model, 6, None, 1.0)
    assert all(one.tokens and one.tokens != other.tokens for one, other in zip(alone, base, strict=True))
    for rows, threads in ((3, 1), (5, 2)):
        torch.set_num_threads(threads)
        assert drawn(model, rows, adapter, 1.0) == alone


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("one_thread")
def test_an_answer_is_the_same_beside_one_that_reads_more_keys(dtype: Literal["bfloat16", "float32"]) -> None:
    """In bfloat16 masked keys behind 200 change the sum over their values now and then."""
    model = load_model("smollm2-135m-instruct", dtype=dtype, device="cpu")
    asked = [prompt[:size] for prompt, size in zip(prompts((400, 400, 400)), (200, 245, 290), strict=True)]
    alone, beside = (Drawer(model, ENDS, rows=n).draw(asked, (20,) * 3, temperature=1.0, seed=11) for n in (1, 3))
    assert beside == alone


def test_a_wide_nucleus_beside_it_does_not_change_a_draw() -> None:
    """Equal logits, as half-precision heads give them: `topk` and `sort` order them differently."""
    generator = torch.Generator().manual_seed(0)
    narrow = (torch.randn(1, 4096, generator=generator) * 8).round() / 2
    wide = torch.zeros(1, 4096)
    for step in range(200):
        draw = Draw(1.0, 0.9, step / 200)
        both = sampler.sample(torch.cat([narrow, wide]), [draw, draw])
        assert int(both[0]) == int(sampler.sample(narrow, [draw])[0])


@pytest.mark.parametrize(("inputs", "outputs"), [(576, 960), (576, 576), (576, 3072), (1536, 576)])
@pytest.mark.usefixtures("one_thread")
def test_a_products_rows_do_not_depend_on_the_rows_beside_them(inputs: int, outputs: int) -> None:
    """On processors with AMX a packed bf16 product of 32 rows has other bits than one of 33 or 256."""
    torch.manual_seed(4)
    linear = torch.nn.Linear(inputs, outputs, bias=False).bfloat16().requires_grad_(False)
    mask = AdapterMask()
    block = FusedLinear([linear], mask)
    x = torch.randn(300, inputs).bfloat16()

    def product(rows: torch.Tensor, written: int) -> torch.Tensor:
        mask.read_at(torch.tensor([0]), written)
        return block.output(rows, 0)

    written = torch.cat([product(row, 1) for row in torch.split(x[:48], 1)])
    read = product(x[48:], 0)
    torch.testing.assert_close(read, linear(x[48:]), atol=0.02, rtol=0.02)
    for one, rest in ((48, 252), (33, 4), (1, 131), (40, 40), (0, 64), (5, 0)):
        assert torch.equal(
            product(torch.cat([x[:one], x[48 : 48 + rest]]), one), torch.cat([written[:one], read[:rest]])
        )
