"""The error of a configuration."""

from __future__ import annotations

from recs.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot run, with the key at fault and the mend."""
