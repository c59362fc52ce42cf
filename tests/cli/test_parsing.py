"""Sentences for what was typed wrong, whatever Python's own wording is."""

import pytest

from afterword.cli.parsing import Parser


@pytest.mark.parametrize("known", ["'serve', 'train'", "serve, train"], ids=["before 3.12.8", "after"])
@pytest.mark.parametrize(
    ("given", "says"),
    [("srve", "there is no command 'srve': did you mean 'serve'?"),
     ("zzz", "there is no command 'zzz': it is one of serve, train.")],
)  # fmt: skip
def test_choices_are_read_with_quotes_and_without(
    capsys: pytest.CaptureFixture[str], known: str, given: str, says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        Parser(prog="afterword").error(f"argument COMMAND: invalid choice: '{given}' (choose from {known})")
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
