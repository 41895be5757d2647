"""``python -m experiments.ewc_permuted {smoke|short|reduced|paper} [--field value]``."""

from experiments.ewc_permuted import config
from experiments.ewc_permuted.report import report
from experiments.ewc_permuted.run import run
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
