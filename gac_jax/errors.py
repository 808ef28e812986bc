"""The one exception that users are meant to see."""

from __future__ import annotations


class UserError(Exception):
    """Input that a user can mend.

    The message is one line that names the file or value at fault and the remedy; the command lines
    print it and exit with status 2.
    """
