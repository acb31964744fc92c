"""SLIM, sparse linear methods: one small convex problem an item, solved exactly and in parallel."""
