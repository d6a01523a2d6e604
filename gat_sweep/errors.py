"""Errors that a user can fix: the command line prints one line and exits with code 2."""


class UserError(ValueError):
    """Invalid input. The message is one line and names the fix."""
