"""From ``results.jsonl`` to tables, and from ``results/`` to the README."""
def report(config, folder):
    pass
