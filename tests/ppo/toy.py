"""A world of a few words in which everything is known: the reward is a table by the response's last word, and
distributions can be written down.

Its models are ordinary ones in Hugging Face form and go through the same lines as large ones. Shapes: V words.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

from data.records import Prompt
from modeling.config import ModelConfig
from modeling.load import load_tokenizer
from ppo.actor_critic import ActorCritic
from tests.conftest import enliven
from tests.ppo.conftest import Chain

PAD, EOS = 0, 1
HIDDEN = 32


def word(number: int) -> str:
    """The word that is token `number`, from 2 on."""
    return f"w{number}"


def ask(*numbers: int) -> Prompt:
    """A prompt of these tokens and no others."""
    return Prompt(prompt=" ".join(word(number) for number in numbers))


class ToyChain(Chain):
    """Its tokens are not text: the reward model scores them directly."""

    def models(self, **ppo: Any) -> ActorCritic:
        models = super().models(**ppo)
        models.rewards.scorers[0].tokens = None
        return models


def toy_chain(folder: Path, table: Sequence[float], seed: int = 0) -> Chain:
    """An SFT model with a distribution of its own over the words, and a reward model that gives `table[v]` to what ends
    in token v.
    """
    (folder / "sft").mkdir(parents=True)
    tokenizer = _tokenizer(len(table))
    policy = enliven(AutoModelForCausalLM.from_config(_settings(len(table)), dtype=torch.float32), seed)
    policy.get_output_embeddings().weight.data *= 0.5  # nothing is too rare to be tried
    for model, place in ((policy, folder / "sft" / "model"), (_reward(table), folder / "reward" / "model")):
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    config = ModelConfig(base="unused", adapter="none", device="cpu", precision="float32")
    return ToyChain(folder / "sft", folder / "reward", config, load_tokenizer(folder / "sft" / "model", config))


def next_words(model: Any, ids: Sequence[int]) -> Tensor:
    """log pi_V of the word after these, in float64, by a plain call."""
    with torch.no_grad():
        found_V: Tensor = (
            model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double().log_softmax(-1)
        )
    return found_V


def doubled(models: ActorCritic) -> ActorCritic:
    """All four in float64, where what is compared differs by the order of sums alone: by 1e-13 of the largest
    number.
    """
    for model in (models.policy, models.reference, models.value, models.rewards.scorers[0].model):
        model.double()
    return models


def _settings(words: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=words, hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
    )  # fmt: skip


def _tokenizer(words: int) -> PreTrainedTokenizerFast:
    known = {"<pad>": PAD, "<eos>": EOS} | {word(number): number for number in range(2, words)}
    plain = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<eos>", pad_token="<pad>", padding_side="right"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return tokenizer


def _reward(table: Sequence[float]) -> Any:
    """Layers that add nothing, embeddings that are unit vectors, so that the head's weights are the table."""
    assert len(table) <= HIDDEN
    settings = _settings(len(table))
    settings.num_labels, settings.score_bias = 1, 0.0
    model = AutoModelForSequenceClassification.from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        # RMSNorm makes a vector of norm sqrt(H) of each; it adds 1e-6 to a mean square of 1e2 / H.
        model.model.embed_tokens.weight.copy_(10 * torch.eye(len(table), HIDDEN))
        model.score.weight.zero_()
        model.score.weight[0, : len(table)] = torch.tensor(table) / HIDDEN**0.5
    return model
