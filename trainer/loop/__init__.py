"""Training: components, steps, schedules, evaluation, checkpoints, and the record of it."""
