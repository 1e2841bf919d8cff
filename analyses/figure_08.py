"""Figure 8: trained without the skip connections of one block.

    python analyses/figure_08.py  # 53 s on 2 cores; the same as `repsim figures 8`

The paper shows CKA within ViTs trained without the skip connections of one block: layers before and after it are
unlike; accuracy falls by 4 % for middle blocks.
Expect of the bundled networks: the same: CKA across block 5 is 0.64 without its skips and 0.88 in the untouched
network. Accuracies and steps are in figures/training.csv; these networks had two thirds of the untouched one's steps.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "8", *sys.argv[1:]])
