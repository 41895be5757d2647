"""A pretrained language model on one text classification after another."""
