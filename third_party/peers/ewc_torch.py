"""EWC by hand in torch: the numbers that tests/test_regularizers/test_ewc_golden.py meets.

One anchor and one Fisher per task, kept in a list; the Fisher by a double loop over
examples and classes with autograd; full-batch gradient descent. Everything in 64 bits.
Nothing is imported from jaxcl, so nothing is shared with it but the mathematics.

    python -m venv .venv-torch && .venv-torch/bin/pip install torch==2.13.0 numpy==2.4.6
    .venv-torch/bin/python third_party/peers/ewc_torch.py

writes tests/golden/ewc_torch.npz (a few kB) beside this checkout's tests.
"""

from pathlib import Path

import numpy as np
import torch

TASKS, ROWS, FEATURES, HIDDEN, CLASSES = 3, 16, 5, 7, 3
LEARNING_RATE, STRENGTH, STEPS = 0.1, 8.0, 25
NAMES = ("w1", "b1", "w2", "b2")
OUTPUT = Path(__file__).parents[2] / "tests" / "golden" / "ewc_torch.npz"


def logits(params, x):
    """A tanh network with one hidden layer."""
    w1, b1, w2, b2 = params
    return torch.tanh(x @ w1 + b1) @ w2 + b2


def diagonal_fisher(params, inputs):
    """Mean over examples of sum_c p_c (d log p_c)^2, one backward pass at a time."""
    total = [torch.zeros_like(p) for p in params]
    for x in inputs:
        for label in range(CLASSES):
            log_p = torch.log_softmax(logits(params, x), dim=-1)[label]
            grads = torch.autograd.grad(log_p, params)
            for t, g in zip(total, grads, strict=True):
                t += log_p.detach().exp() * g**2 / len(inputs)
    return total


def train(params, x, y, past):
    """Gradient descent on the cross-entropy and the bowls of all past tasks."""
    params = [p.detach().clone().requires_grad_(True) for p in params]
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(logits(params, x), y)
        for anchor, fisher in past:
            for p, a, f in zip(params, anchor, fisher, strict=True):
                loss = loss + STRENGTH / 2 * (f * (p - a) ** 2).sum()
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p -= LEARNING_RATE * g
    return params


def main():
    """Learn the tasks one after the other, and write down what happened."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(TASKS, ROWS, FEATURES))
    labels = draw.integers(0, CLASSES, size=(TASKS, ROWS))
    shapes = ((FEATURES, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
    start = [0.5 * draw.normal(size=shape) for shape in shapes]

    params, past = [torch.tensor(p) for p in start], []
    record = {"inputs": inputs, "labels": labels, "learning_rate": LEARNING_RATE}
    record |= {"strength": STRENGTH, "steps": STEPS}
    record |= {f"start_{n}": p for n, p in zip(NAMES, start, strict=True)}
    for task in range(TASKS):
        x, y = torch.tensor(inputs[task]), torch.tensor(labels[task])
        params = train(params, x, y, past)
        fisher = diagonal_fisher(params, x)
        past.append(([p.detach().clone() for p in params], fisher))
        for name, p, f in zip(NAMES, params, fisher, strict=True):
            record[f"params{task}_{name}"] = p.detach().numpy()
            record[f"fisher{task}_{name}"] = f.numpy()
    OUTPUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT, **{k: np.asarray(v) for k, v in record.items()})
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
