"""Attacks on a federation by one of its own platforms, and what defends against them."""
