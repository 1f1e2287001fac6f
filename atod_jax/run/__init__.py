"""The parts of a run put together from its options; shared by the programs."""
