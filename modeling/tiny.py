"""A language model of a few thousand random weights with a real tokenizer, in Hugging Face form: for tests and for
smoke runs.

It goes through every line that a large model goes through, in seconds, and knows nothing. The tokenizer is a byte-level
BPE, so that any text can be written and read back; special tokens and chat template are the embedded base model's.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from demo.assets import CHATML, cache_folder, unwritable

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ARCHITECTURES = ("llama", "gpt2", "qwen2", "gpt_neox")
CONTEXT_LENGTH = 512

PARAGRAPH = """\
user assistant system
A language model reads a text and guesses how it goes on. To learn that, it is shown a great many pages written by people, and for each
word it is told how far its guess was from the word that really followed. Such a model can write, but it does not yet do what somebody
asks of it: given a question, it may well answer with another question, because that is how lists of questions go on. So people show it
what they want. First they write good answers themselves, and the model learns to copy them. Then the model writes several answers, and
people say which of these is best, which is second, and which is worst. A second model learns from their choices to give every answer a
score. At last the first model writes, the second one scores, and what scores well becomes more likely. What is the capital of France? The
capital of France is Paris. Write a short poem about the sea. How do I boil an egg? Put the egg into hot water, wait for ten minutes, then
cool it. Thank you very much! You're welcome. Explain why the sky is blue. Sunlight is made of many colours; the air scatters blue light
more than red light, and that is what we see. Please summarise this text in one sentence. I'm sorry, but I can't help with that. 0 1 2 3 4
5 6 7 8 9 10 100 1000
"""


def make_tiny_model(
    folder: Path,
    architecture: str = "llama",
    vocab_size: int = 512,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 2,
    seed: int = 0,
    corpus: Iterable[str] | None = None,
) -> Path:
    """Fills `folder` with a randomly initialized model and its tokenizer, and returns it. The same arguments give the
    same bytes.

    The tokenizer is trained on `corpus`, or on a paragraph of this file; where that is too short for `vocab_size`
    tokens, the model's vocabulary is as small as the tokenizer's. `config.json` arrives last, so a folder that has one
    is complete. Raises ValueError on an unknown architecture or sizes that do not fit together.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r} is not one of {', '.join(ARCHITECTURES)}")
    if hidden_size % heads or hidden_size // heads % 2:
        raise ValueError(f"hidden_size={hidden_size} must be an even number for each of heads={heads}")
    fewest = 256 + len((PAD, START, END))
    if vocab_size < fewest:
        raise ValueError(f"vocab_size={vocab_size} has no room for 256 bytes and the special tokens, {fewest} in all")
    tokenizer = _train_tokenizer([PARAGRAPH] if corpus is None else corpus, vocab_size)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes["max_position_embeddings"] = CONTEXT_LENGTH
    if architecture != "gpt2":
        sizes["intermediate_size"] = 2 * hidden_size
    if architecture in ("llama", "qwen2"):
        sizes["num_key_value_heads"] = heads
    config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **sizes, **special)
    if architecture == "llama":
        config.tie_word_embeddings = True
    # Only the CPU's stream of random numbers, and put back afterwards: whoever makes a model on the way keeps its own.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(**special)

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        tokenizer.save_pretrained(beside)
        model.save_pretrained(beside)
        for file in sorted(Path(beside).iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, folder / file.name)
    return folder


def cached_tiny_model() -> Path:
    """The folder of the default tiny model, created in the cache on first use. Raises ValueError if that fails."""
    folder = cache_folder() / "tiny-llama"
    try:
        return folder if (folder / "config.json").is_file() else make_tiny_model(folder)
    except OSError as error:
        raise unwritable(folder.name, error) from None


def _train_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT_LENGTH,
        padding_side="right",
    )
    tokenizer.chat_template = CHATML
    return tokenizer
