"""Interactions -> token ids, masks and packed batches."""
