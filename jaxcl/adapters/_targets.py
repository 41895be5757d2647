"""Which projections get an adapter, and of which rank and scale."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ScalarLike

from jaxcl.adapters.paths import nearest, select
from jaxcl.errors import check_kind, check_number, check_size, require

#: Names of output layers, which ``"all-linear"`` leaves out.
_OUTPUTS = ("out", "head", "lm_head", "classifier", "score")

Targets = str | Sequence[str]
Pattern = Mapping[str, Any] | None


class Size(NamedTuple):
    """The size of one projection's adapter."""

    rank: int
    scale: ScalarLike


def sizes(
    who: str,
    kernels: Mapping[str, tuple[int, ...]],
    *,
    rank: int,
    alpha: ScalarLike,
    rslora: bool,
    dropout: float,
    rank_pattern: Pattern = None,
    alpha_pattern: Pattern = None,
) -> dict[str, Size]:
    """The size of each adapter, from the paths of projections and the kernels' shapes."""
    check_number(who, dropout=dropout)
    require(dropout < 1, who, f"dropout must be below 1, got {dropout}")
    ranks = _by_pattern(who, "rank_pattern", rank, rank_pattern, kernels)
    alphas = _by_pattern(who, "alpha_pattern", alpha, alpha_pattern, kernels)
    found = {}
    for path, shape in kernels.items():
        own = ranks[path]
        check_size(who, rank=own)
        check_number(who, above=True, alpha=alphas[path])
        most = min(shape[-2:])
        wanted = f"rank must be at most {most} for {path}, a kernel {list(shape)}"
        require(own <= most, who, f"{wanted}, got {own}")
        found[path] = Size(own, alphas[path] / (math.sqrt(own) if rslora else own))
    return found


def _by_pattern(who: str, name: str, usual: Any, patterns: Pattern, paths) -> dict:
    """The value of each projection: that of the first pattern that matches its path."""
    found = dict.fromkeys(paths, usual)
    check_kind(
        who, Mapping, "give such as {'q_proj': 4}", optional=True, **{name: patterns}
    )
    for pattern, value in reversed([*(patterns or {}).items()]):
        for path in select(f"{who}: {name}", pattern, paths, end=True):
            found[path] = value
    return found


def targeted(
    who: str, targets: Targets, paths: Sequence[str], others: Mapping[str, Any]
) -> set[str]:
    """The paths, of projections, that targets name; ``others`` are all leaves."""
    require(paths, who, "expected projections, kernels [in, out] of floats, got none")
    if isinstance(targets, str) and targets == "all-linear":
        chosen = {path for path in paths if path.rsplit("/", 1)[-1] not in _OUTPUTS}
        message = f"all projections are output layers; name them: {', '.join(paths)}"
        require(chosen, who, message)
        return chosen
    for target in targets if isinstance(targets, list | tuple) else [targets]:
        _refuse_other(who, target, paths, others)
    return select(who, targets, paths, end=True)


def _refuse_other(who: str, target: Any, paths, others: Mapping[str, Any]) -> None:
    """Refuse the name of something that holds no kernel, such as an embedding."""
    if not isinstance(target, str) or any(
        f"/{p}".endswith(f"/{target}") for p in paths
    ):
        return
    inside = (path for path in others if f"/{target}/" in f"/{path}/")
    if (found := next(inside, None)) is not None:
        leaf = others[found]
        came = f"{target!r} with {found} {leaf.dtype}{list(np.shape(leaf))}"
        wanted = "targets must be projections, kernels [in, out] of floats"
        require(False, who, f"{wanted}, got {came}; {nearest(target, paths)}")
