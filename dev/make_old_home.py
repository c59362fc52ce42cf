"""Make a data directory with the code on PYTHONPATH, to prove later that a newer version works with it.

    PYTHONPATH=OLD/src python dev/make_old_home.py OUT            # 12 conversations with a tiny random model
    PYTHONPATH=OLD/src python dev/make_old_home.py OUT --conversations 200 --model smollm2-135m-instruct
    PYTHONPATH=OLD/src python dev/make_old_home.py OUT --pack tests/data/home-0.1.tar.xz

OUT gets `data/` (settings, database with rows of every kind, an adapter, a report, a chain of releases) and, without
--model, `tiny/` (the model). Uses only commands, settings and HTTP, so that it runs with any version.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SETTINGS = """\
[serve]
model = "{model}"

[collect]
holdout = 0.4

[train]
recipe = "follow-ups"
passes = 2
min_interactions = 2
learning_rate = 0.001

[evaluate]
suites = ["holdout", "collapse"]
max_tokens = 8
max_interactions = 4

[gate]
min_interactions = 2
min_conversations = 2
min_need_drop = 0.0
required = ["holdout", "collapse"]
"""
EVENTS: tuple[dict[str, Any], ...] = (
    {"kind": "accepted"}, {"kind": "edited", "final_text": "A shorter answer."}, {"kind": "retried"},
    {"kind": "regenerated"}, {"kind": "abandoned"}, {"kind": "comment", "text": "Please answer in one sentence."},
    {"kind": "demonstration", "text": "Twice a month."}, {"kind": "rating", "value": -1}, {"kind": "stopped"},
    {"kind": "copied"}, {"kind": "saved"}, {"kind": "executed", "exit_code": 1, "output": "NameError: x"},
    {"kind": "tests", "exit_code": 0}, {"kind": "reverted"}, {"kind": "tool_approved"},
    {"kind": "tool_rejected", "text": "Do not write files."}, {"kind": "rating", "value": 1, "user": "bob"},
)  # fmt: skip
RECORD = {"model_version": "m", "task": "email", "prompt": "Write to Bob.", "draft": "Dear Bob,",
          "user_action": "edited", "user_edit": "Hi Bob,", "signal_weight": 0.8,
          "created_at": "2026-11-01T10:00:00Z"}  # fmt: skip
PLANTS = (
    "a cactus",
    "basil",
    "an orchid",
    "a fern",
    "mint",
    "a rose",
    "an ivy",
    "moss",
    "a palm",
    "thyme",
    "sage",
    "oats",
)


def main() -> None:
    """Serve, chat, react, collect, train, evaluate, release, roll back, release again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--model", default="", help="default: a tiny random one, written to OUT/tiny")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="also write OUT as a .tar.xz")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    os.chdir(args.out)  # the model is named by a relative path, so that the directory can be moved
    if not args.model:
        write_tiny(Path("tiny"))
    Path("data").mkdir()
    Path("data/afterword.toml").write_text(SETTINGS.format(model=args.model or "tiny"), encoding="utf-8")
    with served() as url:
        chat(url, args.conversations)
    logs = Path("logs.jsonl")
    asked = [{"role": "user", "content": "How do I prune a vine?"}, {"role": "assistant", "content": "In winter."}]
    row = {"messages": [*asked, {"role": "user", "content": "Shorter, please."}]}
    logs.write_text(json.dumps(row) + "\n", encoding="utf-8")
    run("import", str(logs))
    logs.unlink()
    run("collect")
    first = json.loads(run("interactions", "list"))["interactions"][-1]["id"]
    run("review", "approve", first)
    run("train")
    run("evaluate")
    for _ in range(2):
        run("release", "publish", "--override", "a script", "--why", "the rows are what is wanted")
        run("release", "rollback", "--why", "to have a chain")
    run("release", "publish", "--override", "a script", "--why", "the rows are what is wanted")
    print(json.dumps(json.loads(run("status")), indent=2))
    if args.pack:
        pack(args.pack)


def chat(url: str, conversations: int) -> None:
    """Users ask, correct and react in every way there is."""
    first: list[str] = []
    for number in range(conversations):
        plant, user = PLANTS[number % len(PLANTS)], f"user-{number % 3}"
        messages = [{"role": "user", "content": f"How do I water {plant}?"}]
        for said in ("Too long. One short sentence, please.", "And in winter?"):
            answer = post(url, "/v1/chat/completions", {
                "model": "afterword", "messages": messages, "max_tokens": 12, "seed": number, "user": user,
                "metadata": {"conversation": f"c{number}"},
            })  # fmt: skip
            first.append(answer["id"])
            messages += [answer["choices"][0]["message"], {"role": "user", "content": said}]
    for number, event in enumerate(EVENTS):
        post(url, "/v1/feedback", {"id": f"fb-{number}", "turn": first[number % len(first)], "user": "user-0", **event})
    post(url, "/v1/feedback", {"id": "held", "turn": "not-yet", "kind": "copied"})
    post(url, "/v1/feedback", RECORD)
    post(url, "/v1/feedback", {"id": "s1", "traceId": first[0], "name": "quality", "value": 0.5})
    post(url, "/v1/feedback", {"inference_id": first[1], "metric_name": "solved", "value": True})
    call(url, "/v1/feedback/fb-9", method="DELETE")


def post(url: str, path: str, body: Any) -> Any:
    """The JSON that answers a JSON body."""
    return call(url, path, json.dumps(body).encode())


def call(url: str, path: str, data: bytes | None = None, method: str | None = None) -> Any:
    """The JSON of an answer; an error of HTTP ends the script."""
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@contextmanager
def served() -> Iterator[str]:
    """`afterword serve` until it is ready, stopped at the end."""
    command = [sys.executable, "-m", "afterword", "serve", "--dir", "data", "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        text = ""
        for line in server.stdout:
            text += line
            if line.startswith("}"):
                break
        yield json.loads(text)["url"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def run(*arguments: str) -> str:
    """One command; what it prints as JSON. Exit 3 is the gate's no, which is expected of so little data."""
    command = [sys.executable, "-m", "afterword", *arguments, "--dir", "data", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout}")
    return done.stdout


def write_tiny(folder: Path) -> None:
    """A random llama of one layer with a tokenizer of bytes, and ChatML as its template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<|end|>", "<|im_start|>", "<|im_end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", clean_up_tokenization_spaces=False,
        additional_special_tokens=["<|im_start|>", "<|end|>"],
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=None, eos_token_id=2, pad_token_id=2,
    ))  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(folder)


def pack(file: Path) -> None:
    """The working directory as a compressed archive, without caches, logs and what a process left."""
    left_out = {"cache", "logs", "locks", "server.json", "server.lock", "keys.json"}

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if left_out & set(Path(entry.name).parts):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with lzma.open(file, "wb", preset=9 | lzma.PRESET_EXTREME) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name in sorted(os.listdir()):
            tar.add(name, filter=wanted)
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
