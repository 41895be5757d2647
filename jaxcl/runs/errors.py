"""Bad input against bugs: the first is reported in one line, the second keeps its trace."""

import errno

from jaxcl.errors import InputError

#: What the system says where a disk is full, or may not be written.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def is_bad_input(error: BaseException) -> bool:
    """Whether it is an :class:`InputError`, or a disk that refuses."""
    refused = isinstance(error, OSError) and error.errno in REFUSALS
    return refused or isinstance(error, InputError)


def one_line(error: BaseException) -> str:
    """The message without line breaks; the kind of error if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


__all__ = ["is_bad_input", "one_line"]
