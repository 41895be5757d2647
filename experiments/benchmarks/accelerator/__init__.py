"""What one would ask a lent accelerator in a few minutes, most wanted first."""
