"""``python -m jaxcl``: the command line, also where no script is installed."""

from jaxcl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
