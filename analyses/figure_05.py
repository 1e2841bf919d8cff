"""Figure 5: heads of the first block against lower ResNet units.

    python analyses/figure_05.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures 5`

The paper shows CKA of windows of heads of the first block with lower ResNet units: it falls as heads look farther.
Expect of the bundled networks: no clear fall: heads differ by 1.1 px in distance only, and the rank correlation over
the 7 windows is -0.18.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "5", *sys.argv[1:]])
