"""Text environments; each module or package exports `tasks`, `make` and `TEMPLATES`."""
