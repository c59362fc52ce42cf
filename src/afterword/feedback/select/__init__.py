"""Which interactions are trained on, and which wait for a person."""
