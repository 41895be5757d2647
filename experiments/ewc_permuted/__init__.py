"""EWC on permuted MNIST (arXiv:1809.10635, Table 4): the published numbers, again."""
