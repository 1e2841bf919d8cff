"""Disturb runs again and again, and see whether they end as if nothing had happened.

    python tests/soak.py                                     kills, ten minutes over all commands
    python tests/soak.py --minutes 60 --kills 200            until there were 200, an hour at most
    python tests/soak.py --processes 2 cka figures           these commands, in two processes under torchrun
    python tests/soak.py --faults --minutes 40               damaged sums, foreign files, limits, ... instead of kills

Every command is run once undisturbed. Then it is started into a folder with other people's files, killed (SIGKILL) at
a random moment, each third time while it draws, and started again, until it goes through: its results must be the same
byte for byte. With `--faults` something is wrong with each run: it gives the same results, or one line says what is
wrong and the same command without the fault gives them. No traceback, no hang, no foreign file changed, ever. The last
lines count what happened, and the exit code is 1 if anything differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

ROOT = Path(__file__).parents[1]
MICRO = "--model vit_micro"
COMMANDS = {
    "cka": "cka --model-b vit_micro --images 500 --batch-size 20 --repeats 2",
    "files": "cka --model-a vit_micro --data {images} --workers 2 --images 400 --batch-size 10",
    "attention": "attention --images 800 --batch-size 20 --maps 1",
    "heads": "heads --images 800 --batch-size 40",
    "residual": "residual --model vit_mini --images 500 --batch-size 20",
    "receptive": f"receptive {MICRO} --images 100 --batch-size 10 --channels 4",
    "localize": f"localize {MICRO} --images 800 --batch-size 20",
    "probe": f"probe {MICRO} --images 300 --batch-size 20 --train-images 600 --no-tokens --shots 2 --neighbours 50",
    "lesion": f"lesion {MICRO} --images 300 --batch-size 25 --remove block",
    "figures": "figures 1 3 7 --images 150 --batch-size 15",
}
FOREIGN = "resume/cv.pdf .film.part.mp4 notes.txt pass-0-of-1-0.pt figure-99/run.json .git/HEAD".split()
"""Files that lie in every folder of results, and are nobody's business."""
IN_THE_WAY = """
cka.csv attention.csv/mine heads.pdf residual.png figure-1/mine lesion.csv probe_summary.csv run.json .repsim-resume
.repsim-resume/mine .repsim-resume.lock""".split()
ENVIRONMENTS = """
MPLBACKEND=nope RANK=1 RANK= WORLD_SIZE=x WORLD_SIZE=2 LOCAL_RANK=x MASTER_PORT=x HOME=/proc/nowhere TMPDIR=/nowhere
MPLCONFIGDIR=/proc/nowhere REPSIM_IMAGENET=/nowhere LC_ALL=C PYTHONUTF8=0 PYTHONHASHSEED=7 PYTHONOPTIMIZE=2 COLUMNS=0
""".split()
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
LONGEST = 30
"""Times as long as undisturbed, and no run may take longer; machines on which these run have other things to do."""
KILLS = 20
"""Of one run, at most: on a slower machine than when it was undisturbed it might never go through."""
SUMS = ".repsim-resume/pass-*.pt"
OTHER = [b"", b"[]", b"null", b"{", b"\0" * 999, b"my notes"]
DAMAGE = {
    "flipped": lambda content, rng: flip(content, rng.randrange(8 * len(content))),
    "overwritten": lambda content, rng: rng.choice([*OTHER, content[: rng.randrange(len(content))]]),
}
"""What becomes of a saved file."""
AROUND = {
    "environment": lambda rng: {"environment": rng.choice(ENVIRONMENTS)},
    "little memory": lambda rng: {"limit": (resource.RLIMIT_AS, rng.randrange(1_000, 8_000) * 2**20)},
    "small files": lambda rng: {"limit": (resource.RLIMIT_FSIZE, rng.choice([4_000, 30_000, 100_000]))},
}
"""Where a run is started: with a variable, or a limit of the system."""
FAULTS = [*DAMAGE, *AROUND, "foreign", "worker_killed", "signalled"]


class Wrong(Exception):
    """A run did not end as it must."""


def files(folder: Path) -> dict[str, bytes]:
    """All but records, which tell the time; of reports, commands as without what says whether sums are used again."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found = {name: content.replace(b"--fresh --quiet", b"--quiet") for name, content in found.items()}
    return {name: content for name, content in found.items() if not name.endswith("run.json") or name in FOREIGN}


@dataclass
class Soak:
    """One command, undisturbed and otherwise."""

    command: str
    work: Path
    rng: random.Random
    counts: Counter
    processes: int = 1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.out, self.said = self.work / "again", self.work / "said"
        self.empty()
        began = time.monotonic()
        if code := self.ends(self.start()):
            raise Wrong(f"undisturbed, its exit code is {code}: {self.last()}")
        self.seconds, self.whole = time.monotonic() - began, files(self.out)
        print(f"{self.command}: undisturbed {self.seconds:.0f} s, {len(self.whole) - len(FOREIGN)} results", flush=True)

    def empty(self) -> None:
        """Begin anew, in a folder where only other people's files are."""
        shutil.rmtree(self.out, ignore_errors=True)
        for name in FOREIGN:
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_text(f"somebody's {name}")

    def start(self, more: str = "", environment: str = "", limit: tuple[int, int] | None = None) -> psutil.Popen:
        self.counts["starts"] += 1
        self.counts["starts from saved sums"] += any(self.out.glob(SUMS))
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes), "-m"]
        call = [sys.executable, "-m", *(torchrun if self.processes > 1 else []), "repsim"]
        call += [*COMMANDS[self.command].format(images=self.work.parent / "images").split(), *more.split()]
        name, _, value = environment.partition("=")
        return psutil.Popen(
            [*call, "--quiet", "--checkpoint-every", "0.3", "--out", str(self.out)],
            stderr=self.said.open("wb"),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **({name: value} if name else {})},
            cwd=self.work,
            start_new_session=True,
            preexec_fn=limit and (lambda: resource.setrlimit(limit[0], (limit[1], limit[1]))),
        )

    def ends(self, process: psutil.Popen) -> int:
        """Its exit code, if it ends in time."""
        try:
            return process.wait(LONGEST * self.seconds + 60 if self.seconds else 600)
        except psutil.TimeoutExpired:
            kill(process)
            raise Wrong(f"a hang: {self.last()}") from None

    def last(self) -> str:
        return " | ".join(self.said.read_text(errors="replace").splitlines()[-4:])[-600:]

    def same(self) -> None:
        """All is as after an undisturbed run, and other people's files are theirs."""
        now = files(self.out)
        if other := sorted(name for name in {**now, **self.whole} if now.get(name) != self.whole.get(name)):
            raise Wrong(f"other files: {other}")

    def one_line(self, code: int) -> None:
        """It says what is wrong, or that it was stopped, and nothing else of its own."""
        said = self.said.read_text(errors="replace")
        own = [line for line in said.splitlines() if line.startswith(("Error: ", "stopped"))]
        if "Traceback" in said:
            raise Wrong(f"a traceback: {self.last()}")
        if code >= 0 and len(own) != (code > 0) and self.processes == 1 or code > 0 and not own:
            raise Wrong(f"exit code {code}, and {len(own)} lines that say why: {self.last()}")

    def draws(self, since: float) -> bool:
        """Whether a run that began then has written its record, which is written before pictures are drawn."""
        record = self.out / "run.json"
        return record.exists() and record.stat().st_mtime > since

    def killed(self) -> None:
        """Kill it at random moments until it goes through, which it may after so many."""
        self.empty()
        for left in reversed(range(KILLS + 1)):
            since, process, wait = time.time(), self.start(), self.rng.uniform(0, self.seconds)
            if self.rng.random() < 1 / 3:
                while process.poll() is None and not self.draws(since):
                    time.sleep(0.02)
                wait = self.rng.uniform(0, 1.5)
            try:
                code = process.wait(wait) if left else self.ends(process)
                break
            except psutil.TimeoutExpired:
                self.counts["kills"] += 1
                self.counts["kills while it draws"] += self.draws(since)
                kill(process, one=self.processes > 1 and self.rng.random() < 0.3)
        self.counts["sequences"] += 1
        if code:
            raise Wrong(f"exit code {code}: {self.last()}")
        self.same()

    # Faults: each gives the exit code of a disturbed run

    def damaged(self, damage: Callable[[bytes, random.Random], bytes]) -> int:
        """Damage a file of a run that was killed, and start it again."""
        process = self.start()
        while process.poll() is None and not any(self.out.glob(SUMS)):
            time.sleep(0.02)
        time.sleep(self.rng.uniform(0, self.seconds / 3))
        kill(process)
        if not any(self.out.glob(SUMS)):  # it went through before it could be killed
            return 0
        file = self.rng.choice([each for each in sorted(self.out.glob(".repsim-resume/*")) if each.stat().st_size])
        file.write_bytes(damage(file.read_bytes(), self.rng))
        if (code := self.ends(self.start())) and "--fresh" not in self.last():
            raise Wrong(f"--fresh is not named: {self.last()}")
        return code

    def foreign(self) -> int:
        """Somebody's file is where something would go; it is moved away afterwards."""
        mine = self.out / self.rng.choice(IN_THE_WAY)
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        code = self.ends(self.start(self.rng.choice(["", "--fresh", "--overwrite"])))
        if mine.read_text() != "mine":
            raise Wrong(f"somebody's file was changed: {mine}")
        mine.unlink()
        with suppress(OSError):
            mine.parent.rmdir()
        return code

    def worker_killed(self) -> int:
        """One of the processes that it started is killed, as the kernel does where memory runs out."""
        process = self.start()
        children: list[psutil.Process] = []
        while process.poll() is None and not children:
            time.sleep(0.05)
            with suppress(psutil.Error):
                children = process.children(recursive=True)
        time.sleep(self.rng.uniform(0, 0.3) * self.seconds)
        with suppress(psutil.Error, IndexError):
            self.rng.choice(children).kill()
            self.counts["processes of a run killed"] += 1
        return self.ends(process)

    def signalled(self) -> int:
        """A signal to it alone, or to its group as `timeout` and terminals send it."""
        process, number, send = self.start(), self.rng.choice(SIGNALS), self.rng.choice([os.kill, os.killpg])
        time.sleep(self.rng.uniform(0.3, 1) * self.seconds)
        if process.poll() is None:
            send(process.pid, number)
        if (code := self.ends(process)) not in (0, 130, -number):
            raise Wrong(f"exit code {code} after {number.name}: {self.last()}")
        return code

    def faulty(self, fault: str) -> None:
        """One fault, what came of it, and the run without it."""
        self.empty()
        if fault in DAMAGE:
            code = self.damaged(DAMAGE[fault])
        elif fault in AROUND:
            code = self.ends(self.start(**AROUND[fault](self.rng)))
        else:
            code = getattr(self, fault)()
        outcome = "the same results" if code == 0 else "one line" if code > 0 else "ended by a signal"
        self.counts[f"{fault}: {outcome}"] += 1
        self.one_line(code)
        if code and self.ends(self.start("--fresh" if fault in DAMAGE else "")):
            raise Wrong(f"without the fault: {self.last()}")
        self.same()


def flip(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def kill(process: psutil.Popen, one: bool = False) -> None:
    """Kill a run with all that it has started, or first one of these, which must end the others."""
    with suppress(psutil.Error):
        every = [process, *process.children(recursive=True)]
        if one:
            every[-1].kill()
            psutil.wait_procs(every, 30)
        for each in every:
            with suppress(psutil.Error):
                each.kill()
        psutil.wait_procs(every, 30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kills", type=int, default=10**9, help="end after so many")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="*", metavar="COMMAND", default=list(COMMANDS))
    options = parser.parse_args()
    rng, counts = random.Random(options.seed), {name: Counter() for name in options.command}
    ends, wrong, rounds = time.monotonic() + 60 * options.minutes, [], 0
    with TemporaryDirectory() as folder:
        pictures = (
            "from repsim.images.image_set import ImageSet; import sys; s = ImageSet('sample', images=500).source\n"
        )
        pictures += "[s.load(i).save(f'{sys.argv[1]}/{i}.png') for i in range(500)]"
        (Path(folder) / "images").mkdir()
        subprocess.run([sys.executable, "-c", pictures, f"{folder}/images"], check=True, cwd=ROOT)
        soaks = []
        for name in options.command:
            (Path(folder) / name).mkdir()
            soaks.append(Soak(name, Path(folder) / name, rng, counts[name], options.processes))
        while time.monotonic() < ends and sum(each["kills"] for each in counts.values()) < options.kills:
            soak = soaks[rounds % len(soaks)]
            fault = FAULTS[(rounds + rounds // len(soaks)) % len(FAULTS)] if options.faults else ""
            if fault == "worker_killed" and "--workers" not in COMMANDS[soak.command]:  # it has none
                fault = "signalled"
            rounds += 1
            try:
                soak.faulty(fault) if fault else soak.killed()
                print(f"{rounds}. {soak.command} {fault}: the same", end=" ")
            except Wrong as error:
                wrong.append(f"{soak.command} {fault}: {error}")
                print(f"{rounds}. WRONG {wrong[-1]}", end=" ")
            print(f"({sum(each['kills'] for each in counts.values())} kills so far)", flush=True)
    print(json.dumps({"all": sum(counts.values(), Counter()), **counts}, indent=1))
    print(f"{len(wrong)} of {rounds} differed", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
