"""Twenty tasks of CIFAR-100 by the host loop: replay, flatness and importance."""
