"""The public names of a package or a module, for tests that look at all of them."""


def public(module):
    """A package's own list; else what is defined without an underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = lambda value: getattr(value, "__module__", "") == module.__name__
    return [
        name for name, value in vars(module).items() if name[0] != "_" and own(value)
    ]
