"""``python -m experiments.plasticity {smoke|quick|paper|...} [--field value]``."""

import os

import jax

from experiments.harness import main
from experiments.plasticity import config
from experiments.plasticity.report import report
from experiments.plasticity.run import run

if __name__ == "__main__":
    # Small networks do not fill a core: spread the runs over all of them.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    raise SystemExit(
        main(
            config.PRESETS,
            run,
            config.__doc__ or "",
            report=report,
            free=config.FREE,
            places=config.PLACES,
        )
    )
