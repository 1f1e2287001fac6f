"""From tasks to trajectories and rows: rendering, playing, packing, recording. Host only."""
