"""Networks: loading them, finding the layers that run in them, and taking activations from these."""
