"""What the user can mend is a UserError: one line on stderr, exit status 2, no traceback."""


class UserError(Exception):
    """Something the user can mend: the message names the file, the row or the setting, and says how."""
