"""Figure 1: similarity of layers within networks.

    python analyses/figure_01.py  # 47 s on 2 cores; the same as `repsim figures 1`

The paper shows CKA of all pairs of layers within ViT-L/16, ViT-H/14 and two ResNets: ViT layers resemble each other
throughout, low and high ones too; ResNets have stages, and low and high layers differ.
Expect of the bundled networks: the lowest and the highest third resemble each other at 0.85 in vit_mini and 0.81 in
resnet_mini: the same direction, but a small difference (0.034), most of which is there before training
(analyses/uniformity.py).
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "1", *sys.argv[1:]])
