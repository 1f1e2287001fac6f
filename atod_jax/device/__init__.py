"""What runs on devices: scoring, sampling, the optimiser and the update."""
