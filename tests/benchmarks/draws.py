"""Compare repsim's numbers on thousands of networks drawn at random with their true numbers; see `tests/drawn.py`.

    python tests/benchmarks/draws.py 10000         # draws 0 to 9999; half an hour on 1 core
    python tests/benchmarks/draws.py 10000 500     # from draw 500 on

It prints each wrong network when it meets it, and a line of counts at the end.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from drawn import Attend, drawn
from test_drawn import check

import repsim as rs


def main(last: int, first: int = 0) -> None:
    warnings.simplefilter("ignore")  # warnings of layers that are constant over all images
    torch.set_num_threads(1)
    wrong, drawn_kinds = 0, Counter()
    for seed in range(first, last):
        case = drawn(seed)
        for _, block in case.net.runs():
            kind = f"{block.kind}, {block.keys} keys, {block.algorithm}" if isinstance(block, Attend) else ""
            drawn_kinds[f"{type(block).__name__} {kind}".strip()] += 1
        try:
            check(case)
        except (AssertionError, rs.RepsimError) as error:
            wrong += 1
            print(seed, str(error).strip().splitlines()[0], flush=True)
    for kind, times in drawn_kinds.most_common():
        print(f"{times:6} {kind}")
    print(f"{last - first} networks drawn, {wrong} wrong")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
