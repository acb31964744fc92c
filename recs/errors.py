"""What a user can mend: told in one line, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in configuration, data or lake; its message says what is wrong and the mend."""
