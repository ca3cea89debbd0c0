"""Tensors are read in shares, every byte once by the host of one device; the parameters are those of a plain read."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.models.families import get_family
from sft_jax.models.loading import decoder_config, load_params, on_one
from sft_jax.models.shares import RowReader, read_share
from sft_jax.sharding import make_mesh, placement
from sft_jax.sources import TensorEntry, open_checkpoint
from tests import tiny
from tests.models import families, reference
from tests.ports import free_address


def numbered(shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("name", families.CASES)
def test_shares_of_all_devices_are_the_tensor_as_its_rule_sees_it(name):
    hf_config, config = families.text_config(name), families.decoder(name)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    of_first_layer = [
        rule for rule in get_family(hf_config).tensor_table(config) if rule.path and ".1." not in rule.source
    ]
    for rule in of_first_layer:
        stored, spans = numbered(rule.shape), []

        def read(start, stop, stored=stored, spans=spans):
            spans.append((start, stop))
            return stored[start:stop].copy()

        rows = RowReader({rule.source: TensorEntry(rule.shape, stored.dtype, read)})
        last_axis = lambda shape: NamedSharding(mesh, P(*(None,) * (len(shape) - 1), "x"))
        share = read_share(rule, rows, stored.dtype, last_axis)
        np.testing.assert_array_equal(
            np.asarray(share.array)[tuple(map(slice, share.shape))], rule.read(stored), err_msg=rule.source
        )
        seen = np.concatenate([np.arange(*span) for span in spans])
        expected = np.unique(
            rule.read(np.broadcast_to(np.arange(rule.shape[0]).reshape(-1, *[1] * (stored.ndim - 1)), rule.shape))
        )
        assert sorted(seen) == list(expected), "rows of this parameter alone, and each once"
        largest = max(piece.data.size for piece in share.array.addressable_shards)
        assert largest <= -(-max(share.shape) // 8) * (rule.read(stored).size // min(share.shape)) or stored.ndim == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "quantized", "layout"),
    [
        ("llama", "none", "unrolled"),
        ("gpt2", "none", "scan"),
        ("gpt_neox", "none", "scan"),
        ("phi3", "none", "scan"),
        ("mixtral", "none", "scan"),
        ("mixtral", "int8", "scan"),
        ("gpt_oss", "none", "unrolled"),
        ("gpt_oss", "int8", "scan"),
        ("llama", "nf4", "scan"),
        ("phi3", "nf4", "unrolled"),
    ],
)
def test_a_mesh_holds_the_numbers_of_one_device(tmp_path, name, quantized, layout):
    checkpoint = open_checkpoint(families.save(families.torch_model(name), tmp_path))
    config = decoder_config(checkpoint)
    plain = reference.flat(load_params(checkpoint, config, layout, "float32", on_one(jax.devices()[0]), quantized))
    for sizes in ({"fsdp": 8}, {"fsdp": 2, "expert": 2, "tensor": 2}, {"replica": 2, "context": 2, "tensor": 2}):
        mesh = make_mesh(sizes, jax.devices())
        split = load_params(checkpoint, config, layout, "float32", placement(mesh), quantized)
        found = reference.flat(split)
        assert found.keys() == plain.keys()
        for path, array in found.items():
            assert array.sharding.is_equivalent_to(placement(mesh)(path, array.shape), array.ndim), path
            np.testing.assert_array_equal(array, plain[path], err_msg=path)


def test_a_duplicate_is_compared_whatever_the_mesh(tmp_path):
    checkpoint = open_checkpoint(tiny.write_checkpoint(tmp_path / "model"))
    embedding = checkpoint.tensors["model.embed_tokens.weight"]
    damaged = dataclasses.replace(
        embedding, read=lambda start, stop: embedding.read(start, stop) + (stop == embedding.rows)
    )
    tied = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, "lm_head.weight": damaged})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_params(tied, decoder_config(tied), "scan", "float32", placement(make_mesh({"fsdp": 8}, jax.devices())))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_each_process_reads_its_share_of_the_bytes(tmp_path, processes, children):
    names, by_all = ["llama", "gpt2", "gpt_neox", "phi3", "mixtral"], ["gpt_oss"]  # whose experts are one tensor
    for name in names + by_all:
        families.save(families.torch_model(name), tmp_path / name)
    said = spoken(children, tmp_path, names + by_all, processes, devices=8 // processes)
    assert all(of_process["equal"][name] for of_process in said for name in by_all)
    for name in names:
        tensors = open_checkpoint(tmp_path / name).tensors
        total = sum(entry.size * entry.dtype.itemsize for entry in tensors.values())
        read = [of_process["bytes"][name] for of_process in said]
        # Norms and biases of 32 numbers are split too; what is beyond an even share comes of rows padded to 8 devices.
        assert max(read) <= total / processes * 1.1, (name, total, read)
        assert sum(read) <= total * 1.05, (name, total, read)
        assert all(of_process["equal"][name] for of_process in said)


def spoken(children, root, names, processes, devices):
    """What each of several processes says of its loading."""
    common = {
        "root": str(root),
        "names": names,
        "coordinator": free_address(),
        "processes": processes,
        "devices": devices,
    }
    specs = [common | {"process": number} for number in range(processes)]
    ended = children.run([("tests.models.loading_driver:load_all", spec) for spec in specs])
    assert [end.status for end in ended] == [0] * processes, [end.output[-3000:] for end in ended]
    return [end.result for end in ended]
