"""Lets the stock torchvision wheel be imported beside a CPU-only build of torch.

Import it before torchvision. The compiled half of the wheel does not load there, and the
Python half then fails because it decorates two operators that nobody declared. Declaring
them is enough for what Avalanche imports; they are never called.
"""

import contextlib

import torch

_LIBRARY = torch.library.Library("torchvision", "DEF")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    with contextlib.suppress(RuntimeError):  # a build that works has declared them
        _LIBRARY.define(_schema)
