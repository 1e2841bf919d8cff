"""Figure 10: CKA of single tokens with input patches, with GAP instead of CLS.

    python analyses/figure_10.py  # about as figure 9, 50 s on 2 cores; the same as `repsim figures 10`

The paper shows the same for a ViT with global average pooling instead of a CLS token: tokens are less localized.
Expect of the bundled networks: the same: 0.14 with pooling, 0.29 with CLS.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "10", *sys.argv[1:]])
