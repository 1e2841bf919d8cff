"""Features: what was taken of images before, as arrays, and how they stand where a network may stand."""
