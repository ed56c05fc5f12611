"""Checks of a language model from outside the run, before any work is spent on it."""

from modeling.architecture import is_classifier, refuse_by_config, refuse_lookahead
from modeling.config import ModelConfig
from modeling.generation import generator_for
from modeling.load import load_causal, load_tokenizer, read_settings
from modeling.loading import require_safetensors
from modeling.logprobs import refuse_unknown_logits


def refuse_unusable(place: str, config: ModelConfig, name: str) -> None:
    """Loads a model and drops it. Raises ValueError unless it is a causal language model in safetensors format, has
    finite weights and log-probabilities, and can be decoded.

    Args:
        place: a folder, or a model on the Hub.
        name: the setting, for the message.
    """
    refuse_other_kinds(place, config, name)
    model = load_causal(place, config, load_tokenizer(place, config))
    refuse_lookahead(model, name)
    refuse_unknown_logits(model, name)
    generator_for(model)


def refuse_other_kinds(place: str, config: ModelConfig, name: str) -> None:
    """Raises ValueError, without loading weights, unless this is a causal language model in safetensors format."""
    settings = read_settings(place, config)
    refuse_by_config(settings, name)
    if is_classifier(settings):
        raise ValueError(f"{name} is a reward model or another classifier, which cannot generate answers")
    require_safetensors(place, name)
