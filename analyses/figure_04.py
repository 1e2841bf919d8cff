"""Figure 4: attention distance, trained on little.

    python analyses/figure_04.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures 4`

The paper shows the same for ViTs trained on ImageNet alone: heads of low blocks do not become local.
Expect of the bundled networks: no local heads with 3 % of the images (13.4 px) or with all of them (13.5 px).
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "4", *sys.argv[1:]])
