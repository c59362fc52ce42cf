"""Serves a model over vLLM's HTTP dialect (`python -m afterword.engine`), on CPU or one CUDA device.

Owns the routes, the checks of requests, and the process of the model (`worker`), which `worker_client` talks to.
`afterword.model.generation` generates. Never trains, never writes to the store, knows nothing of turns.
"""

from afterword.model import openmp

openmp.wait_as_usual()  # before torch is loaded
