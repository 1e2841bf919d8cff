"""Which weights of a file a network gets, and the hash of its weights."""

import json
import tarfile

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file, save_model
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import repsim as rs
from repsim.cli import main
from repsim.networks.models import as_network

SIZE = (3, 8, 8)
IMAGES = torch.rand(8, *SIZE, generator=torch.Generator().manual_seed(0))


def small(module: nn.Module) -> rs.Network:
    return rs.Network(module, "small", transform=rs.EvalTransform(input_size=SIZE))


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def plain() -> rs.Network:
    return small(layers())


def compiled() -> rs.Network:
    return small(torch.compile(layers(), backend="eager"))


def lazy() -> rs.Network:
    return small(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)))


def lazy_that_fails() -> rs.Network:
    return small(nn.Sequential(nn.LazyConv2d(4, 9)))


def on_meta() -> rs.Network:
    with torch.device("meta"):
        return plain()


def dynamic(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 5)).eval()
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)


def quantized() -> rs.Network:
    return small(dynamic())


def static(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    stubs = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
    net = nn.Sequential(stubs[0], nn.Conv2d(3, 4, 3), nn.ReLU(), stubs[1]).eval()
    net.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    prepared = torch.ao.quantization.prepare(net)
    prepared(IMAGES)
    return torch.ao.quantization.convert(prepared)


def recurrent(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(4, 4)).eval(), {nn.LSTM}, torch.qint8)


class WithExtra(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.conv, self.act, self.extra = nn.Conv2d(3, 4, 3), nn.ReLU(), extra
        nn.init.ones_(self.conv.weight)
        nn.init.ones_(self.conv.bias)

    def forward(self, x):
        return self.act(self.conv(x)).flatten(1)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, extra):
        self.extra = extra


def extra() -> rs.Network:
    return small(WithExtra({"version": 2}))


def unhashable() -> rs.Network:
    return small(WithExtra(lambda: 1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(192, 192, bias=False), nn.ReLU(), nn.Linear(192, 192, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.act(self.first(x.flatten(1))))


def tied() -> rs.Network:
    torch.manual_seed(0)
    return small(Tied())


def state(plus: float = 0, before: str = "") -> dict[str, torch.Tensor]:
    return {before + key: value + plus for key, value in layers().state_dict().items()}


def saved(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def shift(network: rs.Network) -> float:
    """The number that was added to the weights, which tells the sets of weights in a file apart."""
    return round((network.module[3].weight - layers()[3].weight).mean().item(), 3)


def repsim(model: str, out, *options: object):
    given = ["cka", "--model-a", f"test_weights:{model}", "--layers", "all", "--data", "noise", "--images", 8]
    given += ["--batch-size", 8, "--out", out, *options]
    return CliRunner().invoke(main, [str(argument) for argument in given])


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}


# One set of weights in a file


@pytest.mark.parametrize(
    "checkpoint",
    [
        state(1),
        state(1, "module."),
        state(1, "_orig_mod."),
        {"model": state(1), "optimizer": OPTIMIZER, "epoch": 3},
        {"state_dict": state(1, "model."), "pytorch-lightning_version": "2"},
        {"state_dict": state(1, "_orig_mod.module.")},
        {"model_state_dict": {key: value.half() for key, value in state(1).items()}},
    ],
)
def test_a_single_set_is_taken_without_a_word(tmp_path, checkpoint):
    network = rs.load_model("test_weights:plain", weights=saved(tmp_path, checkpoint))
    assert shift(network) == 1 and network.notices == () and "weights_keys" not in network.record()


def test_an_archive_of_long_ago_is_not_unpacked(tmp_path):
    """A tar archive is refused; PyTorch before 2.6 would extract it, to any place that its members name."""
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        archive.add(__file__, "storages")
    with pytest.raises(rs.RepsimError, match="cannot read .*old.pt as weights: it is a tar archive"):
        rs.load_model("test_weights:plain", weights=tmp_path / "old.pt")
    (tmp_path / "zeros.pt").write_bytes(bytes(2048))
    with pytest.raises(rs.RepsimError, match="cannot read .*zeros.pt as weights: (?!it is a tar)"):
        rs.load_model("test_weights:plain", weights=tmp_path / "zeros.pt")


def test_a_file_of_one_state_dict_has_no_keys(tmp_path):
    with pytest.raises(rs.UsageError, match="no weights key 'model' in .*mine.pt, which is one state dict"):
        rs.load_model("test_weights:plain", weights=saved(tmp_path, state()), weights_key="model")
    with pytest.raises(rs.UsageError, match="'random'"):
        rs.load_model("test_weights:plain", weights="random", weights_key="model")


# Several sets of weights in a file


EMA = {"state_dict": state(), "state_dict_ema": state(1), "optimizer": OPTIMIZER}
TWO = {"student": state(0, "backbone."), "teacher": state(1, "backbone.")}
FLAT = {"model": {**state(0, "student."), **state(1, "teacher.")}}
NESTED = {"model": {"raw": state(), "ema": state(1)}}


@pytest.mark.parametrize(
    ("checkpoint", "taken", "which"),
    [
        (EMA, "state_dict_ema", 1),
        ({"model": state(), "model_ema": state(1)}, "model_ema", 1),
        ({**EMA, "teacher": state(2)}, "state_dict_ema", 1),  # the set that timm takes
        ({"model": state(), "ema": state(1)}, "model", 0),  # timm knows no `ema`
        (NESTED, "model.ema", 1),
        ({"state_dict": {**state(0, "model."), **state(1, "ema_model.")}}, "state_dict.ema_model", 1),
        ({**state(), "model_ema": state(1)}, "model_ema", 1),
    ],
)
def test_which_of_several_is_taken_is_said(tmp_path, checkpoint, taken, which):
    network = rs.load_model("test_weights:plain", weights=saved(tmp_path, checkpoint))
    assert shift(network) == which
    (notice,) = network.notices
    assert f"; {taken} was taken; --weights-key chooses" in notice
    assert network.record()["weights_key"] == taken and taken in network.record()["weights_keys"]


@pytest.mark.parametrize(
    ("checkpoint", "key", "which"),
    [
        (EMA, "state_dict", 0),
        (EMA, "state_dict_ema", 1),
        (TWO, "student", 0),
        (TWO, "teacher.backbone", 1),
        (FLAT, "model.student", 0),
        (FLAT, "model.teacher", 1),
        (NESTED, "model.raw", 0),
        (NESTED, "model.ema", 1),
        ({**state(), "model_ema": state(1)}, ".", 0),
    ],
)
def test_a_key_chooses(tmp_path, checkpoint, key, which):
    network = rs.load_model("test_weights:plain", weights=saved(tmp_path, checkpoint), weights_key=key)
    assert shift(network) == which and network.name == f"small@mine:{key}"
    assert "as asked for" in network.notices[0]


def test_a_key_with_several_sets_below_it_does_not_ask_for_one(tmp_path):
    network = rs.load_model("test_weights:plain", weights=saved(tmp_path, NESTED), weights_key="model")
    assert "model.ema was taken; --weights-key chooses" in network.notices[0]


def test_a_key_that_is_not_there(tmp_path):
    file = saved(tmp_path, EMA)
    with pytest.raises(rs.UsageError, match="no weights key 'teacher' in .*mine.pt; it has state_dict and state_dict_"):
        rs.load_model("test_weights:plain", weights=file, weights_key="teacher")
    with pytest.raises(rs.UsageError, match="no weights of a network under 'optimizer' in .*mine.pt; it has state_d"):
        rs.load_model("test_weights:plain", weights=file, weights_key="optimizer")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_user_is_asked_where_no_set_is_the_usual_one(tmp_path, suffix):
    file = tmp_path / f"two.{suffix}"
    flat = {**state(0, "student."), **state(1, "teacher.")}
    torch.save(flat, file) if suffix == "pt" else save_file(flat, file)
    with pytest.raises(rs.RepsimError, match="holds student and teacher, and each fits .*--weights-key"):
        rs.load_model("test_weights:plain", weights=file)
    assert shift(rs.load_model("test_weights:plain", weights=file, weights_key="teacher")) == 1


def test_averaged_weights_that_do_not_fit_are_named(tmp_path):
    cut = {key: value[:1] for key, value in state(1).items()}
    network = rs.load_model("test_weights:plain", weights=saved(tmp_path, {"state_dict": state(), "model_ema": cut}))
    assert shift(network) == 0 and "model_ema, which cannot be taken" in network.notices[0]


def test_the_command_says_what_was_taken_and_takes_a_key(tmp_path):
    file = saved(tmp_path, EMA)
    result = repsim("plain", tmp_path / "out", "--weights-a", file)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    notice = f"{file} holds state_dict and state_dict_ema; state_dict_ema was taken; --weights-key chooses"
    assert result.exit_code == 0 and notice in result.stderr and notice in record["notices"]
    assert record["networks"][0]["weights_key"] == "state_dict_ema"
    average = record["networks"][0]["weights_sha256"]
    result = repsim("plain", tmp_path / "raw", "--weights-a", file, "--weights-key-a", "state_dict", "--quiet")
    record = json.loads((tmp_path / "raw" / "run.json").read_text())
    assert result.exit_code == 0 and record["networks"][0]["weights_key"] == "state_dict"
    assert record["networks"][0]["weights_sha256"] == plain().weights_sha256 != average
    result = repsim("plain", tmp_path / "no", "--weights-a", file, "--weights-key-a", "x")
    assert result.exit_code == 2 and "it has state_dict and state_dict_ema" in result.stderr
    assert "Traceback" not in result.output


def test_a_key_that_is_given_once_is_that_of_every_file():
    from repsim.cli.asked import each_model

    asked = each_model(("a", "b", "c"), ("x.pt", "random", "y.pt"), ("ema",), ())
    assert [choice.key for choice in asked] == ["ema", None, "ema"]
    asked = each_model(("a", "b"), ("x.pt",), ("raw", "ema"), ())
    assert [(choice.weights, choice.key) for choice in asked] == [("x.pt", "raw"), ("x.pt", "ema")]
    with pytest.raises(rs.UsageError, match="3 models and 2 weights keys"):
        each_model(("a", "b", "c"), ("x.pt",), ("raw", "ema"), ())


# The tensors of a file or a network


def test_tied_weights_of_which_the_file_has_one(tmp_path):
    trained = tied().module
    nn.init.normal_(trained.first.weight)
    save_model(trained, str(tmp_path / "tied.safetensors"))
    network = rs.load_model("test_weights:tied", weights=tmp_path / "tied.safetensors")
    assert torch.equal(network.module.last.weight, trained.first.weight)
    torn = {"first.weight": torch.zeros(192, 192), "last.weight": torch.ones(192, 192)}
    with pytest.raises(rs.RepsimError, match="one tensor in the network and two in the file"):
        rs.load_model("test_weights:tied", weights=saved(tmp_path, torn))


def test_lazy_networks_take_weights_from_files(tmp_path):
    network = rs.load_model("test_weights:lazy", weights=saved(tmp_path, state(1)))
    assert shift(network) == 1 and network.notices == ()
    file = saved(tmp_path, {**state(), "3.weight": torch.zeros(5, 7)})
    with pytest.raises(rs.RepsimError, match=r"1 of another shape \(3.weight \(5, 7\) instead of \(5, 144\)"):
        rs.load_model("test_weights:lazy", weights=file)
    file = saved(tmp_path, lazy().module.state_dict())
    with pytest.raises(rs.RepsimError, match="holds parameters of lazy modules"):
        rs.load_model("test_weights:plain", weights=file)


RESULTS = {"lazy": "were drawn at random", "quantized": "", "extra": "", "unhashable": "", "tied": "", "compiled": ""}


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, on quantised tensors
@pytest.mark.parametrize("name", RESULTS)
def test_results_by_command_as_in_python(tmp_path, name, monkeypatch):
    monkeypatch.setattr("repsim.cli.similarity.draw", lambda *given: None)
    result = repsim(name, tmp_path)
    assert result.exit_code == 0, result.output
    assert RESULTS[name] in result.stderr
    assert len(rs.layer_cka(globals()[name](), images=IMAGES, layers="all", batch_size=8).table) > 1
    hashed = json.loads((tmp_path / "run.json").read_text())["networks"][0]["weights_sha256"]
    assert hashed.startswith("cannot be hashed: ") if name == "unhashable" else len(hashed) == 64


LINES = {"lazy_that_fails": "its first pass must give 2 parameters of lazy modules", "on_meta": "on the meta device"}


@pytest.mark.parametrize("name", LINES)
def test_one_line_by_command_as_in_python(tmp_path, name):
    result = repsim(name, tmp_path / "out")
    assert result.exit_code == 1 and LINES[name] in result.stderr and len(result.stderr.strip().splitlines()) == 1
    with pytest.raises(rs.RepsimError, match=LINES[name]):
        rs.layer_cka(globals()[name](), images=IMAGES, layers="all", batch_size=8)


# Hashes


def test_the_same_weights_compiled_or_not_have_the_same_hash():
    whole, part, method = compiled().module, layers(), layers()
    part[0] = torch.compile(part[0], backend="eager")
    method.compile(backend="eager")
    for module in (whole, part, method):
        before = as_network(module).weights_sha256
        module(IMAGES)
        assert before == as_network(module).weights_sha256 == plain().weights_sha256


def test_names_that_wrapping_alone_tells_apart_stay_apart():
    def both(wrapped: float, bare: float) -> nn.Module:
        module = nn.Module()
        module._orig_mod, module.w = nn.Module(), nn.Parameter(torch.tensor(bare))
        module._orig_mod.w = nn.Parameter(torch.tensor(wrapped))
        return module

    assert as_network(both(1.0, 2.0)).weights_sha256 != as_network(both(3.0, 2.0)).weights_sha256
    assert as_network(both(1.0, 2.0)).weights_sha256 != as_network(both(1.0, 3.0)).weights_sha256


def holding(tensor: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.register_buffer("held", tensor)
    return module


ONE, OTHER = torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 4])
KINDS = {
    "float": lambda t: t,
    "bfloat16": torch.Tensor.bfloat16,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "complex": lambda t: t * 1j,
    "conjugate": lambda t: (t * 1j).conj(),
    "sparse": lambda t: t.diag().to_sparse(),
    "csr": lambda t: t.diag().to_sparse_csr(),
    "nested": lambda t: torch.nested.nested_tensor([t, t[:1]]),
    "strided": lambda t: t.repeat(2, 1).T,
    "number": lambda t: t.sum(),
    "nan": lambda t: t.log().where(t != 1, torch.nan),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "scale": lambda t: torch.quantize_per_tensor(t[2] * torch.ones(2), float(t[2]), 0, torch.qint8),
    "channels": lambda t: torch.quantize_per_channel(t.diag(), t, torch.zeros(3).long(), 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_kind_are_hashed_by_their_values(kind):
    a, b, c = (as_network(holding(KINDS[kind](t.clone()))).weights_sha256 for t in (ONE, ONE, OTHER))
    assert len(a) == 64 and a == b != c


def test_shapes_without_values_are_told_apart():
    a, b = (as_network(holding(torch.zeros(shape))).weights_sha256 for shape in ((0, 3), (3, 0)))
    assert a != b


def test_buffers_that_are_not_persistent_do_not_count():
    module = layers()
    module.register_buffer("seen", torch.ones(2), persistent=False)
    assert as_network(module).weights_sha256 == plain().weights_sha256


@pytest.mark.parametrize(
    ("one", "other"),
    [(None, 0), (1, 1.0), ({"a": 1}, {"a": 2}), ((1,), [1]), (b"a", b"b"), ({"a", "b"}, {"a", "c"}), (ONE, OTHER)],
)
def test_extra_state_counts(one, other):
    a, b, c = (as_network(WithExtra(extra)).weights_sha256 for extra in (one, one, other))
    assert a == b != c


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [dynamic, static, recurrent])
def test_packed_weights_count(make):
    a, b, c = (as_network(make(seed)).weights_sha256 for seed in (0, 0, 1))
    assert len(a) == 64 and a == b != c


@pytest.mark.parametrize("parts", ["weight_norm", "parameter_dict"])
def test_parameters_in_other_places_count(parts):
    def module_with(value: float) -> nn.Module:
        torch.manual_seed(0)
        module = weight_norm(nn.Linear(3, 3)) if parts == "weight_norm" else nn.ParameterDict({"a": torch.ones(2)})
        with torch.no_grad():
            next(p for name, p in module.named_parameters() if name != "bias").add_(value)
        return module

    assert (
        as_network(module_with(0)).weights_sha256
        == as_network(module_with(0)).weights_sha256
        != as_network(module_with(1)).weights_sha256
    )
