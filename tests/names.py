"""The public names of a package or a module, for tests that look at all of them."""


def public(module):
    """A package's own list; of a module what it defines without an underscore."""
    if hasattr(module, "__path__"):
        return list(module.__all__)
    own = lambda value: getattr(value, "__module__", "") == module.__name__
    return [
        name for name, value in vars(module).items() if name[0] != "_" and own(value)
    ]
