"""The memory that is free, the plan of a pass that fits into it, and the message where a pass does not fit."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import FAMILIES
from every_study import COARSE, STUDIES

import repsim as rs
from repsim.cli import main
from repsim.networks import memory
from repsim.networks.tracing import Trace, _Alive
from repsim.passes import plan as planning
from repsim.passes.plan import Runs, Takes, limited, plan
from repsim.passes.sweep import sweep
from repsim.studies.similarity import LayerSimilarity

MIB = 2**20


# Free memory


@pytest.mark.parametrize(
    ("text", "size"), [("8G", 2**33), ("1.5 GiB", 3 * 2**29), ("500M", 500 * MIB), ("2mb", 2 * MIB), ("4096", 4096)]
)
def test_sizes(text, size):
    assert memory.parse(text) == size


def test_a_share_is_of_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 1000)
    monkeypatch.setattr(planning, "free", lambda: 1000)
    assert memory.parse("50%") == 500
    with limited() as budget:
        assert budget == 750


@pytest.mark.parametrize("text", ["", "0", "-1G", "nan", "8X", "101%", "0%", "1e3G", "9" * 30, "8 G B"])
def test_sizes_that_are_none(text):
    with pytest.raises(rs.UsageError, match="memory is given as 8G"):
        memory.parse(text)


GROUPS = {
    "version 2": (
        "0::/job/step",
        {"memory.max": "3000", "memory.current": "1000", "memory.stat": "anon 5\ninactive_file 400\n"},
    ),
    "version 1": (
        "5:memory:/job/step",
        {
            "memory.limit_in_bytes": "3000",
            "memory.usage_in_bytes": "1000",
            "memory.stat": "inactive_file 9\ntotal_inactive_file 400\n",
        },
    ),
}


@pytest.mark.parametrize("version", GROUPS)
@pytest.mark.parametrize("group", ["job", "job/step"])
def test_a_container_may_take_less_than_the_machine_has(version, group, tmp_path, monkeypatch):
    line, files = GROUPS[version]
    root = tmp_path / ("memory" if "memory" in line else "")
    (root / "job/step").mkdir(parents=True)
    for name, text in files.items():
        (root / group / name).write_text(text)
    real = memory.Path
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / "own" if path == "/proc/self/cgroup" else real(path))
    (tmp_path / "own").write_text(f"1:cpu:/other\n{line}\n")
    assert memory.free() == 3000 - (1000 - 400)
    assert memory.physical() == 3000
    (root / group / next(iter(files))).write_text("max" if version == "version 2" else str(2**63 - 4096))
    assert memory.free() > MIB


def test_a_process_may_have_a_limit_of_its_own():
    program = (
        "import resource; from repsim.networks import memory; import psutil\n"
        "had = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (had + 50 * 2**20, resource.RLIM_INFINITY))\n"
        "print(memory.free() / 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 20 < float(done.stdout) <= 50


# How a pass is planned

SUMS = Takes(sums=100, batch=200, tables=50, waiting=20, less="fewer --layers")
VIT = Runs("vit", image=1, peak=10)


def total(sums=100, batch=200, waiting=0, images=8, at_once=8, peak=10):
    return sums + batch + waiting + planning.AHEAD * images + int(planning.BESIDE * peak * at_once)


def test_a_batch_goes_through_whole_where_it_fits_and_in_pieces_where_not():
    with limited(total()):
        planned = plan(lambda size: SUMS, [VIT], 8)
    assert planned.total == total() and planned.at_once == {}
    with limited(total(waiting=20, at_once=4) - 1):
        planned = plan(lambda size: SUMS, [VIT], 8)
    assert planned.at_once == {"vit": 2}
    with limited(5100):
        planned = plan(lambda size: Takes(sums=100, batch=200, tables=5000), [VIT], 8)
    assert planned.total == 5100


def test_what_does_not_fit_is_refused_with_what_would():
    def takes(size):
        return Takes(sums=100, batch=1000 * size * size, less="fewer --layers")

    with limited(20_000), pytest.raises(rs.UsageError, match="--batch-size 4 fits, or fewer --layers$"):
        plan(takes, [VIT], 64)
    with limited(50), pytest.raises(rs.UsageError, match="; fewer --layers$"):
        plan(takes, [VIT], 64)


def test_a_batch_that_gradients_need_whole_is_not_cut():
    whole = Runs("vit", image=1, peak=10, whole=True)
    with limited(total() - 1), pytest.raises(rs.UsageError, match="--batch-size 4 fits"):
        plan(lambda size: SUMS, [whole], 8)


@pytest.mark.parametrize("family", ["vit", "resnet18", "swin", "convnext"])
def test_what_a_network_takes_is_in_proportion_to_its_images(family):
    network = FAMILIES[family].load()
    images = torch.randn(8, *network.input_size)
    with torch.no_grad(), _Alive() as alive:
        network.module(images)
    trace = Trace.of(network)
    assert trace.peak <= trace.made
    assert alive.peak / 8 == pytest.approx(trace.peak, rel=0.1)


# The studies

IMAGES = rs.ImageSet("sample", images=64)


@pytest.fixture
def plans(monkeypatch):
    """The passes that were planned, each with the request and the plan."""
    passes, fitting = [], planning._fitting

    def planned(*request):
        passes.append((request, fitting(*request)))
        return passes[-1][1]

    monkeypatch.setattr(planning, "_fitting", planned)
    return passes


UNCUT = ("cka", "localize", "probe")
"""Studies that pieces do not save memory: what waits for the rest of a batch takes more, or training does."""


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_says_what_it_takes_and_takes_pieces_or_is_refused(name, vit, resnet, plans):
    said = []
    with limited("64G", said.append):
        whole = STUDIES[name](vit, resnet, IMAGES)
    assert said and all(line.startswith("memory: ") and " for sums, " in line for line in said)
    tightest = []
    for (takes, networks, size, _), whole_batches in list(plans):
        pieces = min(planning._planned(takes(size), networks, size, size >> k).total for k in range(1, 6))
        tightest.append(min(pieces, whole_batches.total))
        assert 0 < whole_batches.takes.batch < whole_batches.batch
    if not STUDIES[name].gradients:
        plans.clear()
        with limited(max(tightest)):
            assert_same(STUDIES[name](vit, resnet, IMAGES), whole)
        assert any(planned.at_once for _, planned in plans) == (name not in UNCUT)
    with limited(MIB), pytest.raises(rs.UsageError, match="of memory .* MiB may be taken, .*; .+"):
        STUDIES[name](vit, resnet, IMAGES)


def assert_same(again, whole):
    for column, values in again.items():
        np.testing.assert_allclose(values, whole[column], rtol=1e-4, atol=COARSE.get(column, 1e-5), err_msg=column)


def test_pieces_are_said_and_recorded(vit, plans):
    def counts():
        return sweep(IMAGES, [LayerSimilarity([vit], [rs.find_layers(vit, ["blocks.11"])])], batch_size=32).record()

    with limited("64G"):
        assert "forward_batch_sizes" not in counts()
    takes, networks, size, _ = plans[0][0]
    said = []
    with limited(planning._planned(takes(size), networks, size, 8).total, said.append):
        assert counts()["forward_batch_sizes"] == {"vit_mini": 8}
    assert ", 8 images at a time, " in said[0]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 12 bytes"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_lack_of_memory_of_any_kind_halves_the_batch(error, vit):
    sizes = []

    def run_out(module, arguments):
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > 16:
            raise error

    hook = vit.module.blocks[5].register_forward_pre_hook(run_out)
    try:
        rs.layer_cka(vit, images=IMAGES, layers=["blocks.3"], batch_size=32)
    finally:
        hook.remove()
    assert sizes[-5:] == [32, 16, 16, 16, 16]


def test_another_error_is_not_taken_for_lack_of_memory(vit):
    def fail(module, arguments):
        if len(arguments[0]) > 4:
            raise RuntimeError("expected scalar type Half but found Float")

    hook = vit.module.blocks[5].register_forward_pre_hook(fail)
    try:
        with pytest.raises(rs.RepsimError, match="failed on batch 0, 32 images: expected scalar type"):
            rs.layer_cka(vit, images=IMAGES, batch_size=32)
    finally:
        hook.remove()


# The command line


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_commands_say_what_they_take_and_refuse_in_one_line(tmp_path):
    asked = ["cka", "--model-a", "vit_mini", "--images", "64", "--batch-size", "32", "--layers", "blocks"]
    done = run(*asked, "--out", tmp_path / "a")
    assert done.exit_code == 0 and "memory: " in done.stderr
    quiet = run(*asked, "--out", tmp_path / "b", "--quiet")
    assert quiet.exit_code == 0 and "memory: " not in quiet.stderr
    refused = run(*asked, "--out", tmp_path / "c", "--memory", "1M")
    assert refused.exit_code == 2 and not (tmp_path / "c").exists()
    assert "1 MiB may be taken" in refused.stderr.splitlines()[-1]
    wrong = run(*asked, "--out", tmp_path / "c", "--memory", "much")
    assert wrong.exit_code == 2 and "memory is given as 8G" in wrong.stderr and not (tmp_path / "c").exists()


def test_a_fine_map_is_listed_in_part_kept_whole_and_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr("repsim.studies.localization.ROWS", 1000)
    out = tmp_path / "out"
    asked = ["localize", "--model", "vit_mini", "--images", "64", "--batch-size", "32", "--out", out]
    done = run(*asked, "--show", "2,3", "--quiet")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out / "localization.csv")
    assert set(zip(table.token_row, table.token_col)) == {(2, 3)}
    with np.load(out / "localization.npz") as arrays:
        last = table.layer.iloc[-1]
        cka = arrays[f"vit_mini/{last}/cka"]
        assert cka.shape == (49, 49)
        np.testing.assert_allclose(cka[2 * 7 + 3], table[table.layer == last].cka, atol=1e-6)
    drawn = (out / "localization.png").read_bytes()
    again = run("localize", "--redraw", out, "--show", "2,3", "--quiet")
    assert again.exit_code == 0 and (out / "localization.png").read_bytes() == drawn
    other = run("localize", "--redraw", out, "--show", "0,0", "--quiet")  # all tokens are there to be drawn
    assert other.exit_code == 0 and (out / "localization.png").read_bytes() != drawn


def test_the_finest_grid_is_asked_for(tmp_path):
    asked = ["localize", "--model", "vit_mini", "--images", "64", "--batch-size", "32", "--out", tmp_path / "out"]
    done = run(*asked, "--grid", "4")
    assert done.exit_code == 0, done.output
    assert len(pd.read_csv(tmp_path / "out" / "localization.csv").query("layer == 'blocks.0'")) == 16 * 16
    assert run(*asked[:-1], tmp_path / "no", "--grid", "1").exit_code == 2
