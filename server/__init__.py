"""What the coordinator runs: rounds, checks on every release, aggregation, checkpoints."""
