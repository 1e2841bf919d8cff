"""Figure G.2: similarity of layers between ViTs of two sizes.

    python analyses/figure_G2.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures G.2`

The paper shows CKA of ViTs of several sizes with each other, and makes no claim of it.
Expect of the bundled networks: layers to match from below: vit_micro's first block is likest to the first of
vit_mini_100pct_seed1, its others to the second.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "G.2", *sys.argv[1:]])
