"""Images: which, from where, and how they are read."""
