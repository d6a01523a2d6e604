"""Errors that a user can fix: the command line prints one line and exits with code 2."""


class UserError(ValueError):
    """Invalid input. The message is one line and names the fix."""


def system_line(error: OSError) -> str | None:
    """What the system said about a file, with its path; None when it names no file."""
    return f"{error.filename}: {error.strerror}" if error.filename else None
