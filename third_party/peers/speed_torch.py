"""The speed job in PyTorch by hand: what is left when no framework is in the way.

Tasks are tensors, batches slices of a shuffled index, evaluation one forward pass per
task. EWC is what such scripts usually hold: one penalty per past task, and the squared
gradients of mini-batch means (not of single examples) as its Fisher.
"""

import itertools
import platform

import torch
from speed_job import Ledger, load, serve, task_images
from torch import nn
from torch.nn.functional import cross_entropy

#: Our strength carries 1/2 and a mean over examples; this one neither.
BATCH_MEANS = 0.5


def make_model(job):
    """The network, in PyTorch's default initialisation."""
    widths = [784, *job.hidden]
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


def main():
    """Serve requests for ``naive`` and ``ewc``."""
    torch.set_num_threads(1)
    job = load()

    def work(request):
        torch.manual_seed(job.seed)
        ledger, model = Ledger(), make_model(job)
        optimizer = torch.optim.SGD(model.parameters(), lr=job.learning_rate)
        past = [] if request["method"] == "ewc" else None
        tests = [tensors(job, task)[2:] for task in range(job.num_tasks)]
        for task in range(job.num_tasks):
            x, y, _, _ = tensors(job, task)
            ledger.time(
                "train", lambda x=x, y=y: fit(job, model, optimizer, x, y, past)
            )
            row = ledger.time("eval", lambda: evaluate(model, tests))
            ledger.answer["accuracy"].append(row)
        finite = all(bool(p.isfinite().all()) for p in model.parameters())
        return {**ledger.answer, "finite": finite}

    serve({"python": platform.python_version(), "torch": torch.__version__}, work)


def tensors(job, task):
    """The task's arrays as tensors."""
    return [torch.from_numpy(array) for array in task_images(job, task)]


def fit(job, model, optimizer, x, y, past):
    """One pass over a task; with EWC also its Fisher, kept in ``past``."""
    model.train()
    order = torch.randperm(len(y))
    for start in range(0, len(order), job.batch_size):
        rows = order[start : start + job.batch_size]
        optimizer.zero_grad()
        loss = cross_entropy(model(x[rows]), y[rows])
        for anchor, fisher in past or ():
            for p, a, f in zip(model.parameters(), anchor, fisher, strict=True):
                loss = loss + BATCH_MEANS * job.strength * (f * (p - a) ** 2).sum()
        loss.backward()
        optimizer.step()
    if past is not None:
        anchor = [p.detach().clone() for p in model.parameters()]
        past.append((anchor, batch_fisher(job, model, x, y)))


def batch_fisher(job, model, x, y):
    """Mean over mini-batches of the squared gradient of their mean loss."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    starts = range(0, len(y), job.batch_size)
    for start in starts:
        rows = slice(start, start + job.batch_size)
        model.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        for t, p in zip(total, model.parameters(), strict=True):
            t += p.grad**2 / len(starts)
    return total


def evaluate(model, tests):
    """Accuracy on every task."""
    model.eval()
    with torch.no_grad():
        return [(model(x).argmax(1) == y).float().mean().item() for x, y in tests]


if __name__ == "__main__":
    main()
