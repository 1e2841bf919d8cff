"""Figure 2: similarity of layers between ViT and ResNet.

    python analyses/figure_02.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures 2`

The paper shows CKA of all layers of ViTs with all of ResNets: the lower half of a ResNet is like the lowest quarter
of a ViT, its upper half like the ViT's next third, and the last third of the ViT like nothing in it.
Expect of the bundled networks: the same directions: the lowest quarter of vit_mini is likest to the lower half of
resnet_mini by 0.032, and its last third finds less that is like it than the rest does (-0.074).
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "2", *sys.argv[1:]])
