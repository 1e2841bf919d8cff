"""Figure C.3: receptive fields of all sublayers of another ViT.

    python analyses/figure_C3.py  # about as figure 6, 49 s on 2 cores; the same as `repsim figures C.3`

The paper shows receptive fields after the attention and the MLP of each block of ViT-L/16.
Expect of the bundled networks: as C.1, for vit_mini_gap: to 10.5 px.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "C.3", *sys.argv[1:]])
