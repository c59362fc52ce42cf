"""What is measured while training, what raises an alert and what stops a run."""
