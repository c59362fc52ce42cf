"""Running a transformer: loading, packed passes, kernels, adapters.

Owns all that a method of learning need not know of a model. Knows no loss, no store and no run.
"""
