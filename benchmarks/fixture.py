"""Models of random weights, in the folders that the stages write, for the project and its peers.

python -m benchmarks.fixture FOLDER        responses reach the length limit
python -m benchmarks.fixture FOLDER 24     the SFT model samples EOS once in 24 tokens

Writes sft/model and reward/model, Llamas of 16.8 million parameters with a tokenizer of one word per token, and
reward_lora/adapter, a reward model that is an adapter on the top layers of the SFT model.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.work import BOS, EOS, PAD, SPECIAL_TOKENS, VOCABULARY, lora_folder, reward_folder, sft_folder, word
from modeling.adapters import add_lora
from modeling.config import LoraSettings

LAYERS = 6
LORA = LoraSettings(rank=16, top_layers=LAYERS // 3)
POLICY_SEED, REWARD_SEED, ADAPTER_SEED = range(3)
RESERVED = -1
"""The dimension of the hidden states that only affects the logit of EOS."""
RESERVED_VALUE = 4.0
"""Large compared with what the layers add (about 0.3), so it is nearly constant over tokens; small enough not to change
the distribution of the other tokens (entropy 9.62 nats, and 9.60 without)."""
PROBE_TOKENS = 256


def shape(**more: Any) -> LlamaConfig:
    """The models' configuration."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **more,
    )


def classifier(seed: int) -> Any:
    """A random model with a scalar head."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(shape(num_labels=1))


def tokenizer() -> Any:
    """One word per token, `w17` for 17. A chat is the text of its messages."""
    names = [*SPECIAL_TOKENS.values(), *map(word, range(len(SPECIAL_TOKENS), VOCABULARY))]
    vocabulary = {name: token for token, name in enumerate(names)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL_TOKENS)
    made.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return made


@torch.no_grad()
def end_early(model: Any, every: float) -> None:
    """Sets weights so that EOS has a probability of 1/every on average, at any position.

    All embeddings have the same large number in one dimension, so it reaches the output layer as nearly a constant, and
    a larger weight there in EOS's row raises its logit. Input and output embeddings stay one matrix.
    """
    embeddings = model.get_input_embeddings().weight
    embeddings[:, RESERVED] = RESERVED_VALUE
    generator = torch.Generator().manual_seed(POLICY_SEED)
    ids = torch.randint(len(SPECIAL_TOKENS), VOCABULARY, (1, PROBE_TOKENS), generator=generator)
    hidden = model.model(input_ids=ids).last_hidden_state[0]
    logits = hidden @ embeddings.T
    log_odds = logits[:, EOS] - torch.cat([logits[:, :EOS], logits[:, EOS + 1 :]], dim=1).logsumexp(1)
    low, high = 0.0, 100.0
    for _ in range(50):  # bisection
        middle = (low + high) / 2
        probability = float((log_odds + middle * hidden[:, RESERVED]).sigmoid().mean())
        low, high = (middle, high) if probability < 1 / every else (low, middle)
    embeddings[EOS, RESERVED] += low


def write(folder: Path, ends_every: float | None = None) -> None:
    """The models, each with the tokenizer."""
    torch.manual_seed(POLICY_SEED)
    policy = LlamaForCausalLM(shape())
    if ends_every is not None:
        end_early(policy, ends_every)
    for model, place in ((policy, sft_folder(str(folder))), (classifier(REWARD_SEED), reward_folder(str(folder)))):
        model.save_pretrained(place)
        tokenizer().save_pretrained(place)
    adapted = add_lora(classifier(ADAPTER_SEED), LORA)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)  # a new adapter's zeros would change nothing
    adapted.save_pretrained(lora_folder(str(folder)) / "adapter")
    (lora_folder(str(folder)) / "model").symlink_to(Path("..") / "reward" / "model")


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(float, sys.argv[2:]))
