"""Figure D.4: ten-shot probes of single tokens.

    python analyses/figure_D4.py  # about as figure 11, 181 s on 2 cores; the same as `repsim figures D.4`

The paper shows ten-shot probes of every single token, as maps.
Expect of the bundled networks: in the last layer 0.76 in vit_mini and 0.82 in vit_mini_gap, wherever a token stands;
0.82 in resnet_mini, corners last.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "D.4", *sys.argv[1:]])
