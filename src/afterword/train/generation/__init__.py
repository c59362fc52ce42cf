"""Answers drawn during training, and what they look like."""
