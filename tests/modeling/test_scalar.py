"""Scores and values, against `AutoModelForSequenceClassification` used as anyone would use it.

pytest tests/modeling/test_scalar.py
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from modeling.scalar import initialise_head, scalar_model
from transformers import BertConfig, BertForSequenceClassification

from modeling.batch import Batch
from modeling.tiny import ARCHITECTURES

PROMPTS = [[3, 40, 50, 60, 70], [3, 41], [3, 42, 52, 62, 72, 82]]
ENDED = [[200, 2], [201, 301, 401, 2], [202, 302, 303, 304, 305, 306, 2]]
CUT_OFF = [[200, 210], [201, 301, 401, 411], [202, 302, 303, 304, 305, 306, 307]]
FLOAT32 = 2e-5
CPU = torch.device("cpu")


@pytest.mark.parametrize("responses", [ENDED, CUT_OFF], ids=["ended", "cut_off"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_the_librarys_own_pooling(
    tiny_scalar: Callable[[str], Any], tiny_tokenizer: Any, architecture: str, responses: list[list[int]]
) -> None:
    model = tiny_scalar(architecture)
    batch = Batch(PROMPTS, responses, tiny_tokenizer.pad_token_id, CPU)
    assert tiny_tokenizer.eos_token_id == 2 != tiny_tokenizer.pad_token_id
    with torch.no_grad():
        scores_B = scalar_model(model).scores(batch)
        pooled_B = model(input_ids=batch.padded.ids_BS).logits[:, 0]
        alone_B = torch.cat(
            [model(input_ids=torch.tensor([p + r])).logits[:, 0] for p, r in zip(PROMPTS, responses, strict=True)]
        )
    torch.testing.assert_close(scores_B, pooled_B, atol=FLOAT32, rtol=0)
    torch.testing.assert_close(scores_B, alone_B, atol=FLOAT32, rtol=0)
    assert scores_B.std() > 0.1


def test_a_response_that_ends_in_the_pad_id_is_still_read_at_its_last_token(tiny_scalar: Callable[[str], Any]) -> None:
    model = tiny_scalar("llama")
    with torch.no_grad():
        scores_B = scalar_model(model).scores(Batch(PROMPTS, [[*response, 0, 0] for response in CUT_OFF], 0, CPU))
        for row, (prompt, response) in enumerate(zip(PROMPTS, CUT_OFF, strict=True)):
            hidden = model.model(input_ids=torch.tensor([[*prompt, *response, 0, 0]])).last_hidden_state[0, -1]
            assert scores_B[row].item() == pytest.approx(float(model.score(hidden)), abs=FLOAT32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_value_judges_the_text_before_its_token_and_nothing_after(
    tiny_scalar: Callable[[str], Any], architecture: str
) -> None:
    model = tiny_scalar(architecture)
    with torch.no_grad():
        batch = Batch(PROMPTS, ENDED, 0, CPU)
        values_BT = batch.rows(scalar_model(model).values(batch))
        for row, (prompt, response) in enumerate(zip(PROMPTS, ENDED, strict=True)):
            for t in range(len(response)):
                so_far = model(input_ids=torch.tensor([prompt + response[:t]])).logits.item()
                assert values_BT[row, t].item() == pytest.approx(so_far, abs=FLOAT32)


def test_the_bias_of_the_config_is_subtracted_from_scores_and_values(tiny_scalar: Callable[[str], Any]) -> None:
    model = tiny_scalar("llama")
    batch = Batch(PROMPTS, ENDED, 0, CPU)
    with torch.no_grad():
        plain = scalar_model(model)
        model.config.score_bias = 1.75
        biased = scalar_model(model)
        torch.testing.assert_close(biased.scores(batch), plain.scores(batch) - 1.75, atol=1e-6, rtol=0)
        torch.testing.assert_close(biased.values(batch), plain.values(batch) - 1.75, atol=1e-6, rtol=0)


def test_the_head_has_variance_one_over_width_plus_one() -> None:
    width, seeds = 3, 4000
    model = SimpleNamespace(
        model=None, base_model_prefix="model", config=None, score=torch.nn.Linear(width, 1, bias=False)
    )
    drawn = []
    for seed in range(seeds):
        initialise_head(model, seed)
        drawn.append(model.score.weight.detach().clone().flatten())
    weights = torch.cat(drawn).double()
    count = width * seeds
    # Five standard errors; 1/width would be off by a third, 1/(width + 2) by a fifth.
    assert weights.pow(2).mean().item() * (width + 1) == pytest.approx(1.0, abs=5 * (2 / count) ** 0.5)
    assert weights.mean().item() == pytest.approx(0.0, abs=5 * (1 / (width + 1) / count) ** 0.5)


def test_the_head_depends_on_its_seed_and_on_no_other_random_numbers(tiny_scalar: Callable[[str], Any]) -> None:
    model = tiny_scalar("llama")
    heads = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        initialise_head(model, seed)
        assert torch.equal(torch.get_rng_state(), before)
        heads.append(model.score.weight.detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_architecture_without_a_score_head_is_refused_by_name() -> None:
    config = BertConfig(
        vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, num_labels=1
    )
    with pytest.raises(ValueError, match="BertForSequenceClassification has no module `score`"):
        scalar_model(BertForSequenceClassification(config))
