"""The speed job in Avalanche 0.6: its strategies, its streams, its evaluation.

Tasks are tensors wrapped once before the clock starts, the cheapest way that its
documentation shows; with ``own_stream`` they come from its ``PermutedMNIST``, the way it
shows first. Only accuracy is measured and nothing is logged.
"""

import declare_torchvision_operators  # noqa: F401, I001  (before torchvision)

import importlib.metadata
import platform
import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from avalanche.benchmarks.classic import PermutedMNIST
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin
from speed_job import Ledger, load, serve, task_images
from speed_torch import BATCH_MEANS, make_model
from torch import nn

EVAL_BATCH = 256


def main():
    """Serve requests for ``naive``, ``ewc``, ``er`` and ``agem``."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    job = load()

    def work(request):
        torch.manual_seed(job.seed)
        make = own_streams if request["own_stream"] else tensor_streams
        train_stream, test_stream = make(job)
        strategy = make_strategy(job, request["method"])
        ledger = Ledger()
        for task in train_stream:
            ledger.time("train", lambda t=task: strategy.train(t, num_workers=0))
            seen = ledger.time(
                "eval", lambda: strategy.eval(test_stream, num_workers=0)
            )
            row = [v for k, v in sorted(seen.items()) if "Top1_Acc_Exp" in k]
            ledger.answer["accuracy"].append(row)
        finite = all(bool(p.isfinite().all()) for p in strategy.model.parameters())
        return {**ledger.answer, "finite": finite}

    names = ("torch", "torchvision", "avalanche-lib")
    versions = {name: importlib.metadata.version(name) for name in names}
    serve({"python": platform.python_version(), **versions}, work)


def tensor_streams(job):
    """Training and test tasks from ready-made tensors."""
    train, test = [], []
    for task in range(job.num_tasks):
        train_x, train_y, test_x, test_y = task_images(job, task)
        train.append(wrap(train_x, train_y))
        test.append(wrap(test_x, test_y))
    streams = benchmark_from_datasets(train=train, test=test).streams
    return streams["train"], streams["test"]


def wrap(x, y):
    """Tensors as what Avalanche calls a classification data set."""
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    data.targets = y.tolist()
    return as_classification_dataset(data)


def own_streams(job):
    """Avalanche's PermutedMNIST over the same images, written as MNIST's files."""
    mean, std = 0.1307, 0.3081
    pixels = lambda x: np.round((x * std + mean) * 255).astype(np.uint8)
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, x, y in (
            ("train", job.train_x, job.train_y),
            ("t10k", job.test_x, job.test_y),
        ):
            head = struct.pack(">IIII", 2051, len(x), 28, 28)
            (raw / f"{name}-images-idx3-ubyte").write_bytes(head + pixels(x).tobytes())
            head = struct.pack(">II", 2049, len(y))
            labels = y.astype(np.uint8).tobytes()
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + labels)
        made = PermutedMNIST(job.num_tasks, seed=job.seed, dataset_root=root)
    return made.train_stream, made.test_stream


def make_strategy(job, method):
    """One of Avalanche's strategies around the network and plain SGD."""
    model = nn.Sequential(nn.Flatten(), make_model(job))
    common = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=job.learning_rate),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": job.batch_size,
        "train_epochs": 1,
        "eval_mb_size": EVAL_BATCH,
        "device": "cpu",
        "evaluator": EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    }
    if method == "naive":
        return supervised.Naive(**common)
    if method == "ewc":
        strength = BATCH_MEANS * job.strength
        return supervised.EWC(ewc_lambda=strength, mode="separate", **common)
    if method == "er":
        return supervised.Replay(mem_size=job.capacity, **common)
    return supervised.AGEM(
        patterns_per_exp=job.capacity_per_task, sample_size=job.replay_size, **common
    )


if __name__ == "__main__":
    main()
