"""Several processes on one cache, and what becomes of them when a party fails."""
