"""Sentences for what was typed wrong, whatever Python's own wording is."""

import ast
import subprocess
import sys

import pytest

from afterword.cli.entry import COMMANDS, Parser, parser


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


def test_help_imports_no_command_and_each_command_is_in_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; from afterword.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({n for n in sys.modules if n.startswith('afterword.')} | {'pydantic', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == {
        "afterword.cli",
        "afterword.cli.entry",
        "afterword.errors",
        "afterword.moved",  # the table of old import paths: strings alone
    }
    for name, (module, text) in COMMANDS.items():
        with pytest.raises(SystemExit):
            parser([name, "--help"]).parse_args([name, "--help"])
        shown = capsys.readouterr().out
        assert text.split(",")[0][1:] in shown or name in ("demo", "simulate"), shown
        assert "--config FILE" in shown, f"{module}.register does not add {name}"
