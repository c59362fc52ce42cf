"""From the parts to a number and its gradient: terms, the loss stage without logits, what is watched on the way."""
