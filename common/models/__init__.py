"""Recommendation models: neural collaborative filtering, its shared part, popularity."""
