"""Figure F.2: ten-shot probes over depth: size, other networks.

    python analyses/figure_F2.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures F.2`

The paper shows probes over depth on CIFAR, ViTs of several sizes and ResNets.
Expect of the bundled networks: in the middle third 0.795 (vit_mini), 0.829 (mixer_mini) and 0.759 (resnet_mini).
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "F.2", *sys.argv[1:]])
