"""User-level differential privacy: sampling, clipping, noise, accounting and the ledger."""
