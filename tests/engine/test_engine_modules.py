"""Fused linear layers and the choice of threads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from afterword.model.generation.fused_linear import note_inputs, replace_parts
from afterword.model.generation.machine_load import LoadFollower
from afterword.model.generation.thread_tuner import _PERIOD, _TRIAL, Cores


class Gate(nn.Module):
    """Two layers read x, one reads what they make, and a second call reads x again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 4), nn.Linear(4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.c(self.b(x) * self.a(x)[..., :4])
        return made


def test_layers_that_read_the_same_tensor_become_one_and_say_the_same() -> None:
    torch.manual_seed(0)
    model, x = Gate().eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        with note_inputs(model) as groups:
            own = model(x)
        assert groups == [["b", "a"], ["c"]]
        lines, _ = replace_parts(model, groups)
        assert lines["a"].block is lines["b"].block and lines["c"].block is not lines["a"].block
        assert model.get_submodule("a") is lines["a"]
        torch.testing.assert_close(model(x), own)
        torch.testing.assert_close(model(x), own)  # what was kept for the first call is gone
        # one of the two asked alone, twice, then both: never an old answer
        y = torch.randn(1, 8)
        first = model.a(y)
        torch.testing.assert_close(model.a(y), first)
        torch.testing.assert_close(model(x), own)
        assert lines["a"].block._seen is None


def test_a_layer_that_runs_twice_stays_by_itself() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.a(x) + self.b(x) + self.a(x + 1)
            return made

    model, x = Twice(), torch.randn(3, 4)
    with torch.no_grad():
        with note_inputs(model) as groups:
            own = model(x)
        lines, _ = replace_parts(model, groups)
        assert lines["a"].block is not lines["b"].block
        torch.testing.assert_close(model(x), own)


@pytest.mark.parametrize(("fast", "wanted"), [(1, 1), (2, 2)])
def test_a_writing_step_gets_the_threads_that_were_faster(
    fast: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    clock = [0.0]
    monkeypatch.setattr("afterword.model.generation.thread_tuner._use", used.append)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    cores = Cores(2, LoadFollower(2, lambda: None, lambda: 0.0))
    for _ in range(2 * _PERIOD):
        with cores.share(16):
            clock[0] += 1.0 if used[-1] == fast else 3.0
    assert used.count(wanted) >= 2 * _PERIOD - 2 * 2 * _TRIAL
    with cores.share(500):
        pass
    assert used[-1] == 2


def test_only_steps_of_as_many_tokens_are_compared_and_sleeping_threads_get_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[int] = []
    clock = [0.0]
    monkeypatch.setattr("afterword.model.generation.thread_tuner._use", used.append)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    cores, awake = Cores(2, LoadFollower(2, lambda: None, lambda: 0.0)), 0
    for step in range(2 * _PERIOD):
        tokens = 16 if step >= _TRIAL else 1 + step  # the batch grows while the first way is timed
        with cores.share(tokens):
            awake = awake + 1 if used[-1] == 2 else 0
            clock[0] += tokens * (1.0 if used[-1] == 2 and awake > 3 else 1.5 if used[-1] == 1 else 2.0)
    assert used.count(2) > 2 * _PERIOD - 6 * _TRIAL, "two threads are faster once they are awake"
