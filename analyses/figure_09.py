"""Figure 9: CKA of single tokens with input patches, last block or unit.

    python analyses/figure_09.py  # 50 s on 2 cores; the same as `repsim figures 9`

The paper shows CKA of single tokens of the last block or unit with every input patch: interior ViT tokens stay at
their place, tokens at the edges resemble all edges; ResNet positions are localized much less.
Expect of the bundled networks: the same: own patch minus the rest, interior tokens: 0.29 in vit_mini, 0.06 in
resnet_mini.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "9", *sys.argv[1:]])
