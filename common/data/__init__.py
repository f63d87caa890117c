"""Interactions, catalogues, splits, and the built-in synthetic marketplace."""
