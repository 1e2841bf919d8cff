"""Figure H.1: similarity of layers within MLP-Mixer.

    python analyses/figure_H1.py  # about as figure 3, 31 s on 2 cores; the same as `repsim figures H.1`

The paper shows CKA within MLP-Mixers: a small first block of layers, then a large one.
Expect of the bundled networks: low layers alike, high layers alike, the first block unlike the last: CKA 0.54.
Options of `repsim figures` may follow, such as --preset paper, or --out DIR.
"""

import sys

from repsim.cli import main

if __name__ == "__main__":
    main(["figures", "H.1", *sys.argv[1:]])
