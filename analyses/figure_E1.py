"""Figure E.1: skip connection over branch, all tokens.

    python analyses/figure_E1.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures E.1`

The paper shows the norm ratio of skip and branch of all tokens: CLS is hardly changed in the first layers and much
later, mostly by the MLP; other tokens change the other way round.
Expect of the bundled networks: no such turn, in either of two networks: only the first block differs, which writes
CLS anew, and there are bright and dark columns of tokens.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "E.1", *sys.argv[1:]])
