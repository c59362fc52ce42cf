"""The embedded model server: vLLM's HTTP dialect over a transformers model, on CPU or one CUDA device.

Owns: prompt rendering, continuous batching, sampling, run-time LoRA adapters, and the HTTP routes that show
them (`python -m afterword.engine`). It never trains, never writes to the store and knows nothing of turns.

Why not transformers' own continuous batching (`generate_batch`, 5.23): on two CPU cores it reached 86 to 115
tokens/s at 16 requests and 11 at one, where `generate` reached 229 and 33 (bf16, SmolLM2-135M, same prompts):
its paged cache gathers keys and values and builds dense masks on every step where no flash attention with
block tables exists. It also has no seed of a request's own and no mix of adapters in a batch. Its idea of one
flat row of tokens for prefill and decode together is kept here; the scheduler, the cache, the linear layers
and the sampler are ours, the model's own code runs in between unchanged.

The model runs in a process of its own beside the one that answers HTTP (`remote`), on the thread that loaded it.
"""

from afterword.model import openmp

openmp.wait_as_usual()  # before torch is loaded
