"""Figure C.5: attention distance, another ViT.

    python analyses/figure_C5.py  # about as figure 3, 31 s on 2 cores; the same as `repsim figures C.5`

The paper shows attention distance of ViT-B/32, pretrained and on ImageNet alone: both have local heads in low blocks.
Expect of the bundled networks: no local heads, for vit_mini_gap: the nearest of the first block is at 12.8 px of 14.1
px for uniform attention.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "C.5", *sys.argv[1:]])
