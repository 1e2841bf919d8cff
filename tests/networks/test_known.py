"""Wrong names of networks are refused before anything heavy is imported."""

import subprocess
import sys

import pytest
import timm

import repsim as rs
from repsim.networks.known import check_early
from repsim.networks.minis import ARCHITECTURES, bundled
from repsim.networks.models import check_name


def test_no_name_that_is_known_is_refused():
    for name in (*timm.list_models(), *timm.list_pretrained(), *ARCHITECTURES, *bundled(), "hf:a/b", "torch.nn:Linear"):
        check_early(name)


@pytest.mark.parametrize("name", ["vit_b61", "resnet5O", "vit_base_patch16_244", "no_such_network"])
def test_a_wrong_name_is_refused_early_as_it_is_late(name):
    with pytest.raises(rs.UsageError) as early:
        check_early(name)
    with pytest.raises(rs.UsageError) as late:
        check_name(name)
    assert str(early.value) == str(late.value)


def test_a_mistyped_name_is_said_before_torch_is_imported():
    script = (
        "import sys\nfrom repsim.cli import main\n"
        "try:\n    main(['cka', '--model', 'vit_b61'])\n"
        "except SystemExit as ended:\n    assert ended.code == 2 and not {'torch', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "did you mean 'vit_b16'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "name, message",
    [
        ("./mynets.py:build", "write mynets:build$"),
        ("nets/mine.py:build", "write nets.mine:build$"),
        ("../mine.py:build", r"write mine:build in the folder \.\.$"),
        ("mynets.py", "write mynets:FACTORY$"),
        ("vit_tiny@my.pth", r"names a network and its weights, as tables do; give the network vit_tiny, and the file"),
        ("my_vit.pt", r"is the name of a file of weights; give the network's name, and the file with --weights my_vit"),
    ],
)
def test_files_are_no_names(name, message):
    for refuse in (check_early, check_name, rs.load_model):
        with pytest.raises(rs.UsageError, match=message):
            refuse(name)


def test_near_names_of_a_module_are_its_own(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(
        "import torchvision\nfrom torch.nn import Linear\ndef net():\n    return Linear(1, 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for wrong in ("torchvisio", "Linea"):
        with pytest.raises(rs.UsageError, match="; choose one of net$"):
            check_name(f"own_nets:{wrong}")
