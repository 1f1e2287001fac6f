"""Text environments: every module or package here with an `ENVIRONMENT` (see `base`) is one."""
