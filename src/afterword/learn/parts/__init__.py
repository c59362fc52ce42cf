"""The parts that an objective is made of, one kind a module: contexts, teachers, targets, divergences, weights."""
