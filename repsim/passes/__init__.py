"""Passes of images through networks: swept, resumed, shared among processes, within memory."""
