"""Counts a model's weights, activations and key/value cache from its configuration, without allocating any of them.

Models are built on torch's meta device, so that every architecture is counted by its own code. Forward passes run on
fake tensors (https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html), which have shapes and dtypes but no
data; autograd's hooks then see what is kept for the backward pass.
"""

import copy
import functools
import logging
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from modeling.adapters import HEAD, MAPS, add_lora
from modeling.architecture import backbone_of, scalar_class
from modeling.batch import Batch
from modeling.config import LoraSettings
from modeling.kv_cache import KVCache
from modeling.memory_plan import Activations, Counts
from modeling.models import Encoder, adapter_of_model, plain
from modeling.shared_prefix import NAME, enable
from modeling.trial import small_copy


@dataclass(frozen=True)
class Element:
    """The longest example of a batch: a prompt with its answers, in tokens."""

    prompt: int
    answer: int
    answers: int = 1

    @property
    def tokens(self) -> int:
        """All tokens, the prompt's once."""
        return self.prompt + self.answers * self.answer

    def batch(self, copies: int) -> Batch:
        """A batch of `copies` such examples with different prompts."""
        prompts = [[5 + number] * self.prompt for number in range(copies) for _ in range(self.answers)]
        return Batch(prompts, [[5] * self.answer for _ in prompts])


def skeleton(settings: Any, scalar: bool, lora: LoraSettings | None = None, trust_remote_code: bool = False) -> Any:
    """A language model, or a reward or value model, on the meta device in float32. With `lora` only an adapter is
    trained, and a scalar head. Its attention is that of a loaded model.
    """
    settings = copy.deepcopy(settings)
    if scalar:
        settings.num_labels = 1
        scalar_class(settings)  # registers the class
    auto = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    make = functools.partial(auto.from_config, trust_remote_code=trust_remote_code)
    small = small_copy(make, settings)
    reason = "no small copy of it can be made" if small is None else enable(backbone_of(small))
    with torch.device("meta"):
        model = make(copy.deepcopy(settings), dtype=torch.float32).eval()
        if reason is None:
            backbone_of(model).set_attn_implementation(NAME)
        backbone_of(model).shared_prefix_reason = reason  # `enable` compares outputs, which meta tensors lack
        if lora is not None:
            model = add_lora(model, lora)
            if scalar:
                getattr(plain(model), HEAD).requires_grad_(True)
    return model


def count(model: nn.Module) -> int:
    """Number of weights, tied ones once."""
    return sum(weight.numel() for weight in model.parameters())


def linear_weights(model: Any) -> int:
    """Number of weights of linear layers below the head, which autocast copies in bfloat16."""
    maps = [module for module in backbone_of(model).modules() if isinstance(module, MAPS)]
    return sum(module.get_parameter("weight").numel() for module in maps)


def counts(model: Any, element: Element, autocast_dtype: torch.dtype | None, checkpointing: bool = False) -> Counts:
    """Counts of a model from `skeleton`, for batches of such elements.

    Args:
        checkpointing: whether only each layer's input is kept, and its activations are computed again.

    Raises ValueError for a model whose forward pass depends on data, such as a mixture of experts.
    """
    trained = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    adapted = [module.get_base_layer().weight.numel() for module in model.modules() if isinstance(module, LoraLayer)]
    top = model.peft_config[model.active_adapter].layers_to_transform if adapted else None
    layers = len(top) if top else plain(model).config.get_text_config().num_hidden_layers
    encoder = Encoder(model, adapter_of_model(model), autocast_dtype=autocast_dtype)
    fixed, per_token = _line(encoder, element)
    layer = ceil(per_token / layers)  # layers below the adapters keep nothing
    if checkpointing:
        encoder.enable_checkpointing()
        _, per_token = _line(encoder, element)  # autocast keeps its copies until the forward pass ends
    kept, lora = Activations(fixed, ceil(per_token), layer), bool(adapted)
    base = count(model) - (sum(trained) if lora else 0)
    return Counts(base, sum(trained), max(trained), lora, kept, sum(adapted))


def _line(encoder: Encoder, element: Element) -> tuple[int, float]:
    """(fixed bytes, bytes per token), from batches of two and three elements: with a single prompt the answers would
    share a mask.
    """
    batches = [element.batch(copies) for copies in (2, 3)]
    layouts = [batch.layout(packed=encoder.plain_reason is None) for batch in batches]  # needs real numbers
    tokens = [layout.inputs()["input_ids"].numel() for layout in layouts]
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it logs the traceback of an error that is raised again below
    try:
        two, three = (kept_for_backward(encoder, batch, "state") for batch in batches)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the activations of {type(plain(encoder.model)).__name__} cannot be counted without data "
            f"({type(error).__name__}); mixtures of experts are not supported"
        ) from None
    finally:
        log.setLevel(level)
    per_token = (three - two) / (tokens[1] - tokens[0])
    return max(0, round(two - per_token * tokens[0])), per_token


def kept_for_backward(module: nn.Module, *inputs: Any) -> int:
    """Bytes that autograd saves for the backward pass of `module(*inputs)`, without the weights."""
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # the same object for all views, while one is referenced
        kept[id(storage)] = storage
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        state = _fake_state(module)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            torch.func.functional_call(module, state, inputs)
        own = {id(tensor.untyped_storage()) for tensor in state.values()}
    return sum(storage.nbytes() for number, storage in kept.items() if number not in own)


def cache_bytes_per_token(model: Any, autocast_dtype: torch.dtype | None) -> int:
    """Bytes of a token's keys and values in all layers of a language model, as modeling/kv_cache.py stores them."""
    tokens, cache = 8, KVCache(model, slots=1, columns=8)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        cache.prefilling = slice(0, 1), torch.zeros(1, dtype=torch.long)
        inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.long), "past_key_values": cache, "use_cache": True}
        with torch.autocast("cpu", dtype=autocast_dtype, enabled=autocast_dtype is not None):
            torch.func.functional_call(model, _fake_state(model), (), inputs)
        return sum(states.nbytes for layer in cache.states for states in layer) // tokens


def _fake_state(module: nn.Module) -> dict[str, Tensor]:
    """Fake tensors for its weights and buffers, on the CPU: autocast does not support the meta device."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: torch.empty_like(tensor, device="cpu").requires_grad_(tensor.requires_grad) for name, tensor in named}
