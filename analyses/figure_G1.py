"""Figure G.1: similarity before and after fine-tuning.

    python analyses/figure_G1.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures G.1`

The paper shows CKA of each block before and after fine-tuning: little change for natural images, more for medical and
satellite ones, the first four or five layers preserved.
Expect of the bundled networks: low layers preserved: after fine-tuning to tell rotations, the lowest third is liker to
its former self than the highest third, by 0.20.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "G.1", *sys.argv[1:]])
