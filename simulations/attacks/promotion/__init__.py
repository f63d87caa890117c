"""A platform that pushes an item: what it sends, how far it gets, and what defends."""
