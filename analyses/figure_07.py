"""Figure 7: skip connection over branch.

    python analyses/figure_07.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures 7`

The paper shows the norm of the skip connection over the branch's: CLS is carried in the first half of a ViT and
rewritten in the second, other tokens the other way round; ratios of the ViT lie above the ResNet's.
Expect of the bundled networks: the ViT above the ResNet (7.5 against 3.6), but no phase transition: CLS minus other
tokens is -0.52 in the first half and -0.11 in the second.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "7", *sys.argv[1:]])
