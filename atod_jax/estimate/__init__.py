"""What a run will need, asked of compilers: memory and time per device; no weights, no run."""
