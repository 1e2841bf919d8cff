"""Figure H.2: similarity of layers between MLP-Mixer, ViT and ResNet.

    python analyses/figure_H2.py  # about as figure 8, 53 s on 2 cores; the same as `repsim figures H.2`

The paper shows CKA of MLP-Mixer with ViT and with ResNet: closer to the ViT.
Expect of the bundled networks: the contrary: the layer that is likest to a layer of the mixer is at 0.870 in vit_mini
and at 0.892 in resnet_mini, on average.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "H.2", *sys.argv[1:]])
