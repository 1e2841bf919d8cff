"""Wrappers around a network are looked through, and the numbers are those of the network without them."""

import copy
import warnings

import numpy as np
import pytest
import timm
import torch
import torch.distributed
from every_study import OF_A_VIT
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

import repsim as rs
from repsim.networks.models import as_network

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    fully_shard = None

IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TRANSFORM = rs.EvalTransform(input_size=(3, 32, 32))
Block = timm.models.vision_transformer.Block


def small() -> nn.Module:
    torch.manual_seed(0)
    args = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8, "num_classes": 5}
    return timm.models.vision_transformer.VisionTransformer(**args).eval()


@pytest.fixture(scope="module")
def expected():
    return {name: study(rs.Network(small(), "net", transform=TRANSFORM), IMAGES) for name, study in OF_A_VIT.items()}


@pytest.fixture
def alone(tmp_path):
    """A process group of one process."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def run(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module(IMAGES)
    return module


def in_place() -> nn.Module:
    module = small()
    module.compile(backend="eager")
    return run(module)


def checkpointing() -> nn.Module:
    module = small()
    module.set_grad_checkpointing()
    return module


def checkpointed() -> nn.Module:
    module = small()
    for number, block in enumerate(module.blocks):
        module.blocks[number] = checkpoint_wrapper(block)
    return module


def compiled_parts() -> nn.Module:
    module = small()
    module.blocks[0] = torch.compile(module.blocks[0], backend="eager")
    module.blocks[1].attn.qkv = torch.compile(module.blocks[1].attn.qkv, backend="eager")
    module.blocks[1].norm2 = nn.DataParallel(module.blocks[1].norm2)
    module.patch_embed = torch.compile(nn.DataParallel(module.patch_embed), backend="eager")
    return run(module)


def compiled_row() -> nn.Module:
    module = small()
    module.blocks = torch.compile(module.blocks, backend="eager")
    return module


def twice() -> nn.Module:
    return nn.DataParallel(torch.compile(small(), backend="eager"))


WRAPPED = {
    "compiled, cold": lambda: torch.compile(small(), backend="eager"),
    "compiled, run": lambda: run(torch.compile(small(), backend="eager")),
    "compiled in place": in_place,
    "data parallel": lambda: nn.DataParallel(small()),
    "twice": twice,
    "gradient checkpointing": checkpointing,
    "checkpointed": lambda: checkpoint_wrapper(small()),
    "checkpointed blocks": checkpointed,
    "compiled parts": compiled_parts,
    "a compiled row": compiled_row,
}


def same(table, expected) -> None:
    """Check that two tables are the same, and that no wrapper has changed the names of layers."""
    texts = [name for name in expected if "layer" in name or name == "model"]
    assert table[texts].equals(expected[texts])
    numbers = expected.select_dtypes("number").columns
    np.testing.assert_allclose(table[numbers], expected[numbers], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("study", OF_A_VIT)
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_network_is_as_without(kind, study, expected):
    network = rs.Network(WRAPPED[kind](), "net", transform=TRANSFORM)
    if (kind, study) == ("gradient checkpointing", "receptive") and not hasattr(timm.layers, "use_reentrant_ckpt"):
        with pytest.raises(rs.UsageError, match="of the older, reentrant kind, switch that off"):  # timm 1.0.12 has it
            OF_A_VIT[study](network, IMAGES)
        return
    same(OF_A_VIT[study](network, IMAGES), expected[study])


def test_all_layers_of_compiled_parts_have_the_names_of_the_parts():
    names = [
        [layer.name for layer in rs.find_layers(rs.Network(m, "net", transform=TRANSFORM), ".*")]
        for m in (small(), compiled_parts(), compiled_row(), checkpointed())
    ]
    assert "blocks.1.attn.qkv" in names[0] and names == [names[0]] * 4


@pytest.mark.parametrize("study", OF_A_VIT)
def test_distributed_data_parallel(study, expected, alone):
    module = nn.parallel.DistributedDataParallel(small())
    same(OF_A_VIT[study](rs.Network(module, "net", transform=TRANSFORM), IMAGES), expected[study])


def sharded() -> nn.Module:
    policy = ModuleWrapPolicy({Block})
    return FullyShardedDataParallel(small(), device_id=torch.device("cpu"), auto_wrap_policy=policy)


def sharded_in_place() -> nn.Module:
    if fully_shard is None:
        pytest.skip("before PyTorch 2.6 fully_shard needs a GPU")
    module, mesh = small(), torch.distributed.init_device_mesh("cpu", (1,))
    for part in (*module.blocks, module):
        fully_shard(part, mesh=mesh)
    return module


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("build", [sharded, sharded_in_place])
def test_a_sharded_network_on_one_process(build, expected, alone):
    network = rs.Network(build(), "net", transform=TRANSFORM)
    for study in ("cka", "residual"):
        same(OF_A_VIT[study](network, IMAGES), expected[study])
    with pytest.raises(rs.UsageError, match=r"net is sharded \(FSDP\), so its gradients cannot be taken"):
        OF_A_VIT["receptive"](network, IMAGES)


@pytest.mark.parametrize("study", OF_A_VIT)
def test_a_module_of_lightning(study, expected):
    lightning = pytest.importorskip("lightning")

    class Trained(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    table = OF_A_VIT[study](rs.Network(Trained(), "net", transform=TRANSFORM), IMAGES)
    same(table.replace(r"^net\.", "", regex=True), expected[study])


def test_adapters_of_peft_are_part_of_the_network_and_its_names_stay():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["qkv"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(small(), config)
    merged = copy.deepcopy(adapted).merge_and_unload()
    tables = [rs.layer_cka(rs.Network(m, "n", transform=TRANSFORM), IMAGES).table for m in (adapted, merged, small())]
    same(tables[0], tables[1])
    assert tables[0].layer_a.equals(tables[2].layer_a) and not np.allclose(tables[0].cka, tables[2].cka)


def test_a_network_quantised_dynamically(expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, as this will move elsewhere
        module = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}, torch.qint8)
    found = rs.layer_cka(rs.Network(module, "net", transform=TRANSFORM), IMAGES, batch_size=8)
    assert found.table.layer_a.equals(expected["cka"].layer_a)
    np.testing.assert_allclose(found.table.cka, expected["cka"].cka, atol=0.02)
    assert any("quantised dynamically" in notice for notice in found.notices)


SEALED = {
    "traced": (lambda: torch.jit.trace(small(), IMAGES), "VisionTransformer is TorchScript"),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), "Sequential is TorchScript"),
    "exported": (lambda: torch.export.export(small(), (IMAGES,)), "is an exported program"),
    "exported and unpacked": (lambda: torch.export.export(small(), (IMAGES,)).module(), "is an exported program"),
}


@pytest.mark.parametrize("kind", SEALED)
def test_what_nobody_can_look_into_is_refused(kind):
    build, message = SEALED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of tracing
        module = build()
    for take in (as_network, lambda module: rs.Network(module, "net")):
        with pytest.raises(rs.UsageError, match=f"{message}.*; give the nn.Module"):
            take(module)
