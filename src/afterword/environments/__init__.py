"""Environments in which an agent acts, and the runner that plays episodes in them against a server.

An environment answers an agent's actions and scores the run; a program decides, never a model. The runner speaks to the
server by HTTP alone and records nothing itself: the gateway does. Never imports torch.
"""
