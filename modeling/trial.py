"""One training step per kind of training on a small copy of a model, before any stage trains.

The copy has random weights and the model's own architecture with few layers and heads and a small vocabulary. It shows
whether adapters, a forward pass with labels and a backward pass work, in about a second for a model of any size.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from modeling.adapters import add_lora, merged
from modeling.architecture import backbone_of
from modeling.batch import Batch
from modeling.config import LoraSettings
from modeling.finite import is_finite
from modeling.models import ValueModel, initialize_head, plain, policy_model, reward_model

HEADS, WIDTH, WORDS, LAYERS = 4, 64, 256, 2
KINDS = 4
"""A list in a configuration with more distinct values than this does not describe kinds of layers."""
WIDTHS = (
    "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "block_ff_dim", "moe_intermediate_size",
    "shared_expert_intermediate_size", "shared_intermediate_size",
)  # fmt: skip
"""Names of the widths of MLPs and experts in transformers configurations."""
LARGEST = 32_000_000
"""Maximum number of parameters of a copy: 128 MB of weights in float32, and the same for gradients."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """The model to try, and how it will be trained."""

    name: str
    """The setting that names the model, for messages."""
    lora: LoraSettings | None
    """None trains all weights."""

    def causal(self, model: Any) -> None:
        """Tries a training step of SFT and one of PPO's policy on a small copy of a causal model.

        Raises ValueError when one fails, or a trained parameter gets no finite gradient.
        """
        with self._small_copy(type(model), model.config) as small:
            if small is None:
                return
            with self._step("adding the LoRA adapters", small.config):
                trained = self._adapted(small)
            with self._step("a step of supervised fine-tuning", small.config):
                ids_BS = torch.arange(5, 21).reshape(2, 8) % small.get_input_embeddings().num_embeddings
                given = {"attention_mask": torch.ones_like(ids_BS), "labels": ids_BS, "use_cache": False}
                trained.train()(input_ids=ids_BS, **given, **router_loss(small.config)).loss.backward()
                check_gradients(trained)
            with self._step("a step of PPO's policy", small.config):
                trained.eval()
                policy_model(trained)(few_tokens(small))[0].sum().backward()
                check_gradients(trained)
            with self._step("merging the LoRA adapters", small.config):
                merged(trained)

    def scalar(self, make: Callable[[Any], Any], settings: Any) -> None:
        """Tries a training step of the reward model and one of the value model; `make` builds one from a configuration.

        Raises ValueError like `causal`.
        """
        settings = copy.deepcopy(settings)
        settings.num_labels = 1
        with self._small_copy(make, settings) as small:
            if small is None:
                return
            with self._step("adding the LoRA adapters", small.config):
                initialize_head(small, 0)
                trained = self._adapted(small)
                plain(trained).score.requires_grad_(True)
                reward = reward_model(trained)
            for step, model in (("the reward model", reward), ("the value model", ValueModel(reward.encoder))):
                with self._step(f"a step of {step}", small.config):
                    model(few_tokens(small)).sum().backward()
                    check_gradients(trained)

    def _adapted(self, small: Any) -> Any:
        if self.lora is None:
            return small
        layers = small.config.get_text_config().num_hidden_layers
        return add_lora(small, replace(self.lora, top_layers=min(self.lora.top_layers or layers, layers)))

    @contextmanager
    def _small_copy(self, make: Callable[[Any], Any], settings: Any) -> Iterator[Any]:
        """A copy that runs forward; None, with a warning, if none can be made. Global random states are unchanged."""
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
            torch.default_generator.manual_seed(0)
            small = small_copy(make, settings)
            if small is None:
                why = f"no small copy of this model ({settings.model_type}) can be made"
                log.warning("%s: no training step was tried before training, because %s", self.name, why)
            yield small

    @contextmanager
    def _step(self, step: str, settings: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # peft and the model's own code may raise anything
            message = " ".join(str(error).split())[:200] or type(error).__name__
            why = message if isinstance(error, GradientError) else f"{type(error).__name__}: {message}"
            instead = "choose another model" if self.lora is None else "choose another model, or try model.adapter=none"
            failed = f"{step} fails on a small copy of it ({why})"
            raise ValueError(f"{self.name} cannot be trained ({settings.model_type}): {failed}; {instead}") from None


class GradientError(Exception):
    """A trained parameter got no finite gradient."""


def check_gradients(model: Any) -> None:
    """Clears the gradients. Raises GradientError unless each trained parameter has a finite one.

    Experts without routed tokens may have none.
    """
    for name, parameter in model.named_parameters():
        gradient, parameter.grad = parameter.grad, None
        if not parameter.requires_grad:
            continue
        if gradient is None and ".experts." not in name:
            raise GradientError(f"{name} gets no gradient")
        if gradient is not None and not is_finite(gradient):
            raise GradientError(f"the gradient of {name} has NaN or infinite values")


def few_tokens(model: Any) -> Batch:
    """Two prompts, one of them with two answers."""
    words = model.get_input_embeddings().num_embeddings
    prompts, answers = [[5, 6, 7], [5, 6, 7], [8, 9]], [[10, 11], [12], [13, 14, 15]]
    prompts, answers = ([[token % words for token in row] for row in rows] for rows in (prompts, answers))
    return Batch(prompts, answers)


def router_loss(settings: Any) -> dict[str, bool]:
    """The argument that adds the router's auxiliary loss, for models for which SFT adds it."""
    text = settings.get_text_config()
    known = hasattr(text, "output_router_logits") and hasattr(text, "num_experts")
    return {"output_router_logits": True} if known and getattr(text, "router_aux_loss_coef", None) else {}


@torch.no_grad()
def small_copy(make: Callable[[Any], Any], settings: Any) -> Any | None:
    """A small model with random weights, in eval mode; None if the configuration cannot be made small.

    Not every configuration can be made narrow through the usual names, and the failure of an inconsistent copy says
    nothing about the model. A copy must therefore run a plain forward pass first.
    """
    for narrow in (True, False):
        try:
            smaller = small_settings(settings, narrow)
            with torch.device("meta"):
                if sum(parameter.numel() for parameter in make(copy.deepcopy(smaller)).parameters()) > LARGEST:
                    continue
            small = make(smaller).float().eval()
            batch = few_tokens(small)
            backbone_of(small)(input_ids=torch.tensor(batch.prompts[:2]), use_cache=False)
        except Exception as error:  # a configuration or a model may raise anything
            log.debug("no small copy of %s: %s", type(settings).__name__, error)
            continue
        return small
    return None


def small_settings(settings: Any, narrow: bool) -> Any:
    """The configuration with few layers and a small vocabulary, and if `narrow` also with few heads and narrow MLPs.

    Each kind of layer is kept, and so is the head size, on which rotary embeddings depend.
    """
    small = copy.deepcopy(settings)
    if str(small._attn_implementation).startswith("flash"):
        small._attn_implementation = None  # the copy is on the CPU: sdpa, or eager where there is no other
    text = small.get_text_config()
    keep_layers(text)
    text.vocab_size = min(text.vocab_size, WORDS)
    for part in (small, text):
        if (getattr(part, "pad_token_id", None) or 0) >= text.vocab_size:
            part.pad_token_id = 0
    if not narrow:
        return small
    heads, hidden = text.num_attention_heads, text.hidden_size
    if heads > HEADS and hidden % heads == 0:
        text.num_attention_heads, text.hidden_size = HEADS, hidden // heads * HEADS
        for name in ("num_key_value_heads", "num_kv_heads"):
            if isinstance(groups := getattr(text, name, None), int):
                setattr(text, name, HEADS if groups == heads else min(groups, HEADS // 2))
        if getattr(text, "word_embed_proj_dim", hidden) != hidden:
            text.word_embed_proj_dim = min(text.word_embed_proj_dim, WIDTH)
        elif hasattr(text, "word_embed_proj_dim"):
            text.word_embed_proj_dim = text.hidden_size
    for name in WIDTHS:
        if isinstance(width := getattr(text, name, 0), int | None) and width != 0:  # None stands for 4 * hidden_size
            setattr(text, name, min(width or WIDTH, WIDTH))
    return small


def keep_layers(text: Any) -> None:
    """Keeps the first layers, and the first of each kind if lists in the configuration describe kinds of layers."""
    count = text.num_hidden_layers
    lists = {name: value for name, value in vars(text).items() if isinstance(value, list | tuple)}
    lists = {name: value for name, value in lists.items() if len(value) == count}
    telling = [value for value in map(list, lists.values()) if len(set(map(repr, value))) <= KINDS]
    kinds = [repr([value[layer] for value in telling]) for layer in range(count)]
    kept = sorted({*range(min(LAYERS, count)), *(kinds.index(kind) for kind in kinds)})
    text.num_hidden_layers = len(kept)
    for name, value in lists.items():
        setattr(text, name, type(value)(value[layer] for layer in kept))
    if (dense := getattr(text, "first_k_dense_replace", None)) is not None:
        text.first_k_dense_replace = min(dense, 1)
