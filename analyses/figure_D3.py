"""Figure D.3: CKA of single positions with input patches, last unit but one.

    python analyses/figure_D3.py  # about as figure 3, 31 s on 2 cores; the same as `repsim figures D.3`

The paper shows localization in the last unit but one, and in the first unit of the last stage, of ResNet50: it is
better than in the last unit, and less than a ViT's.
Expect of the bundled networks: about as in the last unit: 0.064 (Figure 9).
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "D.3", *sys.argv[1:]])
