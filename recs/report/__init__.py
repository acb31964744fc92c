"""Pictures of results; they need the extra ``report`` (matplotlib)."""
