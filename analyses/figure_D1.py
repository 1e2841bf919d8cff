"""Figure D.1: CKA of single tokens with input patches, last block of another ViT.

    python analyses/figure_D1.py  # about as figure 3, 31 s on 2 cores; the same as `repsim figures D.1`

The paper shows localization in the last two blocks of ViT-H/14.
Expect of the bundled networks: as Figure 9, for another seed's ViT: own patch minus the rest 0.35.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "D.1", *sys.argv[1:]])
