"""Neural network plasticity and loss sharpness (arXiv:2409.17300), from data to figure."""
