"""A tiny random llama with a byte-level ChatML tokenizer, and examples that it "served": no file is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from afterword.chat.render import encode, end_of_turn_ids, render_prompt
from afterword.chat.sampling_fields import PLAIN
from afterword.learn.loss.terms import Term
from afterword.model.loading import load_tokenizer
from afterword.records import Interaction, Turn
from afterword.train.data.examples import Example
from afterword.train.monitoring.metrics import Tally
from afterword.train.runtime.distributed import SINGLE
from afterword.train.runtime.gradients import StepGradient
from afterword.train.runtime.policy import Policy
from afterword.train.runtime.steps import forward
from afterword.train.runtime.teacher_cache import TeacherStates

torch.set_num_threads(1)  # tiny products only lose by sharing

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_folder(folder: Path, *, seed: int = 0, context: int = 512, **config: Any) -> str:
    """Write the model and its tokenizer into `folder` and return its name for `train_candidate`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<|end|>", "<|im_start|>", "<|im_end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|end|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = {"tie_word_embeddings": True, "initializer_range": 0.2, "num_key_value_heads": 2, **sizes, **config}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=context, **settings)
    ).save_pretrained(folder)
    return str(folder)


def example(model: str, number: int, *, hindsight: str = "Shorter, please.", text: str = "", **changes: Any) -> Example:
    """Interaction `number` with a served answer that ended by itself. `changes` replace fields of the turn."""
    tokenizer = load_tokenizer(model)
    messages = ({"role": "user", "content": f"Question {number}?"},)
    text = text or f"Answer {number}" + "." * (number % 5)
    served: dict[str, Any] = {
        "id": f"turn-{number}",
        "messages": messages,
        "answer": {"role": "assistant", "content": text},
        "prompt_ids": render_prompt(tokenizer, messages).ids,
        "completion_ids": (*encode(tokenizer, text), end_of_turn_ids(tokenizer)[0]),
        "sampling": PLAIN,
        **changes,
    }
    interaction = Interaction(
        id=f"int-{number}",
        turn=f"turn-{number}",
        feedback=(f"fb-{number}",),
        kind="follow_up",
        hindsight=hindsight,
        polarity=-1,
        weight=1.0,
        split="train",
    )
    return Example(interaction, Turn(**served))


def backward(
    policy: Policy,
    teachers: TeacherStates,
    terms: Sequence[Term],
    counts: Sequence[float],
    *micro: Sequence[int],
    tally: Tally,
) -> None:
    """Forward passes, losses and gradient of a step in micro-batches, as the loop does it."""
    gradient = StepGradient(policy.parameters(), terms, counts)
    for picked in micro:
        batch = forward(policy, teachers, terms, picked)
        losses = gradient.add(batch)
        tally.add(*batch.shown(terms), losses, batch.ids)
    tally.divide(gradient.close(SINGLE))
