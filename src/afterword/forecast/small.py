"""Makes a small chat model from a configuration file: a student of another family, trained in minutes on a CPU.

A byte-level llama learns to answer gym tasks, half of the time with a context before it, and not so well that nothing
is left to learn. The same file, seed and version of torch give the same model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from afterword.chat.render import encode_content, end_of_turn_ids, render_prompt
from afterword.errors import ConfigError
from afterword.forecast.contexts import TEACHER_CONTEXTS
from afterword.forecast.tasks import TaskItem, VerifiableTask, task_of
from afterword.records import Json

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SEED = 77_000_001
"""Of the first prompts that it reads; a grid's own seeds are small."""
IGNORED = -100
_Positive = Annotated[int, Field(ge=1)]


class SmallModelConfig(BaseModel):
    """Contents of the configuration file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...]
    hidden_size: _Positive = 128
    layers: _Positive = 4
    heads: _Positive = 4
    context: _Positive = 768
    steps: _Positive = 600
    batch: _Positive = 24
    lr: Annotated[float, Field(gt=0, le=1)] = 2e-3
    items: _Positive = 256
    """Different prompts of each task."""
    in_context: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the examples that have a context."""
    seed: int = 0


def read_config(path: Path) -> SmallModelConfig:
    """The configuration in a JSON file.

    Raises:
        ConfigError: It cannot be read, or has an invalid field.
    """
    try:
        return SmallModelConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise ConfigError(f"cannot read the model's configuration {str(path)!r}: {error}", param="grid") from error


def make_small_model(config: SmallModelConfig, out: Path, *, say: Callable[[str], None] = lambda text: None) -> None:
    """Train the model and write it to the new folder `out`.

    Raises:
        NothingToDo: A task has fewer prompts than `items`.
    """
    tokenizer = _tokenizer()
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=config.hidden_size, intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
            max_position_embeddings=config.context, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    examples = _examples(config, tokenizer)
    loss = torch.tensor(float("nan"))
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 50) * (1 - step / config.steps)
        ids, labels, mask = _batch([next(examples) for _ in range(config.batch)], int(tokenizer.pad_token_id))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    say(f"a model of {sum(p.numel() for p in model.parameters()):,} parameters, last loss {float(loss.detach()):.3f}")
    beside = out.with_name(f".{out.name}")  # a killed run leaves no half model under the name
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    beside.rename(out)


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<|end|>", "<|im_start|>", "<|im_end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|end|>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


Pair = tuple[list[int], list[int]]


def _examples(config: SmallModelConfig, tokenizer: Any) -> Iterator[Pair]:
    """(prompt, answer) ids without end: prompts of the tasks' training split, as students and teachers read them."""
    dice = random.Random(config.seed)
    tasks = [(task, task.items("train", config.items, SEED)) for task in map(task_of, config.tasks)]
    end = end_of_turn_ids(tokenizer)[0]
    while True:
        task, items = dice.choice(tasks)
        item = dice.choice(items)
        messages = _told(task, item, items, dice) if dice.random() < config.in_context else list(item.messages)
        prompt = list(render_prompt(tokenizer, messages).ids)
        answer = [*encode_content(tokenizer, item.reference), end]
        if len(prompt) + len(answer) <= config.context:
            yield prompt, answer


def _told(task: VerifiableTask, item: TaskItem, items: list[TaskItem], dice: random.Random) -> list[Json]:
    """The prompt with one of the contexts, about another prompt's answer given for this one."""
    wrong = dice.choice(items).reference
    context = dice.choice([one for one in TEACHER_CONTEXTS.values() if one.where.privileged and one.where.text is None])
    text = context.shows(task, item, wrong, item.reference)
    if not text:
        return list(item.messages)
    answer = {"role": "assistant", "content": wrong}
    return context.where.place(item.messages, answer, text, polarity=-1, kind=context.kind)


def _batch(pairs: list[Pair], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels (of the answers alone) and attention mask [B, T]."""
    width = max(len(p) + len(a) for p, a in pairs)
    ids, labels, mask = (torch.full((len(pairs), width), value) for value in (pad, IGNORED, 0))
    for i, (prompt, answer) in enumerate(pairs):
        n = len(prompt) + len(answer)
        ids[i, :n] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : n] = torch.tensor(answer)
        mask[i, :n] = 1
    return ids, labels, mask
