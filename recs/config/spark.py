"""Spark's own settings, as a configuration gives them."""

from __future__ import annotations

import re
from typing import Any

from recs.settings import leaves

#: Settings that hold a secret: Spark's own ``spark.redaction.regex``, and what it leaves out; but
#: for those that say where one lies, or of what kind it is.
_SECRET = re.compile(
    r"secret|password|token|access[.]?key|account[.]key|[.]sas[.]|private[.]key|encryption[.]key",
    re.IGNORECASE,
)
_ABOUT_A_SECRET = re.compile(
    r"[.-](file|path|type|binding|impl|provider|enabled)([.]|$)|File$|[.]secrets[.]|[.]secretKeyRef[.]"
)
_SECRET_VALUE = re.compile(
    r"://[^\s/?#]*:[^\s@]*@|-D\S*(?:password|secret|token)\S*=", re.IGNORECASE
)


def spark_settings(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section ``spark`` as Spark writes it: an override ``spark.a.b=2`` nests keys.

    Raises
    ------
    ValueError
        If a setting holds a credential.
    """
    settings = {key: _in_spark(setting) for key, setting in leaves(section)}
    for key, setting in settings.items():
        # They would go onto the JVM's command line, which all users of a machine can read.
        secret = _SECRET.search(key) and not _ABOUT_A_SECRET.search(key)
        if secret or _SECRET_VALUE.search(str(setting)):
            raise ValueError(
                f"{key} holds a credential: give it by the environment, spark-defaults.conf or "
                "a credential provider (hadoop.security.credential.provider.path)"
            )
    return settings


def _in_spark(value: Any) -> Any:
    """Return a setting as Spark writes it: ``true``, ``2``."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value
