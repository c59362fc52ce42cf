"""Wire formats stop here: JSON of the outside to what the gateway works with, and back. No I/O, no state."""
