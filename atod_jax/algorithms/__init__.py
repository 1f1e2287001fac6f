"""One file per algorithm, named as in the config; exports Config, needs_teacher and signal."""
