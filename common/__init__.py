"""What both sides of a federation agree on: data, models, privacy, evaluation, messages."""
