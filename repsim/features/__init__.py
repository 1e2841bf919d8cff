"""Features: arrays of responses to images, taken earlier or elsewhere, that may stand where a network may."""
