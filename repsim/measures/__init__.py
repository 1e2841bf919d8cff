"""The arithmetic: torch only; no models, no files, no tables."""
