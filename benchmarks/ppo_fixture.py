"""The four models of PPO and prompts for it, drawn from fixed seeds, in the folders that the stages leave, for the
project and its peer alike.

python -m benchmarks.ppo_fixture runs/bench/ppo-fixture --prompts 128 --prompt_tokens 32 --ends_every 24

Writes sft/model and reward/model, random Llamas of 16.8 million parameters; reward_<variant>/adapter, reward models
that are adapters on the SFT model, with the head of reward/model; and prompts.jsonl, one line per prompt:
{"prompt_ids": [...]}. With --ends_every N the SFT model's weights make it draw EOS at about one token in N.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.fixture import EOS, MODEL_SEED, SPECIAL_TOKENS, TOKENS_SEED, VOCABULARY, shape, write_tokenizer

POLICY_SEED = 0
ADAPTER_SEED = 2
LORA_RANK = 16
LORA_VARIANTS: dict[str, int | None] = {"lora_all": None, "lora_top3": 3, "lora_top2": 2}
"""How many of the six layers, nearest the output, are adapted."""
RESERVED = -1
"""The dimension of the hidden states that says nothing but how likely EOS is."""
RESERVED_VALUE = 4.0
"""Large beside what layers write, about a third, so that neither they nor the norms make it vary from token to token;
small enough that the other tokens' probabilities stay as spread as they were (entropy 9.62 nats, and 9.60 without)."""
PROBE_TOKENS = 256


def prompts(count: int, tokens: int) -> list[list[int]]:
    """Token ids; lengths are uniform within a quarter of what is asked for."""
    chance = random.Random(TOKENS_SEED)
    lengths = [tokens + chance.randint(-(tokens // 4), tokens // 4) for _ in range(count)]
    return [[chance.randrange(len(SPECIAL_TOKENS), VOCABULARY) for _ in range(length)] for length in lengths]


def end_early(model: Any, every: float) -> None:
    """Sets weights so that EOS comes at 1/every on average, wherever in the text.

    All embeddings hold the same large number in one dimension, so it reaches the output layer as nearly a constant, and
    what EOS's row has more there puts its logit above the others'. Input and output embeddings stay one matrix.
    """
    import torch

    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[:, RESERVED] = RESERVED_VALUE
        generator = torch.Generator().manual_seed(POLICY_SEED)
        ids = torch.randint(len(SPECIAL_TOKENS), VOCABULARY, (1, PROBE_TOKENS), generator=generator)
        hidden = model.model(input_ids=ids).last_hidden_state[0]
        logits = hidden @ embeddings.T
        ahead = logits[:, EOS] - torch.cat([logits[:, :EOS], logits[:, EOS + 1 :]], dim=1).logsumexp(1)
        low, high = 0.0, 100.0
        for _ in range(50):
            middle = (low + high) / 2
            often = float((ahead + middle * hidden[:, RESERVED]).sigmoid().mean())
            low, high = (middle, high) if often < 1 / every else (low, middle)
        embeddings[EOS, RESERVED] += low


def write_models(folder: Path, ends_every: float | None) -> None:
    """SFT model and reward model, each with the tokenizer."""
    import torch
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(POLICY_SEED)
    policy = LlamaForCausalLM(shape())
    if ends_every is not None:
        end_early(policy, ends_every)
    policy.save_pretrained(folder / "sft" / "model")
    write_tokenizer(folder / "sft" / "model")
    torch.manual_seed(MODEL_SEED)
    LlamaForSequenceClassification(shape(num_labels=1)).save_pretrained(folder / "reward" / "model")
    write_tokenizer(folder / "reward" / "model")


def write_adapters(folder: Path) -> None:
    """A reward adapter of each variant, at random weights too: a fresh adapter would change nothing."""
    import torch
    from transformers import LlamaForSequenceClassification

    from modeling.adapters import add_lora
    from modeling.config import LoraSettings

    for variant, top_layers in LORA_VARIANTS.items():
        torch.manual_seed(ADAPTER_SEED)
        model = add_lora(
            LlamaForSequenceClassification(shape(num_labels=1)), LoraSettings(rank=LORA_RANK, top_layers=top_layers)
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        model.save_pretrained(folder / f"reward_{variant}" / "adapter")
        (folder / f"reward_{variant}" / "model").symlink_to(Path("..") / "reward" / "model")


def write(folder: Path, count: int, prompt_tokens: int, ends_every: float | None = None) -> None:
    """Models, tokenizers and prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    write_models(folder, ends_every)
    write_adapters(folder)
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt_ids": ids}) + "\n" for ids in prompts(count, prompt_tokens))
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--ends_every", type=float)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.prompts, arguments.prompt_tokens, arguments.ends_every)


if __name__ == "__main__":
    main()
