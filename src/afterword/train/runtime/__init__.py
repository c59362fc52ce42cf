"""Running a step: optimiser, policy, teachers, workers, memory."""
