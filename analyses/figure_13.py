"""Figure 13: ten-shot probes over depth: data and size.

    python analyses/figure_13.py  # about as figure 11, 181 s on 2 cores; the same as `repsim figures 13`

The paper shows ten-shot probes over depth: more data makes much better representations in the middle too (30 points),
and larger ViTs beat ResNets there.
Expect of the bundled networks: in the middle third, 0.799 with all images and 0.759 with 3 %; 0.759 in resnet_mini.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "13", *sys.argv[1:]])
