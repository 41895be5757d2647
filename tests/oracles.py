"""Slow and obvious: what the library's clever ways are compared with."""

import jax
import numpy as np


def loop_fisher(log_likelihood, labels, params, rows, weight):
    """Fisher diagonal by Python loops over rows and labels, one gradient at a time.

    `log_likelihood(params, row, label)` is differentiated; `labels(params, row)` lists
    pairs (probability, label).
    """
    gradient = jax.jit(jax.grad(log_likelihood))
    total = jax.tree.map(np.zeros_like, params)
    for i in range(len(weight)):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
        for share, label in labels(params, row):
            factor = float(weight[i] / sum(weight) * share)
            for key, leaf in gradient(params, row, label).items():
                total[key] += factor * np.square(leaf)
    return total
