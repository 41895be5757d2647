"""``python -m experiments.byte_domains {smoke|...} [--field value]``."""

from experiments.byte_domains import config
from experiments.byte_domains.report import report
from experiments.byte_domains.run import run
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
