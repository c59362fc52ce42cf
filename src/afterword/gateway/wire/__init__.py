"""Converts wire formats to the gateway's own types and back. No I/O, no state."""
