"""One model and one set of token ids, drawn from fixed seeds, that the project and its peers are measured on.

python -m benchmarks.fixture runs/bench/fixture --k 9 --prompt_tokens 100 --answer_tokens 100 --prompts 4

Writes rm/, a random Llama of 16.8 million parameters with a scalar head, beside a tokenizer of as many words; and
ranked.jsonl, one line per prompt: {"prompt_ids": [...], "answer_ids": [[...], ...]}, best answer first.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
PAD, BOS, EOS, UNK = range(len(SPECIAL_TOKENS))
VOCABULARY = 16_000
SHORTEST = 4
TOKENS_SEED = 0
MODEL_SEED = 1


def ranked(prompts: int, k: int, prompt_tokens: int, answer_tokens: int) -> list[dict[str, Any]]:
    """Prompts with k answers each. Lengths are uniform within a fifth of what is asked for; every answer ends in
    EOS.
    """
    chance = random.Random(TOKENS_SEED)

    def words(about: int) -> list[int]:
        length = max(SHORTEST, about + chance.randint(-about // 5, about // 5))
        return [chance.randrange(len(SPECIAL_TOKENS), VOCABULARY) for _ in range(length)]

    return [
        {"prompt_ids": words(prompt_tokens), "answer_ids": [[*words(answer_tokens - 1), EOS] for _ in range(k)]}
        for _ in range(prompts)
    ]


def shape(**more: Any) -> Any:
    """The configuration of a Llama of 16.8 million parameters."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **more,
    )


def write_model(folder: Path) -> None:
    """The reward model, at random weights."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(MODEL_SEED)
    LlamaForSequenceClassification(shape(num_labels=1)).save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    """A word a token, `w17` for 17, so that text and token ids say the same. A conversation is its messages' text and
    no more.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL_TOKENS.values(), *(word(number) for number in range(len(SPECIAL_TOKENS), VOCABULARY))]
    words = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, unk_token=SPECIAL_TOKENS["unk_token"])
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL_TOKENS)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def word(number: int) -> str:
    """The text of a token that is not special."""
    return f"w{number}"


def write(folder: Path, prompts: int, k: int, prompt_tokens: int, answer_tokens: int) -> None:
    """Model, tokenizer and token ids."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "rm")
    write_tokenizer(folder / "rm")
    rows = ranked(prompts, k, prompt_tokens, answer_tokens)
    (folder / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--k", type=int, default=9)
    parser.add_argument("--prompt_tokens", type=int, default=100)
    parser.add_argument("--answer_tokens", type=int, default=100)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.prompts, arguments.k, arguments.prompt_tokens, arguments.answer_tokens)


if __name__ == "__main__":
    main()
