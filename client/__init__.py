"""What a platform runs: training on its own data, private state on disk, recommendations."""
