"""The models that a run has trained: found, loaded, exported."""

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.flax import load_file

from jaxcl import adapters
from jaxcl.adapters.lora import adapters_of
from jaxcl.data import load_tokenizer
from jaxcl.errors import MissingFileError, require
from jaxcl.files import new_folder
from jaxcl.finetune.config import SETTINGS, config_of, run_settings
from jaxcl.finetune.method import dtype_here, dtype_of
from jaxcl.interop import load_adapter, load_pretrained, save_pretrained
from jaxcl.models import DecoderConfig
from jaxcl.typing import Params

LEARNERS = "learners"
PROMPTS = "prompts.safetensors"
_PLACE = re.compile(r"([0-9]{3,})-(\w[\w-]*)")


class Trained(NamedTuple):
    """A model, and the folder of the learner that it is; None of a model itself."""

    config: DecoderConfig
    params: Params  # with the adapter beside the kernels
    tokenizer: Any
    base: Path
    place: Path | None


def find(run: Path, learner: str | None = None, after: int | None = None) -> Path:
    """The folder of a learner of a run: the default one after the last task if absent.

    Raises:
      InputError: for one that is not there, with those that are.
    """
    run_settings(run)
    found = {}
    for path in (run / LEARNERS).glob("*"):
        if (match := _PLACE.fullmatch(path.name)) and path.is_dir():
            found[int(match[1]), match[2]] = path
    require(found, str(run), "no task has ended so far; go on with the run first")
    ended = max(number for number, _ in found) if after is None else after
    there = sorted(name for number, name in found if number == ended)
    numbers = sorted({number for number, _ in found})
    require(there, "--after", f"expected one of {numbers}, got {after}")
    default = next((name for name in there if name != "params"), there[0])
    name = (default if "fast" not in there else "slow") if learner is None else learner
    require(
        name in there, "--learner", f"expected one of {', '.join(there)}, got {name}"
    )
    return found[ended, name]


def load(
    source: Path,
    learner: str | None = None,
    after: int | None = None,
    *,
    as_files: bool = False,
) -> Trained:
    """A model of Hugging Face, or a learner of a run over its base.

    Args:
      source: the folder of a model, or of a run of ``jaxcl finetune``.
      learner: of a run.
      after: so many tasks.
      as_files: weights of a run in the dtype of their files, not in that of the run.
    """
    is_run = (source / SETTINGS).is_file()
    if not is_run:
        of_run = learner is None and after is None
        message = f"{source} is not a run; leave --learner and --after out"
        require(of_run, "--learner", message)
        config, params = load_pretrained(source, dtype=dtype_here())
        return Trained(
            _decoder(source, config), params, _tokens(source, config), source, None
        )
    base, place = Path(run_settings(source)["model"]), find(source, learner, after)
    if not base.is_dir():
        moved = "put it back, or repeat the run's command with --model at its new place"
        msg = f"{source} was trained from {base}, which is not there; {moved}."
        raise MissingFileError(msg)
    full = (place / "config.json").is_file()
    dtype = None if as_files else dtype_of(config_of(source))
    config, params = load_pretrained(place if full else base, dtype=dtype)
    if (place / PROMPTS).is_file():
        params = {**params, "pool": load_file(place / PROMPTS)}
    elif not full:
        params = load_adapter(place, params)
    return Trained(_decoder(base, config), params, _tokens(base, config), base, place)


def _decoder(folder: Path, config: Any) -> DecoderConfig:
    known = isinstance(config, DecoderConfig)
    require(known, str(folder), "an encoder; give a decoder, such as Llama")
    return config


def _tokens(folder: Path, config: DecoderConfig) -> Any:
    return load_tokenizer(folder, vocab_size=config.vocab_size)


def merged(trained: Trained) -> Params:
    """The parameters without an adapter: what it adds is in the kernels."""
    if not adapters_of(trained.params):
        return trained.params
    return adapters.merge_lora(trained.params)


def export(
    run: Path, out: Path, to: str, learner: str | None, after: int | None
) -> Path:
    """Write a learner as an adapter of PEFT, or as a model with the adapter merged.

    The new folder is there at the end, or not at all.

    Raises:
      InputError: for an adapter of a run that trained all weights, and for prompts.
    """
    place = find(run, learner, after)
    pool = "prompts of vectors, which PEFT and Transformers do not read"
    require(not (place / PROMPTS).is_file(), "--to", f"{place} holds {pool}")
    if to == "peft":
        held = (place / "adapter_config.json").is_file()
        full = "this run trained all weights; export it --to merged"
        require(held, "--to", full)
    with new_folder(out) as new:
        if to == "peft":
            shutil.copytree(place, new)
        else:
            trained = load(run, learner, after, as_files=True)
            save_pretrained(new, trained.config, merged(trained), source=trained.base)
    return place
