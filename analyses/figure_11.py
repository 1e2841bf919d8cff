"""Figure 11: ten-shot probes: single tokens and aggregated.

    python analyses/figure_11.py  # 181 s on 2 cores; the same as `repsim figures 11`

The paper shows ten-shot linear probes over depth: single tokens of a GAP model and of a ResNet probe well in the end,
tokens of a CLS model probe poorly; aggregated, CLS and pooled tokens are alike until the last layers.
Expect of the bundled networks: the same direction: single tokens of the last layer reach 0.817 in the GAP model and
0.761 in the CLS model, but the gap is far from the paper's.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "11", *sys.argv[1:]])
