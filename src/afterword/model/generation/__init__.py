"""Answers from a model, many at once: continuous batching, the cache, adapters at run time, the draw.

Used by the server and by training alike, so that fresh answers come from what is served. Knows no HTTP.
"""
