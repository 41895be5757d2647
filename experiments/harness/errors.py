"""Bad input against bugs: the first is reported in one line, the second keeps its trace."""

import errno
import traceback

#: What the system says where a disk is full, or may not be written.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class InputError(ValueError):
    """What the caller asked for cannot be done; the message is one line."""


def is_bad_input(error: BaseException) -> bool:
    """Whether our own code raised it on purpose: a ``raise`` in jaxcl or experiments.

    The same kinds of errors from JAX, numpy or a slip of ours are bugs. Only the process
    in which it was raised can tell; it may then pass an :class:`InputError` on. A disk
    that refuses is not a bug, whichever process it reached.
    """
    if isinstance(error, InputError):
        return True
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return True
    if not isinstance(error, ValueError | OSError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals.get("__name__", "").split(".")[0]
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return package in ("jaxcl", "experiments") and line.startswith("raise")


def one_line(error: BaseException) -> str:
    """The message without line breaks; the kind of error if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


__all__ = ["InputError", "is_bad_input", "one_line"]
