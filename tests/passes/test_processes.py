"""Several processes, as torchrun starts them, find the same as one process."""

import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from every_study import STUDIES
from PIL import Image

FEW = ["--images", "52", "--batch-size", "8"]


def run(server, count: int, arguments: list[str], before: str = "") -> list[int]:
    """Run a command in `count` processes, each in the environment that torchrun gives it; return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if count > 1 else {}
    started = []
    for rank in range(count):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        code = f"import os; os.environ.update({environment}); {before}\nfrom repsim.cli import main; main({arguments})"
        started.append(server.Process(target=exec, args=(code,)))
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()  # a process that waits for ever
        process.join()
    return [process.exitcode for process in started]


def same_tables(one, several):
    names = sorted(path.name for path in one.glob("*.csv"))
    assert names and names == sorted(path.name for path in several.glob("*.csv"))
    for name in names:
        pd.testing.assert_frame_equal(*(pd.read_csv(place / name) for place in (one, several)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STUDIES)
def test_two_processes_find_what_one_finds(server, tmp_path, name):
    for count in (1, 2):
        out = ["--out", str(tmp_path / str(count)), "--quiet"]
        assert run(server, count, [*STUDIES[name].command.split(), *FEW, *out]) == [0] * count
    same_tables(tmp_path / "1", tmp_path / "2")


@pytest.mark.parametrize("images", ["52", "20"])  # two batches or more for each process; none for the third
def test_three_processes_find_what_one_finds(server, tmp_path, images):
    for count in (1, 3):
        out = ["--images", images, "--batch-size", "8", "--out", str(tmp_path / str(count)), "--quiet"]
        assert run(server, count, ["cka", "--model-a", "vit_mini", *out]) == [0] * count
    same_tables(tmp_path / "1", tmp_path / "3")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_pass_that_only_one_process_has_saved_whole(rank, server, tmp_path):
    """Processes that were killed while they saved a pass go on from the sums of the one that had saved it."""
    arguments = ["cka", "--model-a", "vit_micro", *FEW, "--repeats", "2", "--quiet"]
    keep = "from repsim.passes.resume import Resume; Resume._forget = lambda self: None"
    assert run(server, 2, [*arguments, "--out", str(tmp_path / "1")], keep) == [0, 0]
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    (tmp_path / "2" / ".repsim-resume" / f"pass-1-of-2-{rank}.pt").unlink()
    assert run(server, 2, [*arguments, "--out", str(tmp_path / "2")]) == [0, 0]
    same_tables(tmp_path / "1", tmp_path / "2")
    assert not (tmp_path / "2" / ".repsim-resume").exists()


def test_broken_images_are_the_same_for_all(server, tmp_path):
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8)).save(images / f"{i:02d}.png")
    for i in (3, 11, 30):
        (images / f"{i:02d}.png").write_text("no image")
    for count in (1, 2):
        data = ["--data", str(images), "--skip-broken", "--workers", "0", "--images", "40", "--batch-size", "6"]
        out = ["--out", str(tmp_path / "out" / str(count)), "--quiet"]
        assert run(server, count, ["cka", "--model-a", "vit_mini", *data, *out]) == [0] * count
    same_tables(tmp_path / "out" / "1", tmp_path / "out" / "2")
    one, two = (pd.read_json(tmp_path / "out" / n / "run.json", typ="series")["images"] for n in "12")
    assert one == two and one["broken_count"] == 3


def test_a_process_that_fails_ends_the_job(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "def die():\n"
        f"    while not os.path.exists({str(tmp_path / 'out' / '.repsim-resume' / 'about.json')!r}):\n"
        "        time.sleep(0.1)\n"
        "    time.sleep(0.5)\n"
        "    os._exit(7)\n"
        "if os.environ.get('RANK') == '1':\n"
        "    threading.Thread(target=die, daemon=True).start()\n"
    )
    repsim = ["-m", "repsim", "cka", "--images", "5000", "--batch-size", "4", "--out", str(tmp_path / "out")]
    job = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *repsim],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert job.returncode != 0 and "exitcode  : 7" in job.stderr, job.stderr[-2000:]


OWN = ["--network", "vit=vit_mini", "--network", "cnn=resnet_mini", "--data", "sample"]


@pytest.mark.parametrize("figure", [["1"], ["5"], ["7"], ["9", *OWN]])
def test_the_first_batch_of_each_process_is_the_same_again(figure, server, tmp_path):
    arguments = ["figures", *figure, "--images", "52", "--batch-size", "8", "--quiet", "--out", str(tmp_path / "out")]
    keep = "from repsim.passes.resume import Resume; Resume._forget = lambda self: None"
    assert run(server, 2, arguments, keep) == [0, 0]
    assert run(server, 2, arguments, keep) == [0, 0]
