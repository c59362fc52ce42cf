"""`python -m afterword.model.conversion FOLDER`: convert the built-in model from GGUF into a transformers folder.

Owns the conversion and its lock: of several processes one converts, the others wait and find the folder whole. The
folder is written beside its place, flushed to disk and renamed, so that a killed conversion leaves nothing that looks
whole; what it left is removed by the next one.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import IO, Any

from afterword.errors import ModelError
from afterword.model.embedded import WAITING, gguf_source, is_whole
from afterword.processes import Pulse, dump_stacks_when_asked
from afterword.store.locks import try_lock

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PINNED = {
    "2026-11-21": [34, 32, 34, 38, 29, 33, 33, 29, 34, 33],
    "\n\n1. one\n2. two": [1116, 33, 30, 582, 198, 34, 30, 827],
    " 12 apples\n\n\n 3": [216, 33, 34, 13855, 1116, 3805, 35],
    "<|im_start|>user\nHi 😀<|im_end|>\n": [1, 4093, 198, 26843, 40303, 218, 2, 198],
}
"""Ids that llama.cpp's tokenizer gives for the same GGUF: a conversion that differs is rejected."""


def convert(folder: Path) -> None:
    """Make `folder` whole, by this process or by the one that holds the lock.

    Raises:
        ModelError: The installed transformers converts differently, or the package is missing.
        OSError: The folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a+", encoding="ascii") as lock:
        _take(lock)  # the system releases it however this process ends
        if is_whole(folder):
            return
        _clear(folder)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            write_model(gguf_source(), work)
            _check_pins(work)
            _flush(work)
            work.chmod(0o755)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _take(lock: IO[str]) -> None:
    """Lock the file and write our process id into it. While another process has it and makes progress, say so on stdout
    now and then: whoever waits for us cannot see that progress in us."""
    pulses: dict[int, Pulse] = {}
    while not try_lock(lock):
        lock.seek(0)
        holder = int(lock.read() or 0)
        pulse = pulses.setdefault(holder, Pulse(holder))
        time.sleep(0.5)
        if holder and pulse.check() == 0.0:
            sys.stdout.write(f"{WAITING}{holder}, which converts the built-in model\n")
            sys.stdout.flush()
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


def _clear(folder: Path) -> None:
    """Remove what killed conversions left; nobody else writes there while we hold the lock."""
    for left in (folder, *folder.parent.glob(f".{folder.name}-*")):
        if left.is_dir():
            shutil.rmtree(left)


def write_model(source: Path, work: Path) -> None:
    """Write tokenizer and weights (bfloat16) of the GGUF in `source` into the folder `work`."""
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _repaired_tokenizer(source).save_pretrained(work)
    unpack = transformers.GgufConfig(dequantize=True)
    with redirect_stderr(io.StringIO()):  # its progress bar knows no switch
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, gguf_file=_GGUF, quantization_config=unpack, dtype=torch.bfloat16
        )
    model.save_pretrained(work)


def _repaired_tokenizer(source: Path) -> Any:
    """The GGUF's tokenizer with digits split one by one: transformers does not know its type `smollm`."""
    import transformers
    from tokenizers import pre_tokenizers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = 8192
    return tokenizer


def _check_pins(folder: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, ids in PINNED.items():
        got = tokenizer(text, add_special_tokens=False)["input_ids"]
        if got != ids or tokenizer.decode(got) != text:
            raise ModelError(
                f"the converted tokenizer reads {text!r} as {got} instead of {ids}: the installed "
                "transformers converts GGUF tokenizers differently; install the versions of constraints.txt"
            )


def _flush(work: Path) -> None:
    """The files' bytes on disk before the name is: a rename that survives a power loss alone would lie."""
    for path in (*work.iterdir(), work):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert into the folder named on the command line; 1 with one line on stdout when that fails."""
    dump_stacks_when_asked()
    (folder,) = sys.argv[1:] if arguments is None else arguments
    try:
        convert(Path(folder))
    except (ModelError, OSError) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
