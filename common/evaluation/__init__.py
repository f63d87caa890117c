"""How good a ranking is: pure functions over scores, ranked item ids and held-out items."""
