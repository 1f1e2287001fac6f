"""One file per algorithm; each exports `Config`, `needs_teacher` and `signal`. File name = config name."""
