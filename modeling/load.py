"""Loads, checks and saves models and tokenizers in Hugging Face format. Weights are safetensors, never pickles."""

import contextlib
import functools
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import Environment, TemplateSyntaxError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import cached_file, find_adapter_config_file

from data.chat_template import PLAIN, portable
from data.control_tokens import flag_control_tokens
from data.tokenize import end_of_turn, layout
from demo.assets import BASE_MODEL
from modeling.architecture import is_classifier, refuse_by_config, refuse_headless
from modeling.config import ModelConfig
from modeling.embeddings import grow_embeddings
from modeling.finite import require_finite_weights
from modeling.gpu import HEADS, implementation, keep_attention
from modeling.loading import loading, refuse_misfit, require_safetensors, require_vocabulary
from modeling.tiny import cached_tiny_model

# transformers reports new heads and shows a progress bar per file; stages print what matters themselves.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
log = logging.getLogger(__name__)

ADDED_PAD = "<|pad|>"
LIKELY_PADS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<unk>", "<|endoftext|>")
RESIDUAL_DROPOUT_NAMES = (
    "resid_pdrop", "resid_dropout", "residual_dropout", "hidden_dropout", "hidden_dropout_prob", "dropout"
)  # fmt: skip
"""The name of residual dropout in the configurations of GPT-2, GPT-Neo, StarCoder2, GPT-NeoX, BioGPT, and OPT."""


def base_model_place(config: ModelConfig) -> str:
    """The folder or Hub name of `model.base`; downloads the embedded model, or creates the tiny one, on first use.

    Raises ValueError if it cannot be downloaded or written.
    """
    if config.base == "embedded":
        return str(BASE_MODEL.path())
    if config.base == "tiny":
        return str(cached_tiny_model())
    return config.base


def load_tokenizer(place: str | Path, config: ModelConfig) -> Any:
    """The tokenizer, with a checked chat template, that template's end token as EOS, and a pad token other than EOS.

    If pad is missing or equals EOS, another special token becomes pad, or a new one is added and `load_causal` resizes
    the model's embeddings. Masks never depend on the pad id, but other classes that load our models use it. Raises
    ValueError if there is no tokenizer, it has no EOS, or its chat template leaves out the prompt or the answer.
    """
    with loading(place, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            str(place), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    require_vocabulary(tokenizer, place)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {place} has no EOS token, so an answer could never end")
    _set_chat_template(tokenizer, place, config)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        known = tokenizer.get_vocab()
        free = [
            token
            for token in LIKELY_PADS
            if token in known and known[token] not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
        ]
        tokenizer.add_special_tokens({"pad_token": free[0] if free else ADDED_PAD})
        tokenizer.pad_is_new = not free  # read by `grow_embeddings`
    return tokenizer


def _set_chat_template(tokenizer: Any, place: str | Path, config: ModelConfig) -> None:
    """Sets the chat template: the configured one, the tokenizer's own, or a plain one. Its end-of-turn token becomes
    EOS.

    Models may end a turn with a token other than their tokenizer's EOS (Gemma's `<end_of_turn>`, Llama 3's
    `<|eot_id|>`).
    """
    origin = str(place)
    if config.chat_template is not None:
        file = Path(config.chat_template)
        if not file.is_file():
            raise ValueError(f"model.chat_template={file}: no such file; give the path of a Jinja template")
        try:
            tokenizer.chat_template, origin = file.read_text(encoding="utf-8-sig"), f"model.chat_template={file}"
        except UnicodeDecodeError as error:
            raise ValueError(f"model.chat_template: {file}: not UTF-8 text (byte {error.start})") from None
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(tokenizer.chat_template)
        raise ValueError(f"{place} has several chat templates ({names}): set model.chat_template to a file with one")
    own = tokenizer.get_chat_template() if tokenizer.chat_template is not None else PLAIN
    tokenizer.chat_template = portable(own)
    flag_control_tokens(tokenizer, _end_tokens(tokenizer, place, config))
    try:
        layout(tokenizer)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None
    warn_unless_plain(tokenizer.chat_template, origin)
    if (end := end_of_turn(tokenizer)) is not None:
        if end != tokenizer.eos_token and "eos_token" in tokenizer.chat_template:
            tokenizer.chat_template = with_its_eos(tokenizer.chat_template, tokenizer.eos_token)
        tokenizer.eos_token = end
        flag_control_tokens(tokenizer)


def with_its_eos(template: str, eos: str) -> str:
    """Sets `eos_token` in a template, so that it still writes the tokenizer's own EOS when the tokenizer gets another:
    Phi-3's template ends a finished conversation with it, behind the token that ends the turn.
    """
    # The line break is not rendered: transformers has Jinja drop the one behind a tag.
    return f"{{% set eos_token = {json.dumps(eos, ensure_ascii=False)} %}}\n{template}"


@functools.lru_cache
def warn_unless_plain(template: str, origin: str) -> None:
    """Logs a warning, once, about tags such as `{% break %}`, an extension of Jinja that transformers enables."""
    try:
        Environment().parse(template)
    except TemplateSyntaxError as error:
        log.warning(
            f"{origin}: the chat template, which exported models keep, has a tag that transformers reads and plain "
            f"Jinja does not (line {error.lineno}: {(error.message or '').split('.')[0]})"
        )


def _end_tokens(tokenizer: Any, place: str | Path, config: ModelConfig) -> list[str]:
    """End tokens in the model's generation config or, if it has none, in its config.json, as transformers reads them.
    [] if neither can be read.
    """
    try:
        named = GenerationConfig.from_pretrained(str(place), revision=config.revision).eos_token_id
    except (OSError, ValueError):
        try:
            settings = AutoConfig.from_pretrained(
                str(place), revision=config.revision, trust_remote_code=config.trust_remote_code
            )
        except (OSError, ValueError):
            return []
        named = GenerationConfig.from_model_config(settings).eos_token_id
    known = tokenizer.added_tokens_decoder
    return [known[token].content for token in ([named] if isinstance(named, int) else named or []) if token in known]


def stop_ids(model: Any) -> frozenset[int]:
    """Token ids that end an answer, from the generation config and the chat template (see `grow_embeddings`)."""
    named = model.generation_config.eos_token_id
    return frozenset([named] if isinstance(named, int) else named or [])


def knows_tokens(reader: Any, writer: Any) -> bool:
    """Whether `reader` has every token of `writer` with the same id; it may have more."""
    known = reader.get_vocab()
    return all(known.get(token) == number for token, number in writer.get_vocab().items())


def same_tokenizer(a: Any, b: Any) -> bool:
    """Whether both give the same ids for every prompt and every completion, EOS included.

    Templates must be identical strings: two that agree on some conversations may differ on others.
    """
    words = [(t.eos_token, t.bos_token, t.chat_template) for t in (a, b)]
    return bool(a.get_vocab() == b.get_vocab() and words[0] == words[1] and _splitting(a) == _splitting(b))


def _splitting(tokenizer: Any) -> Any:
    """The parts of a tokenizer that determine the split into tokens, for comparison. A vocabulary alone does not:
    merges may be applied in a different order.
    """
    if not tokenizer.is_fast:
        return type(tokenizer)
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    return [whole[part] for part in ("added_tokens", "normalizer", "pre_tokenizer", "model")]


def read_settings(place: str | Path, config: ModelConfig) -> Any:
    """The model's configuration, without its weights.

    Raises ValueError if it is missing, the weights are quantized, or the model's folder also holds an adapter.
    """
    with loading(place, "model"):
        settings = AutoConfig.from_pretrained(
            str(place), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        adapter = find_adapter_config_file(str(place), revision=config.revision)
    if adapter is not None:
        raise ValueError(
            f"{place} holds a model and an adapter, which transformers would add to the model silently: merge the "
            "adapter into the model, or move adapter_config.json and the adapter's weights away"
        )
    if getattr(settings, "quantization_config", None) is not None:
        raise ValueError(
            f"{place} has quantized weights (quantization_config in its config.json), which cannot be trained and "
            "exported: save a dequantized copy first (see docs/architectures.md#quantized-weights)"
        )
    # `model.attention` chooses the implementation; attention weights and tuples are never read.
    settings._attn_implementation, settings.output_attentions, settings.return_dict = None, False, True
    return settings


def read_generation_settings(place: str | Path, config: ModelConfig) -> dict[str, Any] | None:
    """The contents of the model's generation_config.json; None if it has none.

    Raises ValueError if it is damaged, since its end tokens would be lost.
    """
    file = cached_file(
        str(place),
        "generation_config.json",
        revision=config.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    advice = "repair the file, or remove it to use the token ids of config.json"
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
        GenerationConfig.from_dict(dict(settings))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: transformers cannot read it ({why}): {advice}") from None
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens"):
        named = settings.get(name)
        if named is not None and not all(type(token) is int for token in (named if type(named) is list else [named])):
            raise ValueError(f"{file}: {name} must be a token id or a list of token ids, found {named!r}: {advice}")
    return dict(settings)


def load_causal(
    place: str | Path,
    config: ModelConfig,
    tokenizer: Any,
    residual_dropout: float = 0.0,
    quantize: bool = False,
) -> Any:
    """A causal language model in float32 and eval mode, with embeddings for every token of the tokenizer.

    Args:
        residual_dropout: used in train mode by architectures that have it. All other dropout is off.
        quantize: whether the model is a frozen base, whose linear layers are stored as `model.quantization` says.

    Raises ValueError when the model is missing.
    """
    settings = read_settings(place, config)
    read_generation_settings(place, config)  # transformers ignores a file that it cannot read
    set_dropout(settings, residual_dropout)
    model = _load(AutoModelForCausalLM, place, config, settings, quantize)
    if model.can_generate():
        # The base's sampling settings have no effect here, and transformers refuses to save some of them.
        kept = ("bos_token_id", "eos_token_id", "suppress_tokens")
        model.generation_config = GenerationConfig(**{name: getattr(model.generation_config, name) for name in kept})
    grow_embeddings(model, tokenizer)
    return model.eval()


def _load(kind: Any, place: str | Path, config: ModelConfig, settings: Any, quantize: bool) -> Any:
    """Loads the model with float32 weights. Raises ValueError unless all of them match the configuration."""
    require_safetensors(place, str(place))
    options = implementation(config, quantize)
    with loading(place, "model"):
        model, found = kind.from_pretrained(
            str(place), config=settings, revision=config.revision, trust_remote_code=config.trust_remote_code,
            dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True,
            **options,
        )  # fmt: skip
        model.config.validate()  # save_pretrained would raise the same error, but only after training
    keep_attention(model, config)
    if not is_classifier(settings):
        head = {name for name in found["missing_keys"] if name.startswith("score.")}
        found["missing_keys"] = set(found["missing_keys"]) - head
        if kind is AutoModelForSequenceClassification and not head:
            raise ValueError(
                f"{place} has the head of a reward model (score.weight), but its config.json does not say so: set "
                f'architectures to ["{type(model).__name__}"] and num_labels to 1 there'
            )
    refuse_misfit(place, model, found)
    if unused := sorted(name for name in found["unexpected_keys"] if name.split(".")[0] not in HEADS):
        warn_of_unused(str(place), len(unused), unused[0])
    require_finite_weights(model.named_parameters(), str(place), "its file is damaged, or its training diverged")
    return model


@functools.lru_cache
def warn_of_unused(place: str, count: int, first: str) -> None:
    """Logs a warning, once."""
    log.warning(f"{place}: {count} of its weights are not used, {first} among them: its architecture has no such part")


def load_scalar(place: str | Path, config: ModelConfig, tokenizer: Any, quantize: bool = False) -> Any:
    """`AutoModelForSequenceClassification` with one label, in float32 and eval mode.

    Loads a saved reward model, or puts a new head on a language model (see `modeling.models.initialize_head`).
    `quantize` is as in `load_causal`.
    Raises ValueError when the model is missing, or is a classifier that is no supported reward model.
    """
    settings = read_settings(place, config)
    classifier = is_classifier(settings)
    set_dropout(settings)
    if classifier:
        require_reward_model(settings, str(place), config.trust_remote_code)
    else:
        settings.num_labels = 1
        refuse_headless(settings, str(place), config.trust_remote_code)
    model = _load(AutoModelForSequenceClassification, place, config, settings, quantize)
    grow_embeddings(model, tokenizer)
    return model.eval()


def set_dropout(settings: Any, residual: float = 0.0) -> None:
    """Sets residual dropout in a configuration that has it, and every other kind of dropout to 0."""
    for name, value in vars(settings).items():
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(settings, name, residual if name in RESIDUAL_DROPOUT_NAMES else 0.0)


def require_reward_model(settings: Any, name: str, trusted: bool) -> None:
    """Raises ValueError if this is not the configuration of a reward model that `load_scalar` can load.

    `name` is the setting, for the message; `trusted` is its trust_remote_code. Allocates no weights.
    """
    if not is_classifier(settings):
        kind = ", ".join(settings.architectures or ["unknown"])
        raise ValueError(f"{name} is not a reward model: its architecture is {kind}")
    if settings.num_labels != 1:
        raise ValueError(f"{name} is a classifier of {settings.num_labels} labels; a reward model has one")
    if "AutoModelForSequenceClassification" not in (getattr(settings, "auto_map", None) or {}):
        refuse_by_config(settings, name)
    refuse_headless(settings, name, trusted)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Saves model and tokenizer unchanged in Hugging Face format; stages save through `modeling.export`."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


POSITIONS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")
"""Names of the number of positions in configurations; transformers maps others, such as n_positions, to the first."""
WINDOWS = ("sliding_window", "window_size", "attention_window", "local_attention", "attention_chunk_size")
"""Names of the width of local attention."""


def attention_window(settings: Any) -> int | None:
    """The width of a model's local attention in tokens; None if each token attends to all before it."""
    text = settings.get_text_config()
    return min((int(width) for name in WINDOWS if (width := getattr(text, name, None))), default=None)


def context_length(settings: Any) -> int:
    """The maximum number of tokens of a model with this configuration; a large number if it has no limit.

    Models with longrope (Phi-3) are limited to their original context: beyond it transformers rescales the positions of
    the whole batch.
    """
    text = settings.get_text_config()
    limits = [getattr(text, name, None) for name in POSITIONS]
    rope = getattr(text, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):  # of all layers, or of each kind of layer
        if isinstance(part, dict) and part.get("rope_type") == "longrope":
            limits.append(part.get("original_max_position_embeddings"))
    return min((int(limit) for limit in limits if limit), default=2**30)


def autocast(config: ModelConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast context for generation according to `model.precision`. Model modules have their own
    (modeling/models.py).
    """
    dtype = autocast_dtype(config, device)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def autocast_dtype(config: ModelConfig, device: torch.device) -> torch.dtype | None:
    """The autocast dtype for `model.precision` on this device; None computes in the dtype of the weights."""
    if config.precision == "auto":
        # Older GPUs emulate bfloat16, slower than float32.
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else None
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.precision)


def freeze(module: nn.Module) -> None:
    """Disables the gradients of all parameters."""
    module.requires_grad_(False)
