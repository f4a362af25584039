"""Model APIs of others, reached with keys that only the vault knows."""
