"""Python code that computes the scores of a trained reward model with transformers alone, for its model card."""

from pathlib import Path
from typing import Any

from data.messages import Message
from data.records import Prompt
from data.tokenize import encode_prompt
from modeling.architecture import has_classifier
from modeling.config import ModelConfig
from modeling.load import load_tokenizer, read_settings
from modeling.models import answer_suffix_of
from reward.batches import answer_ids

QUESTION, ANSWER = "Why is the sky blue?", "Air scatters blue light."
PLACE = "path/of/this/folder"
CLASSIFIER = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

place = "{place}"
model = AutoModelForSequenceClassification.from_pretrained(place{trusted}).eval()"""
GENERIC = """import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer
from transformers.modeling_layers import GenericForSequenceClassification

place = "{place}"
settings = AutoConfig.from_pretrained(place)
causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
family = next(parent for parent in causal.__mro__ if parent.__name__.endswith("PreTrainedModel"))


class RewardModel(GenericForSequenceClassification, family):
    base_model_prefix = causal.base_model_prefix
    config_class = type(settings)


model = RewardModel.from_pretrained(place).eval()"""
"""For families that transformers has no sequence classifier for."""
PROMPT = "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)"
JOINED = f"""{PROMPT}
text = prompt + answer + tokenizer.eos_token"""
RENDERED = """turns = [*messages, {"role": "assistant", "content": answer}]
text = tokenizer.apply_chat_template(turns, tokenize=False)
text = text[: text.rindex(tokenizer.eos_token)] + tokenizer.eos_token"""
BEFORE_CLOSING = f"""{PROMPT}
text = prompt + answer  # followed by the end of the chat template"""
FORMS = (JOINED, RENDERED, BEFORE_CLOSING)
"""How the text of a conversation is made; each is tried in turn."""


def score_code(folder: Path, config: ModelConfig) -> str:
    """Code that scores ANSWER to QUESTION with the reward model in a folder, in the tokens in which the run scores it;
    empty if no form gives these.
    """
    tokenizer, settings = load_tokenizer(folder, config), read_settings(folder, config)
    closing = answer_suffix_of(settings, tokenizer)
    expected = encode_prompt(tokenizer, Prompt(prompt=QUESTION)) + answer_ids(tokenizer, ANSWER, True, closing)
    trusted = ", trust_remote_code=True" if getattr(settings, "auto_map", None) else ""
    load = (CLASSIFIER if has_classifier(settings) else GENERIC).replace("{place}", PLACE).replace("{trusted}", trusted)
    for form in FORMS:
        if ids_of(tokenizer, form) + (closing or []) == expected:
            appended = "" if closing is None else " + model.config.score_closing"
            return f"""{load}
tokenizer = AutoTokenizer.from_pretrained(place{trusted})
messages, answer = [{{"role": "user", "content": "{QUESTION}"}}], "{ANSWER}"
{form}
ids = tokenizer(text, add_special_tokens=False)["input_ids"]{appended}
score = model(torch.tensor([ids])).logits.item() - model.config.score_bias
"""
    return ""


def ids_of(tokenizer: Any, form: str) -> list[int]:
    """The token ids of the text that one of FORMS makes; none if it cannot be made."""
    messages: list[Message] = [{"role": "user", "content": QUESTION}]
    names = {"tokenizer": tokenizer, "messages": messages, "answer": ANSWER}
    try:
        exec(form, names)
    except ValueError:  # no EOS in the rendered text
        return []
    ids: list[int] = tokenizer(names["text"], add_special_tokens=False)["input_ids"]
    return ids
