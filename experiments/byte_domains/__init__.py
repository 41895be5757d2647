"""A byte-level language model on one kind of text after another."""
