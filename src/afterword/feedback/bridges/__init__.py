"""Fetches what users did from front ends and observability stores, again and again (`bridge.run_bridge`).

`registry` is the table of bridges. Rows are read by `formats`, as from a file. Never serves.
"""
