"""Experiments: each file defines `get_config(arg)`, which is `config.base()` plus overrides."""
