"""Figure C.1: receptive fields of all sublayers of a ViT.

    python analyses/figure_C1.py  # about as figure 6, 49 s on 2 cores; the same as `repsim figures C.1`

The paper shows receptive fields after the attention and the MLP of each block of ViT-B/32.
Expect of the bundled networks: at most 5.7 px (half of the mass, mean of the lowest third) to 10.1 px in the end; 15%
of the mass stays on the own patch.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "C.1", *sys.argv[1:]])
