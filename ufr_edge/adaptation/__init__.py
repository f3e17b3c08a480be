"""Training: pseudo targets, fine-tuning, pretraining, reports."""
