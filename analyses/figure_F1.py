"""Figure F.1: ten-shot probes over depth: data, other networks.

    python analyses/figure_F1.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures F.1`

The paper shows probes over depth of ViTs pretrained and trained on ImageNet or CIFAR alone (full training sets for
CIFAR).
Expect of the bundled networks: 0.795 in the middle third for vit_mini, 0.759 for the network of 3 % of the images.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "F.1", *sys.argv[1:]])
