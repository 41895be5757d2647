"""Tokenised rows in files, under the hash of all that they depend on."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.data.records import Source, digest_of
from jaxcl.data.tokens import TokenRows, tokenizer_digest
from jaxcl.errors import InputError, reason_of, warn
from jaxcl.files import as_folder, write_arrays

_VERSION = 1  # of what is written: raised when rows are made differently


def cached_rows(
    who: str,
    folder: Any,
    source: Source,
    tokenizer: Any,
    settings: Mapping[str, Any],
    make: Callable[[], TokenRows],
) -> TokenRows:
    """The rows that ``make()`` gives, from a file of the folder where it was made before.

    The file is named by a hash of the content of the source, the tokenizer's rules, the
    versions of the packages and the settings. One that is damaged is made again, with a
    warning. Without a folder the rows are only made.
    """
    if folder is None:
        return make()
    held = {
        "version": _VERSION,
        "kind": who,
        "source": digest_of(who, source),
        "tokenizer": tokenizer_digest(tokenizer),
        "transformers": importlib.metadata.version("transformers"),
        "tokenizers": importlib.metadata.version("tokenizers"),
        "settings": settings,
    }
    key = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()
    path = as_folder(who, folder, "cache_folder") / f"{who}-{key[:32]}.npz"
    if path.exists():
        try:
            return _read(path)
        except Exception as error:  # damaged archives lead to errors of many kinds
            reason = f"{path} is damaged ({reason_of(error)}) and is made again"
            warn(f"{who}: {reason}.")
    rows = make()
    arrays = {k: np.asarray(v) for k, v in rows._asdict().items() if v is not None}
    try:
        write_arrays(path, arrays)
    except OSError as error:
        remedy = "give another cache_folder, or none"
        msg = f"{who}: {path} cannot be written ({reason_of(error)}); {remedy}."
        raise InputError(msg) from error
    return rows


def _read(path: Path) -> TokenRows:
    """The rows of a file; zipfile checks each array's CRC-32."""
    # NumPy would leave a damaged file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        rows = TokenRows(**{name: archive[name] for name in archive.files})
    total, count = len(rows.tokens), len(rows.lengths)
    wanted = total if rows.by_token else count
    if (
        rows.lengths.sum() != total
        or len(rows.y) != wanted
        or len(rows.weight) != count
    ):
        msg = "its arrays do not fit together"
        raise ValueError(msg)
    return rows
