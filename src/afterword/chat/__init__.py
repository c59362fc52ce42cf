"""Messages and their canonical form, and how they become token ids and masks.

Owns what counts as "the same message" and how a conversation is rendered through a tokenizer protocol;
never imports transformers, never talks to a server or a database.
"""
