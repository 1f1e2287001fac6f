"""Studies: many runs that answer questions together, planned, made and read as one."""
