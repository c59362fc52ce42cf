"""Turns parts into a loss and its gradient: terms, the loss stage without stored logits, the token batch."""
