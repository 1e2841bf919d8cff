"""Figure 12: similarity to a network trained on all images.

    python analyses/figure_12.py  # about as figure 1, 47 s on 2 cores; the same as `repsim figures 12`

The paper shows CKA of each block with the same block of a network trained on all data: low layers are alike from 3 or
10 % on, high layers and larger models need more.
Expect of the bundled networks: the lowest third of the network of 3 % is liker to another seed's network of 100 %
than its highest, by 0.122. So is another seed's of 100 %, which the paper lacks: see analyses/data_scale.py.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "12", *sys.argv[1:]])
