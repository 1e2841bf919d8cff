"""Figure F.3: ten-shot probes: aggregations over depth.

    python analyses/figure_F3.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures F.3`

The paper shows probes over depth on CIFAR: CLS, first token, means of tokens.
Expect of the bundled networks: aggregations close to each other, CLS ahead in the middle of vit_mini.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "F.3", *sys.argv[1:]])
