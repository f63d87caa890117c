"""A whole federation on one machine: engines, baselines, results, plots and reports."""
