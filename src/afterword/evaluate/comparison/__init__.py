"""Candidate and base answer the same questions, in pairs."""
