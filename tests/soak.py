"""Kill runs again and again, and see whether they end as if nothing had happened.

    python tests/soak.py                              # ten minutes of `repsim cka` on the bundled images
    python tests/soak.py --minutes 60 -- residual --model vit_mini --images 2000

What follows `--` is the command. It is run once undisturbed; then, over and over, it is started, killed (SIGKILL) at
a random moment and started again, until it goes through; the tables must be the same byte for byte every time. The test
suite does this twenty times in small (`tests/test_resume.py`).
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

CKA = ["cka", "--images", "2000", "--batch-size", "50"]


def start(command: list[str], out: Path) -> subprocess.Popen:
    saving = ["--checkpoint-every", "0.5", "--quiet", "--out", str(out)]
    return subprocess.Popen([sys.executable, "-m", "repsim", *command, *saving])


def tables(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.csv"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="*", default=CKA)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with TemporaryDirectory() as folder:
        whole, again = Path(folder) / "whole", Path(folder) / "again"
        began = time.monotonic()
        if start(options.command, whole).wait():
            return 1
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.0f} s, {len(tables(whole))} tables", flush=True)
        ends, runs, kills, went_on = time.monotonic() + 60 * options.minutes, 0, 0, 0
        while time.monotonic() < ends:
            shutil.rmtree(again, ignore_errors=True)
            while True:
                went_on += any(again.glob(".repsim-resume/pass-*.pt"))
                process = start(options.command, again)
                try:
                    code = process.wait(rng.uniform(0, seconds))
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
            runs += 1
            same = code == 0 and tables(again) == tables(whole)
            print(f"run {runs}: {'the same' if same else f'DIFFERS, exit code {code}'}", end=" ")
            print(f"({kills} kills so far, {went_on} starts from saved sums)", flush=True)
            if not same:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
