"""Training: the trainer, one optimizer step, the optimizer and its hooks."""
