"""The learning engine: what is compared with what, how far, and how that becomes a gradient.

Owns the mathematics (contexts, teachers, targets, divergences, weights, the loss stage without logits), the models that
it needs and the recipes made of its parts. It knows no store, no run and no user; importing it loads no torch.
"""
