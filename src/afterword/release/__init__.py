"""Turns a report into a verdict (pure) and a verdict into a release row; rolls back.

Owns the decision (`gate`) and the pointer to the served release (`publish`); never measures, never talks to a server,
never imports torch.
"""
