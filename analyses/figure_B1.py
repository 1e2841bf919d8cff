"""Figure B.1: similarity of layers: another ViT.

    python analyses/figure_B1.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures B.1`

The paper shows CKA within ViT-B/32 and ViT-H/14 and with ResNet50 and ResNet152: as Figures 1 and 2.
Expect of the bundled networks: as Figures 1 and 2, for vit_mini_gap.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "B.1", *sys.argv[1:]])
