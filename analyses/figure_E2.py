"""Figure E.2: cosine of skip and residual sum.

    python analyses/figure_E2.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures E.2`

The paper shows the cosine of the skip connection and the residual sum over depth, 0.6 to 1: late blocks hardly turn
their input.
Expect of the bundled networks: cosines over 0.9 from the second block on, lower again in the last blocks of both
networks.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "E.2", *sys.argv[1:]])
