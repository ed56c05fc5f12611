"""Copies of model folders, and what tests do to them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer


def rewrite_tokenizer(folder: Path, **special: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)


def end_like_gpt2(folder: Path) -> None:
    """One token for the start and the end of a text, and no pad token and no chat template."""
    rewrite_tokenizer(folder, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token=None, chat_template=None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def one_sentence(error: pytest.ExceptionInfo[ValueError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    for word in words:
        assert word in text
