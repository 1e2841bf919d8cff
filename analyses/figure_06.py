"""Figure 6: effective receptive fields after residual sums.

    python analyses/figure_06.py  # 49 s on 2 cores; the same as `repsim figures 6`

The paper shows |gradient| of the centre of a feature map by the pixels, after residual sums: large in low layers of a
ViT and global by the middle, with a strong share of the own patch; growing step by step in a ResNet.
Expect of the bundled networks: the same. Half of the mass lies within 5.7 px in the lowest third of vit_mini and
within 1.4 px in the lowest third of resnet_mini; in the last layers it lies within 10.1 and 7.2 px.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "6", *sys.argv[1:]])
