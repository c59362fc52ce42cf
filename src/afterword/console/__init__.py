"""Renders the console and the chat page.

Pages are made by the server from the store's named queries and need no script to be read. Buttons write rows that other
rooms act on; a page never runs a stage. Owns its sessions and its looks; keys belong to the gateway.
"""
