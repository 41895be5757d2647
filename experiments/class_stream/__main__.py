"""``python -m experiments.class_stream {smoke|...} [--field value]``."""

from experiments.class_stream import config
from experiments.class_stream.report import report
from experiments.class_stream.run import run
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
