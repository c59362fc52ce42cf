"""Generates answers during training and measures them."""
