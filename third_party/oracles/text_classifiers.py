"""Small recurrent and convolutional classifiers of texts, by PyTorch's layers.

Nothing is imported from jaxcl. Run by hand, in an environment of its own::

    python -m venv .venv-torch
    .venv-torch/bin/pip install torch==2.13.0 numpy
    .venv-torch/bin/python third_party/oracles/text_classifiers.py

It writes weights, inputs, logits, and the gradients of a mean cross-entropy, computed in
float64, into tests/test_models/golden_texts.
"""

from pathlib import Path

import numpy as np
import torch

OUTPUT = Path(__file__).parents[2] / "tests" / "test_models" / "golden_texts"
LENGTH, LABELS, VOCABULARY = 9, 4, 16


class Lstm(torch.nn.Module):
    """A packed LSTM and a linear layer on its last states."""

    def __init__(self, directions):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 4)
        both = directions == 2
        self.lstm = torch.nn.LSTM(4, 3, batch_first=True, bidirectional=both)
        self.out = torch.nn.Linear(3 * directions, LABELS)

    def forward(self, tokens, mask):
        """The logits of texts padded on the right."""
        lengths = mask.sum(1)
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(packed)
        return self.out(last.transpose(0, 1).flatten(1))


class TextCnn(torch.nn.Module):
    """Convolutions over a text between zeros, their maxima, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 4)
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv1d(4, 3, width, padding=width - 1) for width in (2, 3, 4)
        )
        self.out = torch.nn.Linear(9, LABELS)

    def forward(self, tokens, mask):
        """The logits of texts, each without its padding."""
        rows = [row[real > 0] for row, real in zip(tokens, mask, strict=True)]
        return torch.stack([self.out(self.features(row)) for row in rows])

    def features(self, row):
        """The maxima of one text."""
        h = self.embedding(row).T[None]
        return torch.cat([torch.relu(conv(h)).amax(2)[0] for conv in self.convs])


def randomize(module):
    """All weights random, the same numbers in float32 and in float64."""
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for _, weight in sorted(module.named_parameters()):
            weight.copy_(torch.tensor(0.4 * draw.normal(size=weight.shape)))
    return module.float().double()


def write(name, module):
    """Weights, inputs, logits and gradients of a classifier of texts."""
    module = randomize(module)
    tokens = np.random.default_rng(1).integers(1, VOCABULARY, (3, LENGTH))
    lengths = np.array([[LENGTH], [5], [2]])  # the last is shorter than a window
    mask = (np.arange(LENGTH) < lengths).astype(int)
    logits = module(torch.tensor(tokens), torch.tensor(mask))
    labels = np.arange(3)
    loss = torch.nn.CrossEntropyLoss()(logits, torch.tensor(labels))
    loss.backward()
    weights = dict(module.named_parameters())
    grads = {f"gradient {name}": weight.grad for name, weight in weights.items()}
    held = {"tokens": tokens, "mask": mask, "labels": labels, "out": logits}
    arrays = {}
    for each, array in (held | weights | grads).items():
        array = np.asarray(torch.as_tensor(array).detach())
        arrays[each] = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
    np.savez_compressed(OUTPUT / f"{name}.npz", **arrays)


def main():
    """Write all files."""
    OUTPUT.mkdir(exist_ok=True)
    write("lstm_1", Lstm(1))
    write("lstm_2", Lstm(2))
    write("text_cnn", TextCnn())


if __name__ == "__main__":
    main()
