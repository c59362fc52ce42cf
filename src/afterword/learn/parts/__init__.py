"""Parts of an objective, one slot a module: contexts, teachers, targets, supports, divergences, weights, advantages."""
