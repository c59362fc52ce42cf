"""Normalises messages and conversations; renders them to token ids and masks.

Owns the equality of messages and rendering through a tokenizer protocol. Never imports transformers, never talks to a
server.
"""
