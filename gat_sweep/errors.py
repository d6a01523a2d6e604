"""What a user can mend: the command line prints these as one line and exits with code 2."""


class UserError(ValueError):
    """Bad input. The message is one line and names the fix."""
