"""How folders are written: several files, what stands beside them, failures."""

import json
import os
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxcl.errors import WriteError
from jaxcl.interop import load_pretrained, save_pretrained, saving
from jaxcl.sharding import ShardingPlan, fsdp, make_mesh

GOLDEN = Path(__file__).parent / "golden_decoders"


@pytest.fixture(scope="module")
def model():
    return load_pretrained(GOLDEN / "qwen3")


def assert_same(folder, model):
    config, params = load_pretrained(folder)
    assert config == model[0]
    jax.tree.map(np.testing.assert_array_equal, params, model[1])


@pytest.mark.parametrize("shard_size", [1, 3_000, 10_000])
def test_a_large_model_is_in_several_files(tmp_path, model, shard_size):
    """Oracle: the index against the files, and the same model read back."""
    save_pretrained(tmp_path / "model", *model, shard_size=shard_size)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    count = len(files)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert [path.name for path in files] == names
    index = json.loads(
        (tmp_path / "model" / "model.safetensors.index.json").read_text()
    )
    held = {path.name: load_file(path) for path in files}
    places = {name: file for file, some in held.items() for name in some}
    assert index["weight_map"] == places
    sizes = {file: sum(t.nbytes for t in some.values()) for file, some in held.items()}
    assert index["metadata"] == {"total_size": sum(sizes.values())}
    for file, size in sizes.items():
        assert size <= shard_size or len(held[file]) == 1
    for file, following in pairwise(names):
        first = held[following][min(held[following])]
        assert sizes[file] + first.nbytes > shard_size  # or it would be in this file
    assert_same(tmp_path / "model", model)


def test_one_file_has_no_index(tmp_path, model):
    """Oracle: the names of the files; nothing else is left."""
    save_pretrained(tmp_path / "new" / "model", *model)
    found = sorted(path.name for path in (tmp_path / "new" / "model").iterdir())
    assert found == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_files_have_the_dtype_asked_for(tmp_path, model, dtype):
    """Oracle: casting in memory, and safetensors' own reading."""
    save_pretrained(tmp_path / "model", *model, dtype=dtype)
    held = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype.name for tensor in held.values()} == {dtype}
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    assert fields["dtype"] == dtype
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), model[1])
    assert_same(tmp_path / "model", (model[0], cast))


def test_leaves_of_several_dtypes_are_written_as_they_are(tmp_path, model):
    """Oracle: the tree itself; wide numbers begin at multiples of their width."""
    config, params = model
    mixed = dict(params, norm={"scale": params["norm"]["scale"].astype(jnp.bfloat16)})
    save_pretrained(tmp_path / "model", config, mixed)
    assert_same(tmp_path / "model", (config, mixed))
    raw = (tmp_path / "model" / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    assert size % 8 == 0
    header = json.loads(raw[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    starts = {name: tensor["data_offsets"][0] for name, tensor in header.items()}
    assert max(starts, key=starts.get) == "model.norm.weight"
    assert all(start % 4 == 0 for start in starts.values())


@pytest.mark.devices
def test_arrays_of_many_devices_and_of_numpy_are_written(tmp_path, model):
    """Oracle: the model of one device."""
    plan = ShardingPlan(make_mesh(data=2, fsdp=4), fsdp(at_least=100))
    config, split = load_pretrained(GOLDEN / "qwen3", sharding=plan)
    save_pretrained(tmp_path / "split", config, split)
    save_pretrained(tmp_path / "numpy", config, jax.tree.map(np.asarray, split))
    for name in ("split", "numpy"):
        assert_same(tmp_path / name, model)


def test_what_stands_beside_a_model_is_copied(tmp_path, model):
    """Oracle: the bytes of the source; weights and other files stay there."""
    source = tmp_path / "source"
    source.mkdir()
    kept = {name: os.urandom(9) for name in ("tokenizer.json", "chat_template.jinja")}
    other = {"README.md": b"?", "pytorch_model.bin": b"?", "x.safetensors": b"?"}
    for name, data in (kept | other).items():
        (source / name).write_bytes(data)
    fields = {"bos_token_id": 7, "eos_token_id": [8, 9], "hidden_size": 5}
    (source / "config.json").write_text(json.dumps(fields))
    save_pretrained(tmp_path / "model", *model, source=source)
    for name, data in kept.items():
        assert (tmp_path / "model" / name).read_bytes() == data
    assert len(os.listdir(tmp_path / "model")) == len(kept) + 2
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (found["bos_token_id"], found["eos_token_id"]) == (7, [8, 9])
    assert found["pad_token_id"] is None
    assert found["hidden_size"] == 16
    assert_same(tmp_path / "model", model)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("what", ["write_tensors", "write_json"])
def test_a_failure_leaves_no_part_of_a_model(tmp_path, model, monkeypatch, there, what):
    """Oracle: the folder as it was before; afterwards the same call succeeds."""
    place = tmp_path / "model"
    if there:
        place.mkdir()
        (place / "notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving, what, full)
        with pytest.raises(
            WriteError, match=r"model cannot be written .*No space left"
        ):
            save_pretrained(place, *model)
    assert sorted(tmp_path.rglob("*")) == before
    save_pretrained(place, *model)
    assert_same(place, model)


def test_what_a_killed_process_left_is_replaced(tmp_path, model):
    """Oracle: the model of a run that was not killed."""
    left = tmp_path / "model" / ".saving"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    save_pretrained(tmp_path / "model", *model)
    assert_same(tmp_path / "model", model)
    assert not left.exists()
