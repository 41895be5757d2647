"""The plan at full size, checked on sizes at which everything can be counted."""

import json

import jax
import pytest

from experiments.byte_domains.plan import (
    HERE,
    PLANNED,
    Plan,
    Shape,
    compiled,
    measured,
    plan,
    to_table,
    traffic,
)
from jaxcl.models import DecoderConfig, decoder
from jaxcl.report.tables import to_markdown

SMALL = DecoderConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=3,
    num_attention_heads=8,  # as many as devices: fewer are replicated among them
)


@pytest.mark.slow
def test_a_plan_counts_state_work_and_traffic():
    """Oracle: closed forms and the program with all layers unrolled.

    State: parameters and two moments in float32, split over eight. Work: six operations
    per parameter and token for a gradient, two more for those of the blocks, which are
    computed again for it, two gradients; attention makes the rest. The embedding is looked
    up, and the head is as large.
    """
    shape, length = Shape(1, 8), 16
    found = plan("SAM", SMALL, length, shape)
    params = jax.eval_shape(decoder(SMALL).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 1.0 < found.state / (3 * 4 * count / 8) < 1.05  # small leaves stay whole
    head = SMALL.vocab_size * SMALL.hidden_size
    work = 2 * (8 * (count - 2 * head) + 6 * head) * length
    assert 1.0 < found.flops / work < 1.6
    flops, moved = measured(compiled("SAM", SMALL, length, shape, scan=False))
    assert found.flops == pytest.approx(flops, rel=0.02)
    assert sum(found.traffic.values()) == pytest.approx(sum(moved.values()), rel=0.05)
    assert found.temporary > 0
    (row,) = to_table([found]).rows
    assert row[:3] == ("SAM", 8, "1 x 8")


def products(*, trained: bool) -> tuple[int, int]:
    """Multiplications per token of a gradient, and of a gradient of the last states.

    A forward pass, that of the blocks a second time without their last product, whose
    result no gradient needs, and a pass back. Where the weights are not trained they get
    no gradient, and neither does what the first projections see.
    """
    d, units, depth = 256, 768, 3
    block, down = 4 * d * d + 3 * d * units, d * units
    blocks = depth * (3 * block - down) + (depth * block if trained else -3 * d * d)
    return blocks + (3 if trained else 2) * SMALL.vocab_size * d, blocks


@pytest.mark.slow
def test_a_plan_counts_an_adapter_over_a_frozen_base():
    """Oracle: closed forms; as control, those with gradients of all weights.

    State: the base in bfloat16, split over eight, and the factors with two moments, which
    are too small to be split. Attention and what is not a product make a tenth of the
    work. I-LoRA takes one gradient of two rows where SAM takes two of one, and distils
    one; it keeps an average, and rows of tokens and labels on every device.
    """
    shape, length = Shape(1, 8), 16
    found = plan("SAM, LoRA", SMALL, length, shape)
    params = jax.eval_shape(decoder(SMALL).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    factors = 3 * 2 * (256 * 8 + 8 * 256)
    state = 2 * count / 8 + 3 * 4 * factors
    assert 1.0 < found.state / state < 1.05
    gradient, states = products(trained=False)
    assert 1.0 < found.flops / (2 * length * 2 * gradient) < 1.15
    assert found.flops / (2 * length * 2 * products(trained=True)[0]) < 0.9  # control

    program = compiled("I-LoRA", SMALL, length, shape, scan=False)
    flops, _ = measured(program)
    slow = 3 * (4 * 256 * 256 + 3 * 256 * 768)  # a forward pass
    assert 1.0 < flops / (2 * length * (2 * gradient + states + slow)) < 1.15
    more = program.memory_analysis().argument_size_in_bytes - found.state
    assert more == pytest.approx(4 * factors + 500 * (2 * 4 * length + 8), abs=64)


@pytest.mark.slow
def test_replayed_rows_are_split_like_new_ones(monkeypatch):
    """Oracle: by hand, two gradients of the factors; rows left to XLA are the control."""
    config, shape = SMALL._replace(num_hidden_layers=2), Shape(1, 8)

    def summed():
        program = compiled("I-LoRA", config, 128, shape, scan=False)
        return measured(program)[1]["all-reduce"]

    gradient = 4 * 2 * 2 * (256 * 8 + 8 * 256)  # of the loss, and of the penalty
    split = summed()
    assert split == pytest.approx(2 * gradient, rel=0.01)
    monkeypatch.setattr("jaxcl.losses.replay.split_rows", lambda rows: rows)
    monkeypatch.setattr("jaxcl.method.split_rows", lambda rows: rows)
    assert summed() > 100 * split


def test_the_readme_shows_the_committed_plan():
    """Oracle: the table made of ``plan.json``, in its folder and in the README."""
    folder = HERE / "results" / "plan"
    plans = [Plan(**made) for made in json.loads((folder / "plan.json").read_text())]
    assert [(made.method, Shape(made.data, made.fsdp)) for made in plans] == [*PLANNED]
    table = to_markdown(to_table(plans))
    assert (folder / "plan.md").read_text() == table
    assert table.strip() in (HERE / "README.md").read_text()


def test_collectives_are_counted_by_their_results():
    """Oracle: by hand; a line that only mentions one is the control."""
    text = """
  %a = f32[8,16]{1,0} all-gather(f32[1,16] %p), dimensions={0}
  %b = (bf16[4]{0}, /*index=1*/f32[2,2]{1,0}) all-reduce(bf16[4] %q, f32[2,2] %r)
  %c = f32[] all-reduce-start(f32[] %s)
  %d = f32[100] fusion(f32[8,16] %all-gather.1), calls=%f
"""
    assert traffic(text) == {"all-gather": 512.0, "all-reduce": 8.0 + 16.0 + 4.0}
