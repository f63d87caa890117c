"""Recommenders that a platform fits alone, on its own raw data. Nothing of them ever leaves it."""
