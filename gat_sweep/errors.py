"""Errors that a user can fix: the command line prints one line and exits with code 2."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, a quota, a limit on the size of files


class UserError(ValueError):
    """Invalid input. The message is one line and names the fix."""


def system_line(error: OSError) -> str | None:
    """What the system said about a file, with its path, or of a full disk; None when it names neither."""
    if error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"{error.strerror}; free some and run the same command again" if error.errno in FULL else None
