"""``python -m experiments.plasticity {smoke|quick|paper|...} [--field value]``."""

from experiments.plasticity import config
from experiments.plasticity.report import report
from experiments.plasticity.run import run
from jaxcl.runs import main

if __name__ == "__main__":
    raise SystemExit(
        main(
            config.PRESETS,
            run,
            config.__doc__ or "",
            report=report,
            cosmetic_fields=config.COSMETIC_FIELDS,
            path_fields=config.PATH_FIELDS,
        )
    )
