"""Studies: computations on the activations of a pass over images, and their tables."""
