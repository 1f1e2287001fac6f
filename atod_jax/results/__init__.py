"""What a run leaves behind: checkpoints, metrics, transcripts, reports."""
