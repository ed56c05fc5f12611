"""Code that computes the scores of a reward model with transformers alone, for its model card."""

from pathlib import Path
from typing import Any

from data.records import Prompt
from data.tokenize import encode_prompt
from modeling.architecture import has_classifier
from modeling.config import ModelConfig
from modeling.load import load_tokenizer, read_settings
from modeling.models import answer_suffix_of
from reward.batches import answer_ids

QUESTION, ANSWER = "Why is the sky blue?", "Air scatters blue light."
PLAIN = "text = prompt + answer + tokenizer.eos_token"
CLOSED = "text = prompt + answer  # and then the end of the chat template"
RENDERED = """turns = [*messages, {"role": "assistant", "content": answer}]
text = tokenizer.apply_chat_template(turns, tokenize=False)
text = text[: text.rindex(tokenizer.eos_token)] + tokenizer.eos_token"""
CLASSIFIER = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

place = "path/of/this/folder"
model = AutoModelForSequenceClassification.from_pretrained(place).eval()"""
GENERIC = """import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer
from transformers.modeling_layers import GenericForSequenceClassification

place = "path/of/this/folder"
settings = AutoConfig.from_pretrained(place)
causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
family = next(parent for parent in causal.__mro__ if parent.__name__.endswith("PreTrainedModel"))


class RewardModel(GenericForSequenceClassification, family):
    base_model_prefix = causal.base_model_prefix
    config_class = type(settings)


model = RewardModel.from_pretrained(place).eval()"""
"""For families that transformers has no sequence classifier for."""


def score_code(folder: Path, config: ModelConfig) -> str:
    """Python code that scores ANSWER to QUESTION with the reward model in a folder, in the tokens in which the run
    scores it; empty if the text alone does not give these.
    """
    tokenizer, settings = load_tokenizer(folder, config), read_settings(folder, config)
    closing = answer_suffix_of(settings, tokenizer)
    asked = encode_prompt(tokenizer, Prompt(prompt=QUESTION))
    expected = asked + answer_ids(tokenizer, ANSWER, True, closing)
    load = CLASSIFIER if has_classifier(settings) else GENERIC
    for way in (PLAIN, RENDERED) if closing is None else (CLOSED,):
        code = f"""{load}
tokenizer = AutoTokenizer.from_pretrained(place)
messages, answer = [{{"role": "user", "content": "{QUESTION}"}}], "{ANSWER}"
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
{way}
ids = tokenizer(text, add_special_tokens=False)["input_ids"]{"" if closing is None else " + model.config.score_closing"}
score = model(torch.tensor([ids])).logits.item() - model.config.score_bias"""
        if tokens(tokenizer, way) + (closing or []) == expected:
            return code
    return ""


def tokens(tokenizer: Any, way: str) -> list[int]:
    """The tokens of the text that a part of the code makes."""
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    text = prompt + ANSWER
    if way == RENDERED:
        turns = [*messages, {"role": "assistant", "content": ANSWER}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(tokenizer.eos_token)[0]
    ids: list[int] = tokenizer(text + tokenizer.eos_token * (way != CLOSED), add_special_tokens=False)["input_ids"]
    return ids
