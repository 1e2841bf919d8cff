"""Figure 3: attention distance, trained on much.

    python analyses/figure_03.py  # 31 s on 2 cores; the same as `repsim figures 3`

The paper shows attention distance of each head of the two lowest and two highest blocks: low blocks have local and
global heads, high blocks only global heads, if the ViT was pretrained on JFT-300M.
Expect of the bundled networks: no local heads. Uniform attention would be at 14.15 px; the nearest head of the first
block of vit_mini is at 13.0 px, the one of the last at 13.3 px: with 60,000 small images, this is the paper's case of
too little data.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "3", *sys.argv[1:]])
