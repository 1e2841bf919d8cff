"""Figure C.2: receptive fields of all units of a ResNet.

    python analyses/figure_C2.py  # about as figure 6, 49 s on 2 cores; the same as `repsim figures C.2`

The paper shows receptive fields after every unit of ResNet50: they grow step by step.
Expect of the bundled networks: the same, to 7.2 px.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "C.2", *sys.argv[1:]])
