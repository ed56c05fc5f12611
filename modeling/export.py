"""Exports a trained model with its base's configuration, except for the changes listed here, and verifies the files.

Trainers change configurations for their own use (`use_cache`, `output_router_logits`, dropout, token ids). Such changes
are not exported.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)

from modeling.architecture import backbone_of, float32_arithmetic, is_classifier
from modeling.config import ModelConfig
from modeling.disk import discard, room_for
from modeling.embeddings import with_end
from modeling.finite import require_finite_files
from modeling.load import read_generation_settings, read_settings, save

CONFIG_CHANGES = {
    "pad_token_id": "the pad token differs from EOS",
    "vocab_size": "tokens that have no embedding in the base get one",
    "architectures": "a reward model is a classifier",
    "id2label": "a reward model has one label (num_labels)",
    "label2id": "a reward model has one label (num_labels)",
    "problem_type": "a reward model has one label",
    "score_bias": "the mean score of demonstrations, which is subtracted from a reward model's logit",
    "score_closing": "the tokens that are appended to an answer before it is scored",
    "dtype": "weights are saved in float32",
    "auto_map": "left out if transformers' own classes were loaded, since the base's code files are then not exported",
    "transformers_version": "the version that wrote the file",
}
"""Fields of config.json in which an export may differ from its base, and why."""
GENERATION_CHANGES = {
    "pad_token_id": "the pad token differs from EOS",
    "eos_token_id": "the tokenizer's EOS, which ends answers in training, is added where it is missing",
    "suppress_tokens": "a new pad token is never sampled",
    "transformers_version": "the version that wrote the file",
    "_from_model_config": "these settings are no longer derived from config.json",
}
"""Fields of generation_config.json in which an export may differ from its base, and why."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens")
"""Fields of generation_config.json that hold token ids."""
NEW_TOKENS = 4
"""Tokens that the exported model must generate."""
FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)


def export(model: Any, tokenizer: Any, folder: Path, config: ModelConfig) -> None:
    """Saves a model that was loaded by `load_causal` or `load_scalar` and then trained, with its tokenizer.

    The folder gets its final name only after it has been verified. `model.config` is restored to the base's too, and
    `auto_map` is removed from it and from the tokenizer unless their code came with the base.

    Raises ValueError when the disk is full, a weight is not finite, the folder does not load, or the model fails to
    generate (a reward model: to score). Nothing is left of a folder that failed.
    """
    beside = folder.with_name(f"{folder.name}.unverified")
    discard(beside)
    base = base_settings(model, config)
    restore(model.config, base)
    if not has_own_code(model):
        vars(model.config).pop("auto_map", None)
    if not has_own_code(tokenizer):
        tokenizer.init_kwargs.pop("auto_map", None)
    for name in ("is_local", "local_files_only"):  # loading options, not part of the tokenizer
        tokenizer.init_kwargs.pop(name, None)
    try:
        with room_for(folder):
            save(model, tokenizer, beside)
            if model.can_generate():
                settings = generation_settings(model, tokenizer, base, config)
                (beside / "generation_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        verify(model, beside, base, config)
    except BaseException:
        discard(beside)
        raise
    discard(folder)
    beside.rename(folder)


def has_own_code(loaded: Any) -> bool:
    """Whether the class of a model or a tokenizer comes from the code files of its folder."""
    return type(loaded).__module__.startswith("transformers_modules.")


def base_settings(model: Any, config: ModelConfig) -> PreTrainedConfig:
    """The configuration in the place from which the model was loaded."""
    base = read_settings(model.name_or_path, config)
    return base if type(base) is type(model.config) else base.get_text_config()


def restore(settings: PreTrainedConfig, base: PreTrainedConfig) -> None:
    """Sets all fields except CONFIG_CHANGES to the base's values, in place, because the modules read this object."""
    moved = GenerationConfig().to_dict()  # fields that transformers removes from a config when it loads a model
    for name in sorted(vars(settings).keys() | vars(base).keys()):
        if name.startswith("_") or name in CONFIG_CHANGES:
            continue
        if name not in vars(base):
            delattr(settings, name)
        elif isinstance(vars(base)[name], PreTrainedConfig):
            restore(getattr(settings, name), vars(base)[name])
        elif name in vars(settings) or name not in moved:
            setattr(settings, name, copy.deepcopy(vars(base)[name]))


def differences(found: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """Dotted names of fields, outside CONFIG_CHANGES, in which two configurations differ."""
    names = []
    for name in sorted((found.keys() | base.keys()) - CONFIG_CHANGES.keys()):
        if name.startswith("_"):  # such as the path from which it was loaded
            continue
        ours, theirs = found.get(name), base.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            names += [f"{name}.{inner}" for inner in differences(ours, theirs)]
        elif ours != theirs:
            names.append(name)
    return names


def generation_settings(model: Any, tokenizer: Any, base: PreTrainedConfig, config: ModelConfig) -> dict[str, Any]:
    """The base's generation_config.json with GENERATION_CHANGES."""
    settings = read_generation_settings(model.name_or_path, config)
    if settings is None:
        settings = GenerationConfig.from_model_config(base).to_diff_dict()
    settings.pop("_from_model_config", None)
    settings["pad_token_id"] = tokenizer.pad_token_id
    settings["eos_token_id"] = with_end(settings.get("eos_token_id"), tokenizer.eos_token_id)
    if suppressed := model.generation_config.suppress_tokens:
        settings["suppress_tokens"] = list(suppressed)
    settings["transformers_version"] = model.config.to_dict()["transformers_version"]
    return settings


def verify(model: Any, folder: Path, base: PreTrainedConfig, config: ModelConfig) -> None:
    """Verifies the files saved from `model`. Raises ValueError with one sentence for the first check that fails."""
    require_finite_files(folder)
    trust = {"trust_remote_code": config.trust_remote_code}
    loaded = checked(folder, "load its configuration", lambda: AutoConfig.from_pretrained(folder, **trust))
    tokenizer = checked(folder, "load its tokenizer", lambda: AutoTokenizer.from_pretrained(folder, **trust))
    if changed := differences(loaded.to_dict(), base.to_dict()):
        raise ValueError(f"{folder}: config.json differs from the base's in {', '.join(changed)}")
    kind = AutoModelForSequenceClassification if is_classifier(loaded) else AutoModelForCausalLM
    # On the meta device names and shapes are compared without allocating the weights.
    _, found = checked(
        folder,
        "match its weights with its configuration",
        lambda: kind.from_pretrained(
            folder,
            device_map="meta",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **trust,
        ),
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[problem]:
            names = ", ".join(sorted(map(str, found[problem])))
            raise ValueError(f"{folder}: {problem.removesuffix('_keys')} weights: {names}")
    with float32_arithmetic(backbone_of(model)):
        checked(folder, "run", lambda: run(model, tokenizer, folder))


def checked(folder: Path, what: str, do: Callable[[], Any]) -> Any:
    """Returns the result of `do`. Raises ValueError with one sentence when it fails."""
    try:
        return do()
    except FAILURES as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{folder}: the exported model fails to {what} ({first})") from error


@torch.no_grad()
def run(model: Any, tokenizer: Any, folder: Path) -> None:
    """Generates a few tokens, or computes a score.

    Decodes greedily and takes only the token ids of the exported generation config. Its other settings are the base's,
    and some of them cannot be used with a model alone (`stop_strings` needs a tokenizer).

    Raises ValueError when a logit is not finite.
    """
    ids_BT = torch.tensor([tokenizer.encode("Hello") or [tokenizer.eos_token_id]], device=model.device)
    training = model.training
    model.eval()
    try:
        if not model.can_generate():
            logits = [model(input_ids=ids_BT).logits]
        else:
            exported = GenerationConfig.from_pretrained(folder)
            ids = {name: getattr(exported, name) for name in TOKEN_IDS}
            logits = model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                generation_config=GenerationConfig(**ids, do_sample=False, max_new_tokens=NEW_TOKENS),
                return_dict_in_generate=True,
                output_logits=True,
            ).logits
    finally:
        model.train(training)
    if not logits or not all(bool(piece.isfinite().all()) for piece in logits):
        raise ValueError("its logits are not finite")
