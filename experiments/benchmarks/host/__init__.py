"""What the host loop, its checkpoints, SAM and many devices cost a language model."""
