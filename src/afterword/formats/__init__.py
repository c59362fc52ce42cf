"""The forms in which other products keep chats and feedback, each once.

Owns their field names. Pure: reads parsed JSON, never a file, never a store.
"""
