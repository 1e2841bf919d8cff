"""Figure D.2: CKA of single tokens with input patches, last block but one.

    python analyses/figure_D2.py  # about as figure 3, 31 s on 2 cores; the same as `repsim figures D.2`

The paper shows localization in the last block but one of ViT-B/32 and ViT-L/16: still localized.
Expect of the bundled networks: the same: 0.35, more than in the last block (Figure 9).
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "D.2", *sys.argv[1:]])
