"""The figures of the paper: which networks, which studies, which pictures and numbers each is made of."""
