"""The plan at full size, checked on sizes at which everything can be counted."""

import json

import jax
import pytest

from experiments.byte_domains.plan import (
    HERE,
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
    found = plan(SMALL, length, shape)
    params = jax.eval_shape(decoder(SMALL).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 1.0 < found.state / (3 * 4 * count / 8) < 1.05  # small leaves stay whole
    head = SMALL.vocab_size * SMALL.hidden_size
    work = 2 * (8 * (count - 2 * head) + 6 * head) * length
    assert 1.0 < found.flops / work < 1.6
    flops, moved = measured(compiled(SMALL, length, shape, scan=False))
    assert found.flops == pytest.approx(flops, rel=0.02)
    assert sum(found.traffic.values()) == pytest.approx(sum(moved.values()), rel=0.05)
    assert found.temporary > 0
    (row,) = to_table([found]).rows
    assert row[:2] == (8, "1 x 8")


def test_the_readme_shows_the_committed_plan():
    """Oracle: the table made of ``plan.json``, in its folder and in the README."""
    folder = HERE / "results" / "plan"
    plans = [Plan(**made) for made in json.loads((folder / "plan.json").read_text())]
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
