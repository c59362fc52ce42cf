"""Resolves and loads models and tokenizers, reads their sizes, and hashes them.

References are the built-in model (`embedded` makes its folder), local folders and hub ids. Adapters name their base by
these hashes. Writes nothing outside of the cache.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import huggingface_hub
import transformers
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError

from afterword.errors import ModelError
from afterword.model.embedded import EMBEDDED as EMBEDDED
from afterword.model.embedded import cache_root as cache_root
from afterword.model.embedded import embedded_model
from afterword.model.embedded import model_name as model_name
from afterword.processes import stage
from afterword.store.files import write_whole

if TYPE_CHECKING:  # loaded by what computes: a process that needs a tokenizer alone loads it in a third of the time
    import torch

DtypeName = Literal["bfloat16", "float32", "auto"]

_HUB_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja"]


def resolve_model(ref: str, cache: Path | None = None) -> Path:
    """Find the folder with config, weights and tokenizer of a model.

    Args:
        ref: EMBEDDED (converted on first use: about 20 s, 270 MB), a local folder, or a hub id.
        cache: Folder in place of the user's cache.

    Raises:
        ModelError: The folder contains no model, the package is missing, or the hub is unreachable or has no such id.
    """
    if ref == EMBEDDED:
        return embedded_model(cache)
    folder = Path(ref).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{str(folder)!r} contains no config.json: name the folder of a transformers model")
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


def load_tokenizer(ref: str) -> Any:
    """Load a tokenizer with a chat template and a pad token.

    Raises:
        ModelError: It cannot be loaded, or has no chat template or end token.
    """
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
    """Load a causal language model in eval mode, with transformers' own choice of attention.

    Args:
        ref: As for `resolve_model`.
        dtype: "auto" is bfloat16 where the device multiplies it natively, else float32.
        device: "auto" is the first CUDA device, else the CPU.

    Raises:
        ModelError: `ref` is not a causal language model, or its weights are invalid.
    """
    folder = resolve_model(ref)
    place = pick_device(device)
    with stage(f"loading the model {model_name(ref)}"), _quiet():
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
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N") from error


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" -> bfloat16 where it is fast (CUDA; CPUs with AVX-512 BF16 or AMX), else float32."""
    import torch

    if dtype == "auto":
        fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in ("bfloat16", "float32"):
        raise ModelError(f"unknown dtype {dtype!r}: use bfloat16, float32 or auto")
    return cast(torch.dtype, getattr(torch, dtype))


def native_dtype(dtype: str, device: str) -> Literal["bfloat16", "float32"]:
    """Resolve "auto" to the dtype that it means on `device`."""
    name = str(pick_dtype(dtype, pick_device(device))).removeprefix("torch.")
    return cast(Literal["bfloat16", "float32"], name)


def base_hash(path: Path) -> str:
    """Hash of a folder's weights (names and bytes), 32 hex digits; cached by size and modification time.

    Raises:
        ModelError: The folder contains no weights.
    """
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise ModelError(f"{str(path)!r} contains no weights (*.safetensors)")
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
    with suppress(OSError):  # a cache that cannot be kept costs time, never the command
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, digest.hexdigest())
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


def model_sizes(folder: Path) -> tuple[int, int]:
    """Read (context length in tokens, vocabulary size) from a model's folder without loading weights.

    Raises:
        ModelError: config.json is invalid or names neither.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{str(folder / 'config.json')!r} cannot be read: {str(error)[:300]}") from error
    limit, vocabulary = getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)
    if not isinstance(limit, int) or not isinstance(vocabulary, int):
        raise ModelError(
            f"{str(folder / 'config.json')!r} names max_position_embeddings={limit!r} and "
            f"vocab_size={vocabulary!r}: both are needed to train and to evaluate this model"
        )
    return limit, vocabulary


def longest_context(model: Any) -> int:
    """Context length of a loaded model in tokens; 2^30 where its configuration names none."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
