"""Generates answers from a model, many at once: continuous batching, KV cache, adapters at run time, sampling.

The server and training share it, so fresh answers are sampled as served ones are. Knows no HTTP.

Why not transformers' continuous batching (`generate_batch`, 5.23): on two CPU cores it reached 86 to 115 tokens/s at 16
requests and 11 at one; `generate` reached 229 and 33 (bf16, SmolLM2-135M, same prompts). Its paged cache gathers keys
and values and builds dense masks on every step where flash attention with block tables is missing. It also has neither
seeds per request nor several adapters in a batch. This package keeps its flat row of tokens for prefill and decode; the
scheduler, the cache, the linear layers and the sampler are its own, and the model's code runs between them unchanged.
"""
