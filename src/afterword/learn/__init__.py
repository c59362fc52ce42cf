"""The learning engine: parts of objectives, the loss stage, and recipes composed of parts.

Owns the mathematics and knows no store, no run and no user. Importing this package loads no torch.
"""
