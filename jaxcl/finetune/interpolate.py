"""Between the model before the first task and a learner: WiSE-FT, a curve over alpha."""

from collections.abc import Sequence
from pathlib import Path

import jax

from jaxcl.adapters.lora import adapters_of
from jaxcl.errors import require
from jaxcl.finetune.config import Config, config_of
from jaxcl.finetune.curve import PLACE
from jaxcl.finetune.measure import Measurement, measurements, words_of, write_lines
from jaxcl.finetune.method import scale_adapter
from jaxcl.finetune.run import check_unchanged, read_questions
from jaxcl.finetune.tasks import read_tests
from jaxcl.finetune.trained import Trained, load
from jaxcl.interop import load_pretrained
from jaxcl.progress import progress
from jaxcl.typing import Params


def between(trained: Trained, alpha: float) -> Params:
    r"""The parameters ``(1 - alpha) before + alpha after``, of kernels and products.

    An adapter adds nothing before, so that its product is scaled:
    :math:`W + \alpha s A B`. Of a model that was trained fully, both are needed.

    Source: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903, equation 1.
    """
    none = "a pool of prompts has no weights to interpolate"
    require("pool" not in trained.params, "interpolate", f"{none}; give another run")
    if adapters_of(trained.params):
        return scale_adapter(trained.params, alpha)
    dtype = trained.params["embedding"].dtype
    _, before = load_pretrained(trained.base, dtype=dtype)
    blend = lambda a, b: ((1 - alpha) * a + alpha * b).astype(b.dtype)
    return jax.tree.map(blend, before, trained.params)


def measure_curve(
    run: Path,
    alphas: Sequence[float],
    learner: str | None = None,
    after: int | None = None,
) -> Path:
    """Test the models between before and after on all tasks and general questions.

    Every test is a file ``interpolation/LEARNER/answers/ALPHA-NAME.jsonl`` in the folder
    of the run, or one in ``general`` in place of ``answers``; those that are there are
    kept, so that it goes on where it was stopped.

    Returns:
      The folder of these files.
    """
    config = config_of(run)
    if learner is None and config.method == "wise-ft":
        learner = "params"  # the other one is on the way already
    trained = load(run, learner, after)
    assert trained.place is not None
    home = run / PLACE / trained.place.name
    tests = own_tests(config, trained)
    total = len(alphas) * sum(test.count for test in tests)
    with progress(total, "rows tested") as advance:
        for alpha in alphas:
            params = None
            for test in tests:
                path = home / test.kind / f"{alpha:g}-{test.name}.jsonl"
                if path.exists():
                    advance(test.count, "resumed")
                    continue
                params = between(trained, alpha) if params is None else params
                note = f"alpha {alpha:g}, {test.name}"
                more = lambda count, note=note: advance(count, note)
                lines = test.measure(params, advance=more)
                write_lines(path, lines or [])
    return home


def own_tests(
    config: Config, trained: Trained, most: int | None = None
) -> list[Measurement]:
    """The tests of a run, on at most so many rows of each."""
    tested = read_tests(config, trained.tokenizer)
    check_unchanged(config, tested)
    general = read_questions(config, trained.tokenizer, as_noted=True)
    words = words_of(config, trained.config, trained.tokenizer)
    asked = [one.asked for one in tested]
    return measurements(words, asked, general.items(), most)
