"""Hostile calls of the command line, in processes of their own, end in time with one line and the right exit code.

    python tests/hostile.py            all cases, two at a time
    python tests/hostile.py device fd  the cases whose names hold one of these words

A case is a line of bash. It passes if it ends in time, with its exit code, without a traceback, and if its text on
stderr is the one line that it should say. The last line of output counts the cases that passed, and the exit code is
0 if all cases passed. No case needs the Internet or a GPU; all cases need Linux.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RUN = "--quiet --images 8 --batch-size 4 --out out"
"""Options of a run that would take a second if nothing were wrong with it."""
A = "--model-a vit_mini"
HUGE = 99999999999999999999


class Case(NamedTuple):
    """One call, and the outcome that it must have."""

    name: str
    shell: str
    """The line of bash, which runs in a folder of its own that holds `given`; `repsim` is the command."""
    code: int
    says: str = ""
    """A regular expression for the line on stderr; empty if stderr must be empty."""
    other_lines: bool = False
    """Whether lines of other programs may stand before it."""
    seconds: float = 150


def bounded(command: str, option: str, says: str = "") -> Case:
    shell = f"repsim {command} {RUN} {option} {HUGE}"
    return Case(f"huge {command} {option}", shell, 2, says or f"{option} must be at most")


def cka(name: str, options: str, code: int, says: str, before: str = "") -> Case:
    return Case(name, f"{before} repsim cka {A} {options} {RUN}", code, says)


def damaged(text: str) -> list[Case]:
    """Cases of a damaged `run.json`, one for every command that reads it."""
    damage = f"cp -r given/figures f; for r in f/run.json f/figure-*/run.json; do printf '{text}' > $r; done"
    whole = text.startswith('{"random": true')  # claims read no other entry
    claims = f"{damage}; repsim claims --quiet f"
    return [
        Case(f"run.json is {text or 'empty'}: claims", claims, 0 if whole else 1, "" if whole else "run.json"),
        Case(f"run.json is {text or 'empty'}: report", f"{damage}; repsim report --quiet f", 1, "run.json"),
        Case(f"run.json is {text or 'empty'}: redraw", f"{damage}; repsim figures --quiet --redraw f", 1, "run.json"),
    ]


def piped(file: str, command: str) -> Case:
    """A case of a pipe in place of a file of a finished run."""
    name = Path(file).name
    shell = f"cp -r given/figures given/cka .; rm -f {file}; mkfifo {file}; repsim {command}"
    return Case(f"pipe as {file}: {command.split()[0]}", shell, 1, f"{name}.* regular file", seconds=60)


def lone(variables: str, command: str = f"cka {A} {RUN}") -> Case:
    """A case of an environment that must not matter, though matplotlib and libgomp may complain of it."""
    return Case(f"environment {variables}", f"env {variables} repsim {command}", 0, other_lines=True)


TORCHRUN = "torchrun --nproc-per-node 2 -m repsim"

CASES = [
    # files that block the process that opens them
    Case("pipe among the images", f"cp -r given/images f; mkfifo f/p.png; repsim cka {A} --data f {RUN}", 0),
    cka("pipe as weights", "--weights-a p", 1, "'p' is a pipe", "mkfifo p;"),
    cka("device as weights", "--weights-a /dev/zero", 1, "'/dev/zero' is a device"),
    cka("folder as weights", "--weights-a d", 1, "'d' is a directory", "mkdir d;"),
    cka(
        "pipe beside an index",
        "--weights-a i.index.json",
        1,
        "no such file",
        'mkfifo p; echo \'{"weight_map": {"a": "p"}}\' > i.index.json;',
    ),
    cka("pipe as data", "--data p", 2, "'p' is no folder|no folder 'p'", "mkfifo p;"),
    cka("file as data", "--data /etc/hostname", 2, "no folder '/etc/hostname'"),
    cka("device as data", "--data /dev/zero", 2, "no folder '/dev/zero'"),
    piped("cka/cka.csv", "cka --quiet --redraw cka"),
    piped("cka/run.json", "cka --quiet --redraw cka"),
    piped("figures/figure-1/numbers.csv", "claims --quiet figures"),
    piped("figures/figure-1/run.json", "claims --quiet figures"),
    piped("figures/figure-1/run.json", "figures --quiet --redraw figures"),
    piped("figures/figure-1/cka.csv", "figures --quiet --redraw figures"),
    piped("figures/run.json", "report --quiet figures"),
    piped("figures/figure-1/cka.csv", "report --quiet figures"),
    # numbers beyond every bound
    *(bounded("cka", option) for option in ("--workers", "--images", "--batch-size", "--repeats")),
    *(bounded("probe", option) for option in ("--seeds", "--shots", "--neighbours", "--train-images")),
    bounded("probe", "-k", "k must be from 1 to"),
    bounded("receptive", "--channels"),
    bounded("figures 6", "--channels"),
    bounded("attention", "--maps"),
    bounded("heads", "--window", "a window holds 1 to 8 heads"),
    cka("workers 100000", "--workers 100000", 2, "--workers must be at most"),
    Case("repeats 99999999", f"repsim cka {A} {RUN} --repeats 99999999", 2, "--repeats must be at most"),
    Case("seeds 99999999", f"repsim probe {RUN} --seeds 99999999", 2, "--seeds must be at most"),
    # processes that die, and limits of the system
    Case("decoding killed once", f"python given/killed.py 1 cka {A} --data given/images --workers 2 {RUN}", 0),
    Case(
        "decoding killed always",
        f"python given/killed.py 99 cka {A} --data given/images --workers 2 {RUN}",
        1,
        "decod.*killed",
    ),
    Case("fd limit 16", f"ulimit -n 16; repsim cka {A} --data given/images --workers 2 {RUN}", 1, "open files"),
    Case("fd limit 64", f"ulimit -n 64; repsim cka {A} --data given/images --workers 2 {RUN}", 0),
    # arguments of models
    *(
        cka(f"argument {arg}", f"--weights-a random --arg-a {arg}".replace("vit_mini", ""), 2, words)
        for arg, words in {
            "depth=-1": "depth",
            "depth=99999": "depth",
            "depth=x": "depth",
            "nonsense=1": "nonsense",
            "width=-5": "width",
            "heads=0": "heads",
            "img_size=-1": "img_size",
            "img_size=0": "img_size",
            "img_size=99999999": "img_size",
            "img_size=x": "img_size",
            "=1": "KEY=VALUE",
            "num_classes=99999999999": "num_classes",
        }.items()
    ),
    *(
        Case(
            f"argument of timm {arg}",
            f"repsim cka --model-a vit_tiny_patch16_224 --weights-a random --data noise --arg-a {arg} {RUN}",
            2,
            words,
        )
        for arg, words in {
            "depth=-1": "depth",
            "depth=99999": "depth",
            "depth=x": "depth",
            "nonsense=1": "nonsense",
            "img_size=-1": "img_size",
            "img_size=99999999": "img_size",
            "img_size=x": "img_size",
            "embed_dim=99999999": "embed_dim",
            "in_chans=0": "in_chans",
            "pretrained=True": "pretrained",
            "pretrained_cfg=x": "pretrained_cfg",
            "checkpoint_path=/dev/zero": "path",
            "global_pool=x": "global_pool",
            "patch_size=0": "patch_size",
            "num_heads=0": "num_heads",
            "num_heads=7": "num_heads",
        }.items()
    ),
    # devices
    cka("device meta", "--device meta", 2, "meta"),
    cka("device nonsense", "--device nonsense", 2, "unknown device 'nonsense'"),
    cka("device empty", "--device ''", 2, "device"),
    cka("device cuda", "--device cuda", 1, "cuda"),
    cka("device cuda:99", "--device cuda:99", 1, "cuda"),
    *(
        cka(f"device {device}", f"--device {device}", 1, f"'{device}'")
        for device in ("mps", "xla", "xpu", "hpu", "mtia", "lazy", "privateuseone")
    ),
    # weights without values, and modules that have no parameters yet
    *(
        cka(f"weights {name}", f"--weights-a given/weights-{number}.pt", 1, words)
        for number, (name, words) in enumerate(
            {
                "sparse": "sparse Tensors is not implemented",
                "meta": "152 of another type .*without values",
                "lazy": "parameters of lazy modules",
                "empty": "it is empty",
            }.items()
        )
    ),
    *(
        Case(
            f"factory {name}",
            f"repsim cka --model-a strange:{name} --weights-a random --transform-a imagenet --data noise {RUN}",
            code,
            words,
        )
        for name, code, words in [
            ("meta", 1, "2 tensors without values, on the meta device"),
            ("lazy_unfit", 1, "first pass"),
            ("sparse", 1, "for sparse tensors"),
            ("number", 2, "it returned int"),
            ("uninitialised", 1, "without shapes after its first pass"),
        ]
    ),
    # damaged records
    *(
        case
        for text in ("", "{", "\\0\\0\\0", "[]", "null", "[1]", '{"random": true}', '{"notices": 3, "images": 4}')
        for case in damaged(text)
    ),
    # the environment
    lone("MPLBACKEND=nope"),
    Case("MPLBACKEND=nope: redraw", "cp -r given/cka .; MPLBACKEND=nope repsim cka --quiet --redraw cka", 0),
    Case("MPLBACKEND=nope: report", "cp -r given/figures .; MPLBACKEND=nope repsim report --quiet figures", 0),
    lone("OMP_NUM_THREADS=x"),
    lone("MPLCONFIGDIR=/proc/nowhere"),
    lone("TORCH_HOME=/proc/nowhere HF_HOME=/proc/nowhere XDG_CACHE_HOME=/proc/nowhere"),
    lone("-u HOME"),
    lone("HOME=/proc/nowhere"),
    lone("TMPDIR=/nowhere"),
    lone("COLUMNS=0 NO_COLOR=1"),
    lone("COLUMNS=x"),
    lone("COLUMNS=0", "cka --help >/dev/null; env COLUMNS=-3 repsim --help > /dev/null"),
    lone("LC_ALL=C PYTHONIOENCODING=ascii", f"cka {A} --data given/names {RUN}"),
    lone("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", f"cka {A} --data given/names {RUN}"),
    lone("LC_ALL=C PYTHONIOENCODING=ascii", f"cka {A} {RUN}ü --json > /dev/null"),
    lone("LANG=C PYTHONIOENCODING=ascii", "models > /dev/null"),
    Case(
        "environment LC_ALL=C: broken image named in Greek",
        f"cp -r given/names n; echo no > n/α.png; LC_ALL=C PYTHONIOENCODING=ascii repsim cka {A} --data n {RUN}",
        1,
        "cannot read image",
    ),
    Case(
        "REPSIM_IMAGENET leads nowhere",
        f"REPSIM_IMAGENET=/nowhere repsim cka --model-a resnet18 --weights-a random {RUN}",
        2,
        "REPSIM_IMAGENET",
    ),
    Case(
        "REPSIM_IMAGENET is a pipe",
        f"mkfifo p; REPSIM_IMAGENET=p repsim cka --model-a resnet18 --weights-a random {RUN}",
        2,
        "REPSIM_IMAGENET",
    ),
    Case(
        "unwritable cache, pretrained",
        f"HF_HOME=/proc/nowhere repsim cka --model-a vit_b16 --data noise {RUN}",
        1,
        "cannot get the weights",
    ),
    # the places where output goes
    Case("models into a full disk", "repsim models > /dev/full", 1, "standard output: No space left"),
    Case("help into a full disk", "repsim --help > /dev/full", 1, "standard output: No space left"),
    Case("help of a command into a full disk", "repsim cka --help > /dev/full", 1, "standard output: No space left"),
    Case("claims into a full disk", "cp -r given/figures .; repsim claims figures > /dev/full", 1, "standard output"),
    Case("JSON into a full disk", f"repsim cka {A} {RUN} --json > /dev/full", 1, "standard output"),
    Case("models, stdout closed", "repsim models >&-", 1, "standard output"),
    Case("cka, stdout closed", f"repsim cka {A} {RUN} >&-", 0),
    Case(
        "cka, everything closed",
        f"repsim cka {A} {RUN} --data given/images --workers 2 <&- >&- 2>&-; rc=$?; test -s out/cka.csv && exit $rc",
        0,
    ),
    Case("models | head", "repsim models | head -1 > /dev/null; test ${PIPESTATUS[0]} -le 1", 0),  # 0 if head came late
    Case("models, reader gone", "repsim models | true; exit ${PIPESTATUS[0]}", 1),
    Case("cka, stderr closed", f"repsim cka {A} --images 8 --batch-size 4 --out out 2>&-", 0),
    Case("cka, stderr full", f"repsim cka {A} --images 8 --batch-size 4 --out out 2>/dev/full", 0),
    Case(
        "cka, reader of stderr gone",
        f"set -o pipefail; repsim cka {A} --images 8 --batch-size 4 --out out 2>&1 | true",
        0,
    ),
    Case("wrong call, stderr closed", "repsim cka --model-a nope 2>&-", 2),
    Case("wrong call, stderr full", "repsim cka --model-a nope 2>/dev/full", 2),
    # several processes; the exit code of torchrun is 1 whatever the codes of its processes, and it ends with a rule
    *(
        Case(
            f"torchrun: {name}",
            f"{TORCHRUN} cka {options} {RUN} 2> all; rc=$?; tail -n 2 all | sed -n '1s/.* : //p' >&2; exit $rc",
            1,
            says,
        )
        for name, options, says in [
            ("wrong option", "--nonsense", "no such option"),
            ("wrong model", "--model-a nope", "unknown model 'nope'"),
            ("no weights", "--model-a resnet18 --data noise", "cannot get the weights"),
        ]
    ),
]

FIXTURES = """
import json, os, sys
import numpy as np, torch
from PIL import Image
from torch import nn
import repsim as rs
from repsim.cli import main

os.makedirs("images"), os.makedirs("names")
for i in range(8):
    picture = Image.fromarray(np.random.default_rng(i).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    picture.save(f"images/{i}.png"), picture.save(f"names/ü{i}.png")
open(b"names/\\xff.png", "wb").write(open("images/0.png", "rb").read())
state = rs.load_model("vit_mini").module.state_dict()
name = next(key for key, value in state.items() if value.ndim == 2)
sparse, meta = {**state, name: state[name].to_sparse()}, {key: value.to("meta") for key, value in state.items()}
for i, weights in enumerate([sparse, meta, nn.LazyLinear(3).state_dict(), {}]):
    torch.save(weights, f"weights-{i}.pt")
for arguments in (["cka", "--out", "cka"], ["figures", "1", "2", "7", "--out", "figures"]):
    main([*arguments, "--quiet", "--images", "16", "--batch-size", "8"], standalone_mode=False)
"""
STRANGE = """
import torch
from torch import nn


def meta():
    with torch.device("meta"):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2))


def lazy_unfit():
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(7, 2))


def sparse():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2))
    module[1].weight = nn.Parameter(torch.zeros(2, 3 * 224 * 224).to_sparse())
    return module


def number():
    return 3


class Never(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.weight = nn.UninitializedParameter()

    def forward(self, x):
        return self.conv(x)


def uninitialised():
    return Never()
"""
KILLED = '''
"""Runs repsim, and kills a process that decodes images as often as the first argument says."""
import os, signal, sys

if __name__ == "__main__":
    from repsim.images import sources
    from repsim.cli import main

    load, me = sources.Files.load, os.getpid()

    def killed(self, index):
        if os.getpid() != me:
            for n in range(int(sys.argv[1])):
                try:
                    os.close(os.open(f"killed-{n}", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return load(self, index)

    sources.Files.load = killed
    main(sys.argv[2:])
'''


def prepare(given: Path) -> None:
    """Write the images, weights and finished runs that the cases use."""
    given.mkdir()
    (given / "strange.py").write_text(STRANGE)
    (given / "killed.py").write_text(KILLED)
    (given / "bin").mkdir()
    (given / "bin" / "repsim").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m repsim "$@"\n')
    (given / "bin" / "repsim").chmod(0o755)
    subprocess.run([sys.executable, "-c", FIXTURES], cwd=given, check=True, env=environment(given))


def environment(given: Path) -> dict[str, str]:
    path = f"{given / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    python = f"{ROOT}:{given}"
    return {**os.environ, "PATH": path, "PYTHONPATH": python, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(case: Case, given: Path, work: Path) -> str:
    """Run a case, and return the ways in which its outcome is wrong, or an empty string."""
    work.mkdir()
    (work / "given").symlink_to(given)
    with (work / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            ["bash", "-c", case.shell],
            cwd=work,
            env=environment(given),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = process.wait(case.seconds)
        except subprocess.TimeoutExpired:
            return f"it had not ended after {case.seconds} s"
        finally:
            left = end(process.pid)
    said = (work / "stderr").read_text(errors="replace").splitlines()
    said = [line for line in said if line.strip()]
    return "; ".join(wrongs(case, code, said)) + (f"; {left} processes were left" if left else "")


def end(session: int) -> int:
    """End the processes that a case left, and return their number."""
    left = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _session(p) == session]
    for process_id in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    return len(left)


def _session(process: Path) -> int | None:
    try:
        state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(session)


def wrongs(case: Case, code: int, said: list[str]) -> list[str]:
    wrong = [] if code == case.code else [f"its exit code is {code}, not {case.code}"]
    shown = " | ".join(said[-2:])[-300:]
    if any("Traceback" in line for line in said):
        wrong.append(f"a traceback: {shown}")
    elif case.says and not (said and said[-1].startswith("Error: ") and re.search(case.says, said[-1], re.I)):
        wrong.append(f"it does not say {case.says!r} last: {shown}")
    elif len(said) > bool(case.says) and not case.other_lines:
        wrong.append(f"it says {len(said)} lines: {shown}")
    return wrong


def main() -> int:
    cases = [case for case in CASES if not sys.argv[1:] or any(word in case.name for word in sys.argv[1:])]
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as pool:
        given = Path(place) / "given"
        prepare(given)

        def timed(number: int) -> tuple[str, float]:
            started = time.perf_counter()
            return run(cases[number], given, Path(place) / str(number)), time.perf_counter() - started

        failed = 0
        for case, (wrong, seconds) in zip(cases, pool.map(timed, range(len(cases)))):
            failed += bool(wrong)
            print(
                f"{'FAIL' if wrong else 'ok  '} {seconds:5.1f} s  {case.name}" + (f": {wrong}" if wrong else ""),
                flush=True,
            )
    print(f"{len(cases) - failed} of {len(cases)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
