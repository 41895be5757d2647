"""The models of the benchmark, and the batches that they learn from."""

from typing import NamedTuple

from jaxcl.models import DecoderConfig, EncoderConfig


class Shape(NamedTuple):
    """The sizes of a model, and of a training step."""

    config: DecoderConfig | EncoderConfig
    batch_size: int
    length: int  # tokens of each row
    steps: int  # that are timed together
    narrow: bool = False  # bfloat16: the frozen weights of an adapter, or all compute


NUM_CLASSES = 2  # of an encoder's texts
#: Lengths of the prompts; the first one is that of a single prompt.
PROMPTS = (24, 8, 12, 16, 20)

#: HuggingFaceTB/SmolLM2-135M.
SMOLLM2 = DecoderConfig(49_152, 576, 1536, 30, 9, 3, tie_word_embeddings=True)
#: meta-llama/Llama-3.2-1B.
BILLION = DecoderConfig(128_256, 2048, 8192, 16, 32, 8, tie_word_embeddings=True)

SHAPES = {
    "small": Shape(DecoderConfig(4096, 256, 704, 4, 8, 4), 8, 128, 3),
    "smollm2": Shape(SMOLLM2, 4, 128, 1),
    # google-bert/bert-base-uncased, with half of its layers
    "bert": Shape(EncoderConfig(30_522, 768, 3072, 6, 12), 8, 128, 1),
    # for an accelerator
    "smollm2_bf16": Shape(SMOLLM2, 32, 512, 4, narrow=True),
    "billion": Shape(BILLION, 8, 1024, 4, narrow=True),
    # for tests
    "tiny": Shape(DecoderConfig(64, 16, 32, 2, 2, 1), 2, 16, 2),
    "tiny_bert": Shape(EncoderConfig(64, 16, 32, 2, 2), 2, 16, 2),
}


def num_tokens(name: str) -> int:
    """Of a batch."""
    return SHAPES[name].batch_size * SHAPES[name].length


def kernels(name: str) -> list[tuple[int, int, int]]:
    """``(count, inputs, outputs)`` of the projections of a decoder, the last one's too."""
    config = SHAPES[name].config
    assert isinstance(config, DecoderConfig)
    d, (heads, groups, size) = config.hidden_size, config.heads
    count, wide = config.num_hidden_layers, config.intermediate_size
    return [
        (2 * count, d, heads * size),  # of queries, and of outputs as they are as many
        (2 * count, d, groups * size),
        (3 * count, d, wide),
        (1, d, config.vocab_size),
    ]
