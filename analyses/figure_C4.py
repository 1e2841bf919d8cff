"""Figure C.4: receptive fields of branches, before the residual sum.

    python analyses/figure_C4.py  # about as figure 6, 49 s on 2 cores; the same as `repsim figures C.4`

The paper shows receptive fields of branches before they are added to the skip connection: attention has less of its
own patch than after the sum, the MLP resembles the sum, and ResNet branches shrink where a stage begins.
Expect of the bundled networks: the same: the own patch's share is higher after the sum by 0.09 in vit_mini and by
0.07 in resnet_mini.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "C.4", *sys.argv[1:]])
