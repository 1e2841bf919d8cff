"""Figure C.6: attention distance, before fine-tuning.

    python analyses/figure_C6.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures C.6`

The paper shows attention distance of ViT-H/14 before fine-tuning: as Figure 3.
Expect of the bundled networks: little change by fine-tuning: the nearest head of the first block is at 13.0 px
before, and at 12.9 px after.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "C.6", *sys.argv[1:]])
