"""Nothing hangs, and every failure is one line; `hostile.py` tries more cases, as a user would."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partialmethod

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import repsim as rs
from repsim.cli import main
from repsim.cli.words import say
from repsim.images import loading, sources
from repsim.networks import models
from repsim.networks.checkpoints import no_file
from repsim.networks.models import EvalTransform
from repsim.tables import load_arrays, load_record, load_table, regular, save_record

SMALL = EvalTransform((3, 8, 8))


@pytest.fixture(autouse=True)
def soon():
    """A test that waits for ever fails."""

    def late(number, frame):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def one_line(*arguments, code):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert isinstance(result.exception, SystemExit) and result.exit_code == code, result.exception
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


# Files that are opened


@pytest.mark.parametrize("read", [load_table, load_arrays, load_record, regular])
def test_a_pipe_is_not_opened(read, tmp_path):
    os.mkfifo(tmp_path / "p")
    with pytest.raises(rs.RepsimError, match="p: it must be a regular file, and it is a pipe$"):
        read(tmp_path / "p")


def test_weights_that_are_no_file_are_named_for_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "p")
    assert str(no_file(str(tmp_path / "p"))).endswith("p' is a pipe")
    assert str(no_file("/dev/null")).endswith("'/dev/null' is a device")
    assert str(no_file("nowhere")).endswith("there is no file 'nowhere'")


def test_a_pipe_in_a_local_model_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(rs.RepsimError, match="config.json: it must be a regular file, and it is a pipe$"):
        rs.load_model(f"local-dir:{tmp_path}", weights="random")


# Numbers


@pytest.mark.parametrize(
    "arguments",
    [
        *(["cka", option, 10**20] for option in ("--workers", "--images", "--batch-size", "--repeats")),
        *(["probe", option, 10**20] for option in ("--seeds", "--shots", "--neighbours", "--train-images")),
        ["cka", "--workers", 257],
        ["cka", "--repeats", 10_001],
        ["receptive", "--channels", 10**20],
        ["figures", "6", "--channels", 10**20],
        ["attention", "--maps", 101],
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_a_number_without_measure_is_refused_with_its_bound(arguments, tmp_path):
    line = one_line(*arguments, "--out", tmp_path / "o", code=2)
    assert f"{arguments[-2]} must be at most" in line and line.endswith(f"got {arguments[-1]}\n")
    assert not (tmp_path / "o").exists()


# Processes that decode


@pytest.fixture
def watchful(monkeypatch):
    """The loader checks every 0.2 seconds whether its processes live, where torch checks every 5 seconds."""
    often = partialmethod(loading._Processes._try_get_data, 0.2)
    monkeypatch.setattr(loading._Processes, "_try_get_data", often)


def batches(workers, **options):
    loaded = rs.ImageSet("noise", images=100, seed=3).batches([SMALL], 40, workers=workers, short=True, **options)
    return [(batch.positions, batch.inputs[SMALL]) for batch in loaded]


def dying(tmp_path, times, at=50):
    """A `load` that kills the processes that reach image `at`, as many of them as `times`."""
    load, here = sources.Noise.load, os.getpid()

    def killed(self, index):
        number = len(os.listdir(tmp_path))
        if os.getpid() != here and index == at and number < times:
            (tmp_path / str(number)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, index)

    return killed


def test_a_decoding_process_that_is_killed_once_changes_nothing(tmp_path, monkeypatch, watchful):
    whole, state = batches(0), torch.get_rng_state()
    monkeypatch.setattr(sources.Noise, "load", dying(tmp_path, 1))
    again = batches(2)
    assert len(os.listdir(tmp_path)) == 1 and len(again) == len(whole) == 3
    assert all(torch.equal(a, b) for one, other in zip(whole, again) for a, b in zip(one, other))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_decoding_process_that_is_killed_again_is_an_error(tmp_path, monkeypatch, watchful):
    monkeypatch.setattr(sources.Noise, "load", dying(tmp_path, 9))
    with pytest.raises(rs.RepsimError, match="^a process that decodes images was killed, .*--workers 0$"):
        batches(2)
    assert len(os.listdir(tmp_path)) == 2


def test_an_error_of_a_transform_is_not_taken_for_a_death():
    def wrong(image):
        raise ZeroDivisionError("of the transform")

    with pytest.raises(ZeroDivisionError, match="of the transform"):
        next(rs.ImageSet("noise", images=8).batches([wrong], 4, workers=1))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("lack", [errno.EMFILE, errno.ENOMEM])
def test_what_the_system_lacks_is_no_broken_image(workers, lack, monkeypatch, watchful):
    def load(self, index):
        raise OSError(lack, os.strerror(lack))

    monkeypatch.setattr(sources.Noise, "load", load)
    with pytest.raises(rs.RepsimError, match=os.strerror(lack)) as found:
        batches(workers, skip_broken=True)
    assert not isinstance(found.value, rs.images.image_set.BrokenImage)


FEW_FILES = """
import multiprocessing, os, resource
multiprocessing.set_start_method("fork", force=True)  # as in a process that a user starts
import repsim as rs
from repsim.networks.models import EvalTransform
files = open({out!r}, "w")
os.dup2(files.fileno(), 2)
images = rs.ImageSet("noise", images=640)
limit = len(os.listdir("/proc/self/fd")) + {more}
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    files.write(str(sum(len(b.positions) for b in images.batches([{transform!r}], 640, workers=2))))
except rs.RepsimError as error:
    files.write(str(error))
"""


@pytest.mark.parametrize("more", [0, 8, 12, 20, 300])
def test_too_few_open_files_are_said(more, server, tmp_path):
    """Too few open files are an error, and nobody waits for a piece of a batch that cannot be handed over."""
    code = FEW_FILES.format(out=str(tmp_path / "said"), more=more, transform=SMALL)
    process = server.Process(target=exec, args=(code,))
    process.start()
    process.join(50)
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 0 and "\n" not in said
    assert said == "640" if more == 300 else "Too many open files" in said


# Networks


@pytest.mark.parametrize(
    "args, words",
    [
        ({"depth": -1}, "depth=-1"),
        ({"depth": "x"}, "depth='x'"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_classes": 10**13}, "num_classes=10000000000000"),
        ({"img_size": 0}, "img_size of NAME must be a whole number from 1 on, got 0"),
        ({"img_size": "x"}, "img_size of NAME must be a whole number from 1 on, got 'x'"),
        ({"img_size": 10**8}, "img_size=100000000"),
        ({"in_chans": 0}, "in_chans of NAME must be"),
        ({"checkpoint_path": "x.pt"}, "checkpoint_path is not a model argument here"),
        ({"nonsense": 1}, "nonsense"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["vit_mini", "vit_tiny_patch16_224"])
def test_arguments_that_no_network_is_built_with(name, args, words):
    with pytest.raises(rs.UsageError) as error:
        rs.load_model(name, weights="random", **args)
    assert words.replace("NAME", name) in str(error.value) and "\n" not in str(error.value)


def test_a_network_is_refused_while_it_grows(monkeypatch):
    """Parameters are counted while a network is built; `vit_micro` has 12 in each of 6 blocks, and 8 further ones."""
    monkeypatch.setattr(models, "TENSORS", 80)
    assert len(list(rs.load_model("vit_micro", weights="random").module.parameters())) == 80
    with pytest.raises(rs.UsageError, match="^vit_mini with depth=99999 is too large: it has more than 80 parameters$"):
        rs.load_model("vit_mini", weights="random", depth=99999)
    nn.Sequential(*(nn.Linear(1, 1) for _ in range(100)))  # parameters are not counted any more


def test_a_network_larger_than_memory_is_refused(monkeypatch):
    monkeypatch.setattr("repsim.networks.models.physical", lambda: 2**20)
    with pytest.raises(rs.UsageError, match="too large: it has more than the 0 GiB of this machine"):
        rs.load_model("vit_mini", weights="random")


@pytest.mark.parametrize(
    "device, kind, words",
    [
        ("meta", rs.UsageError, "have no values"),
        ("nonsense", rs.UsageError, "unknown device 'nonsense'"),
        ("", rs.UsageError, "unknown device ''"),
        ("hpu", rs.RepsimError, "cannot put vit_mini on device 'hpu'"),
        ("privateuseone", rs.RepsimError, "cannot put vit_mini on device 'privateuseone'"),
    ],
)
def test_devices_that_are_none(device, kind, words):
    with pytest.raises(kind, match=words):
        rs.load_model("vit_mini", device=device)


def test_an_empty_device_is_not_the_default(tmp_path):
    assert "--device is empty" in one_line("cka", "--device", "", "--out", tmp_path / "o", code=2)


def test_parameters_that_no_pass_gives_a_shape_are_an_error():
    module = nn.Sequential(nn.Conv2d(3, 3, 3))
    module.never = nn.LazyLinear(2)
    module.forward = lambda x: module[0](x)
    with pytest.raises(rs.RepsimError, match=r"has 2 parameters without shapes after its first pass \(never.weight"):
        models.with_values(rs.Network(module, "net", transform="imagenet"))


# Records


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "Expecting value"),
        ('{"random": tr', "Expecting value"),
        ("\0\0\0", "Expecting value"),
        ("[]", "a run's record is a JSON object, this is a list"),
        ("null", "this is a NoneType"),
        ("[" * 100_000, "recursion"),
        ('{"preset": "mini"}', "lacks random"),
        ('{"random": "no"}', "'random' must be a bool, got 'no'"),
        ('{"random": true, "notices": 3}', "'notices' must be a list, got 3"),
        ('{"random": true, "images": []}', "'images' must be a dict, got []"),
    ],
    ids=range(10),
)
def test_a_damaged_record_is_named(text, words, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(text)
    with pytest.raises(rs.RepsimError) as error:
        load_record(file, "random")
    assert str(file) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "null", '{"random": 1}', '{"random": fal'])
@pytest.mark.parametrize("command", ["cka --matched --redraw", "claims", "report", "figures --redraw"])
def test_commands_say_which_record_is_damaged(command, text, finished):
    for file in finished.rglob("run.json"):
        file.write_text(text)
    assert "run.json" in one_line(*command.split(), finished, code=1)


def test_a_figure_of_no_known_preset(finished):
    save_record({"random": False, "preset": "x"}, finished / "figure-1" / "run.json")
    assert "its preset must be mini, paper or own, got 'x'" in one_line("figures", "--redraw", finished, code=1)


# Streams and the environment


def repsim(shell, **environment):
    """Run a command in a process of its own; give its exit code and its text on standard error."""
    script = f'repsim() {{ "{sys.executable}" -m repsim "$@"; }}; {shell}'
    done = subprocess.run(["bash", "-c", script], env={**os.environ, **environment}, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("buffered", ["", "1"])
def test_standard_output_that_takes_nothing_is_one_line(buffered):
    line = "Error: cannot write to standard output: {}\n"
    environment = {"PYTHONUNBUFFERED": buffered}
    assert repsim("repsim --help > /dev/full", **environment) == (1, line.format("No space left on device"))
    assert repsim("repsim cka --help >&-", **environment) == (1, line.format("Bad file descriptor"))


@pytest.mark.parametrize("buffered", ["", "1"])
def test_output_that_nobody_reads_is_no_error_to_report(buffered):
    code, said = repsim("repsim cka --help | true; exit ${PIPESTATUS[0]}", PYTHONUNBUFFERED=buffered)
    assert code in (0, 1) and said == ""  # 0 if all was written before the reader was gone


@pytest.mark.parametrize("stderr", ["2>&-", "2> /dev/full"])
def test_the_exit_code_does_not_depend_on_standard_error(stderr, tmp_path):
    assert repsim(f"repsim claims {tmp_path} {stderr}") == (2, "")


def test_a_message_that_cannot_be_said_ends_no_run(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        say("something", False)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_claims_of_any_letters_in_any_encoding(finished):
    file = finished / "figure-1" / "numbers.csv"
    file.write_text(file.read_text().replace("a - b", "α - b"), encoding="utf-8")
    assert repsim(f"repsim claims {finished}", PYTHONIOENCODING="ascii", LC_ALL="C") == (0, "")


def test_pictures_are_drawn_whatever_shows_others(finished):
    assert repsim(f"repsim cka --matched --quiet --redraw {finished}", MPLBACKEND="nope") == (0, "")
    assert (finished / "matched.png").exists()


def test_main_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    CliRunner().invoke(main, ["--help"])
    assert os.environ["MPLBACKEND"] == "agg"


# Several processes


@pytest.mark.parametrize(
    "arguments, code, words", [(["cka", "--nonsense"], 2, "No such option"), (["claims", "nowhere"], 2, "there are no")]
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_torchrun_finds_the_line(arguments, code, words, rank, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("repsim.passes.processes.join", lambda: None)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code and (words in result.stderr) == (rank == "0")
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message.startswith("Error: ") and words in message


WAITS = """
import os
os.environ.update({environment})
from repsim.passes import processes
from repsim.errors import RepsimError
processes.join()
if {rank}:
    os._exit(9)
try:
    processes.{call}
except RepsimError as error:
    open({file!r}, "w").write(str(error))
os._exit(0)
"""


@pytest.mark.parametrize("call", ["wait()", "gathered(1)", "reduced(1, max, 'cpu')", "leave()"])
def test_who_waits_for_a_process_that_ended_says_so(call, server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
        code = WAITS.format(environment=environment, rank=rank, call=call, file=str(tmp_path / "said"))
        started.append(server.Process(target=exec, args=(code,)))
        started[-1].start()
    for process in started:
        process.join(40)
    assert [process.exitcode for process in started] == [0, 9]
    said = (tmp_path / "said").read_text()
    assert said.startswith("process 0 of 2 waits for another that has ended") and "\n" not in said
