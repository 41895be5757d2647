"""Generation with a pool of prompts."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.adapters import add_prompt_pool, l2p_outputs, mean_query
from jaxcl.cli import main
from jaxcl.data import instruct_dataset, instruct_prompts, load_tokenizer
from jaxcl.files import read_lines
from jaxcl.finetune.measure import Words, generated, scored
from jaxcl.finetune.pool import asked_query
from jaxcl.finetune.trained import load
from jaxcl.interop import load_pretrained
from jaxcl.models import decoder
from jaxcl.tree import as_batch
from tests.test_finetune.conftest import words_of

PROMPTS = [np.array([5, 9, 11, 40]), np.array([60, 61])]


def test_tokens_of_a_pool_are_its_vectors(home):
    """Oracle: the outputs of L2P one by one, greedy tokens and log-likelihoods of them."""
    config, params = load_pretrained(home / "model")
    params = add_prompt_pool(jax.random.key(0), params, num_prompts=4, length=2)
    noise = jax.random.normal(jax.random.key(1), params["pool"]["prompts"].shape)
    params["pool"]["prompts"] = noise  # far from all tokens
    tokenizer = load_tokenizer(home / "model")
    words = Words(config, tokenizer, max_new_tokens=4, num_selected=2)
    model = decoder(config)
    query = mean_query(model.hidden)

    def outputs(prompt, more):
        """Logits of a prompt with what follows, selected by the prompt alone."""
        own = query(params, {"tokens": jnp.array([prompt])})
        x = jnp.array([[*prompt, *more]])
        found = l2p_outputs(model.apply, lambda params, x: own, num_selected=2)
        return found(params, as_batch(x, x))[0]

    stop = {tokenizer.eos_token_id, *tokenizer("<|im_end|>").input_ids}
    said = generated(words, params, PROMPTS)
    scores = scored(words, params, PROMPTS, [[[7, 8], [9]]] * 2)
    for row, prompt in enumerate(PROMPTS):
        new = []
        while len(new) < 4:
            token = int(jnp.argmax(outputs(prompt, new)[-1]))
            if token in stop:
                break
            new.append(token)
        assert said[row] == tokenizer.decode(new, skip_special_tokens=True).strip()
        for place, answer in enumerate(([7, 8], [9])):
            likely = jax.nn.log_softmax(outputs(prompt, answer))[len(prompt) - 1 :]
            total = sum(float(likely[i, token]) for i, token in enumerate(answer))
            np.testing.assert_allclose(scores[row][place], total, rtol=1e-4)
    rest = {name: part for name, part in params.items() if name != "pool"}
    plain = scored(words, rest, PROMPTS, [[[7, 8], [9]]] * 2)
    assert np.abs(np.array(plain) - np.array(scores)).max() > 1e-3  # control


def test_training_selects_by_the_prompt_alone(home):
    """Oracle: the query of the prompts of generation, one by one. Control: with their
    answers it differs."""
    config, params = load_pretrained(home / "model")
    tokenizer, hidden = load_tokenizer(home / "model"), decoder(config).hidden
    rows = [
        {"prompt": "1 cat?", "answer": "red panda"},
        {"prompt": "How many apples?", "answer": "three"},
    ]
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    more = [{"role": "user", "content": "cd"}, {"role": "assistant", "content": "e"}]
    for lines, form in (
        (rows, None),
        (rows, True),
        ([{"messages": chat + more}], None),
    ):
        batch = instruct_dataset(lines, tokenizer, chat=form).read(
            np.arange(len(lines))
        )
        found = asked_query(hidden, batch)(params, batch.x)
        full = mean_query(hidden)(params, batch.x)
        prompts = instruct_prompts(lines, tokenizer, chat=form).tokens
        for row, prompt in enumerate(prompts):
            alone = mean_query(hidden)(params, {"tokens": jnp.array([prompt])})[0]
            np.testing.assert_allclose(found[row], alone, atol=1e-5)
            assert np.abs(full[row] - alone).max() > 1e-2


def test_a_run_with_a_pool_is_tested_and_read_again(home, tmp_path, capsys):
    """Oracle: the answers of the run, from the prompts in its folder."""
    out = tmp_path / "run"
    more = "--method", "l2p", "--prompts", "3", "--num-selected", "2"
    assert main(words_of(home, out, *more, tasks=("animals",))) == 0
    lines = read_lines(out / "answers" / "001-animals-params.jsonl")
    trained = load(out)
    encode = lambda text: trained.tokenizer(text, add_special_tokens=False).input_ids
    words = Words(trained.config, trained.tokenizer, 3, num_selected=2)
    asked = [encode(line["prompt"]) for line in lines]
    found = generated(words, trained.params, asked)
    assert found == [line["output"] for line in lines]
    for command in (
        ["export", str(out), "--out", str(tmp_path / "x")],
        ["interpolate", str(out)],
    ):
        assert main(command) == 2
        assert "prompts" in capsys.readouterr().err
