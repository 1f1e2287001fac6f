"""What a run will need, by arithmetic: memory, time and traffic per device; no weights, no run."""
