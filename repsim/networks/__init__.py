"""Networks: how they are made, what runs in them, and what is taken of their layers."""
