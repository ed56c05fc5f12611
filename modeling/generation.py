"""Generates responses with our KV-cache decoder, transformers' `generate` or vLLM (docs/generation.md).

    generator = generator_for(model, tokens=longest_prompt + 64)
    responses = generator.generate(model, prompts, seeds, GenerationSettings(max_new_tokens=64))

In our decoder each response has its own random stream, so in float64 its text depends only on model, prompt and seed,
not on batch size, order of prompts or number of processes. In float32, batches of other shapes round differently, which
occasionally changes a sampled token. Shapes: B unfinished sequences, T new tokens, V vocabulary.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, TopKLogitsWarper, TopPLogitsWarper

from modeling.adapters import merged_weights
from modeling.architecture import NEEDED, backbone_of, float32_arithmetic
from modeling.config import GenerationSettings
from modeling.finite import OVERFLOW, require_finite
from modeling.kv_cache import KVCache
from modeling.load import WINDOWS, attention_window, context_length, stop_ids
from modeling.seeds import derive_seed
from modeling.trial import small_copy

REFILL = 0.2
"""Fraction of slots that must be free before waiting prompts are prefilled: prefills and empty slots both cost time. If
responses end with probability p per step, sqrt(2 p) is cheapest."""
Prompts = Sequence[Sequence[int]]
OnBatch = Callable[[int], object] | None
log = logging.getLogger(__name__)


@dataclass
class Generation:
    """One response."""

    ids: list[int]
    """Up to and including the end token, if there is one."""
    logprobs: list[float] | None
    """Of each token, after temperature, top-k and top-p (greedy decoding: in the unmodified distribution); None if the
    generator does not record them."""
    ended: bool
    """Whether the response ends with an end token."""


class Generator(Protocol):
    """Generates responses."""

    records_logprobs: bool

    def generate(
        self, model: Any, prompts: Prompts, seeds: Sequence[int], sampling: GenerationSettings, on_batch: OnBatch = None
    ) -> list[Generation]:
        """A response to each prompt, in order. End tokens are `modeling.load.stop_ids(model)`.

        Args:
            on_batch: called with the number of responses finished since its last call.

        Raises ValueError for a prompt that is empty or leaves no room for an answer in the model's context.
        """
        ...


class NativeGenerator:
    """Our KV-cache decoder, for models that `generator_for` accepts. Raises ValueError for a non-finite logit."""

    records_logprobs = True

    @torch.no_grad()
    def generate(
        self, model: Any, prompts: Prompts, seeds: Sequence[int], sampling: GenerationSettings, on_batch: OnBatch = None
    ) -> list[Generation]:
        """See `Generator`. A finished sequence leaves the batch, and a waiting prompt takes its slot."""
        check_room(model, prompts, sampling)
        ends, waiting, batch = stop_ids(model), by_length(prompts), list[int]()
        slots, columns = min(sampling.batch_size, len(prompts)), max(map(len, prompts), default=0)
        if (failure := beyond_window(model, columns + sampling.max_new_tokens)) is not None:
            raise ValueError(failure)
        uniforms = [uniform_numbers(seed, sampling.max_new_tokens) for seed in seeds]
        responses, logprobs = [Generation([], None, False) for _ in prompts], [list[float]() for _ in prompts]
        with merged_weights(model), head_outside_autocast(model):
            cache = KVCache(model, slots, columns + sampling.max_new_tokens - 1)
            while batch or waiting:
                free = slots - len(batch)
                if waiting and free >= min(REFILL * slots, len(waiting)):
                    new, waiting = waiting[:free], waiting[free:]
                    cache.add([tuple(prompts[index][:-1]) for index in new])
                    batch += new
                logits_BV = cache.step([(responses[index].ids or prompts[index])[-1] for index in batch])
                uniform_B = torch.stack([uniforms[index][len(responses[index].ids)] for index in batch])
                drawn, finished = draw(logits_BV, uniform_B.to(cache.device), sampling), list[int]()
                for slot, (index, token, logprob) in enumerate(zip(batch, *drawn, strict=True)):
                    responses[index].ids.append(token)
                    logprobs[index].append(logprob)
                    responses[index].ended = token in ends
                    if token in ends or len(logprobs[index]) == sampling.max_new_tokens:
                        responses[index].logprobs = logprobs[index]
                        finished.append(slot)
                if finished:
                    batch = [batch[slot] for slot in cache.remove(finished)]
                    if on_batch is not None:
                        on_batch(len(finished))
        return responses


def uniform_numbers(seed: int, count: int) -> Tensor:
    """Uniform numbers in [0, 1) from the stream of this seed; a smaller count gives a prefix of a larger one."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(logits_BV: Tensor, uniform_B: Tensor, sampling: GenerationSettings) -> tuple[list[int], list[float]]:
    """(sampled tokens, their log-probabilities), by inverting the cumulative distribution, in float64."""
    logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    top = float(logits_BV.amax(-1).sum())  # minus infinity excludes a token
    require_finite({"a logit": top}, "decoding", OVERFLOW)
    if sampling.temperature == 0:
        token_B, logprob_BV = logits_BV.argmax(-1), logits_BV.log_softmax(-1)
    else:
        logits_BV, no_ids = logits_BV / sampling.temperature, torch.empty(0, dtype=torch.long)
        if sampling.top_k:
            logits_BV = TopKLogitsWarper(sampling.top_k)(no_ids, logits_BV)
        if sampling.top_p < 1:
            logits_BV = TopPLogitsWarper(sampling.top_p)(no_ids, logits_BV)
        logprob_BV = logits_BV.log_softmax(-1)
        probability_BV = logprob_BV.exp()
        # A token of probability 0 is never drawn, even if the rounding of a parallel sum increases at it.
        cumulative_BV = probability_BV.cumsum(-1, dtype=torch.float64).masked_fill_(probability_BV == 0, 0.0)
        total_B = cumulative_BV.amax(-1)
        height_B = torch.minimum(uniform_B * total_B, total_B.nextafter(torch.zeros_like(total_B)))
        token_B = (cumulative_BV > height_B[:, None]).to(torch.uint8).argmax(-1)  # the first of them
    return token_B.tolist(), logprob_BV.gather(1, token_B[:, None])[:, 0].tolist()


class TransformersGenerator:
    """transformers' `generate`. A batch shares one random stream, so texts depend on batch size and order."""

    records_logprobs = False

    @torch.no_grad()
    def generate(
        self, model: Any, prompts: Prompts, seeds: Sequence[int], sampling: GenerationSettings, on_batch: OnBatch = None
    ) -> list[Generation]:
        """See `Generator`. Batches are of similar length, padded on the left."""
        check_room(model, prompts, sampling)
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        device, ends, pad_id = base.get_input_embeddings().weight.device, stop_ids(base), base.config.pad_token_id
        how: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            how |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        own = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad_id, **how
        )
        order, made, saved = by_length(prompts), dict[int, Generation](), base.generation_config
        base.generation_config = own  # otherwise the model's settings fill what is unset
        devices = [device] if device.type == "cuda" else []
        try:
            with merged_weights(model), head_outside_autocast(base), torch.random.fork_rng(devices):
                for start in range(0, len(order), sampling.batch_size):
                    batch = order[start : start + sampling.batch_size]
                    torch.manual_seed(derive_seed("transformers", *(seeds[index] for index in batch)))
                    rows = [torch.tensor(prompts[index], device=device) for index in batch]
                    ids_BP = pad_sequence(rows, True, pad_id, "left")
                    seen_BP = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
                    made_BS = base.generate(input_ids=ids_BP, attention_mask=seen_BP)
                    for index, ids in zip(batch, made_BS[:, ids_BP.shape[1] :].tolist(), strict=True):
                        end = next((place for place, token in enumerate(ids, start=1) if token in ends), None)
                        made[index] = Generation(ids[:end], None, end is not None)
                    if on_batch is not None:
                        on_batch(len(batch))
        finally:
            base.generation_config = saved
        return [made[index] for index in range(len(prompts))]


def by_length(prompts: Prompts) -> list[int]:
    """Indices of the prompts, longest first, so that running out of memory happens early; equal prompts are adjacent
    and share a prefill.
    """
    return sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), tuple(prompts[index])))


def check_room(model: Any, prompts: Prompts, sampling: GenerationSettings) -> None:
    """Raises ValueError for a prompt that is empty or leaves no room for an answer in the model's context."""
    room, lengths, new = context_length(model.config), [len(prompt) for prompt in prompts], sampling.max_new_tokens
    if 0 in lengths:
        raise ValueError("a prompt has no tokens: there is nothing to answer")
    if (longest := max(lengths, default=0)) + new > room:
        raise ValueError(f"a prompt of {longest} tokens and {new} new ones do not fit the model's context of {room}")


@contextmanager
def head_outside_autocast(model: Any) -> Iterator[None]:
    """Runs the output layer in its weights' dtype, float32, under autocast: bfloat16 rounds logits near 10 to 0.06."""
    head = model.get_output_embeddings()
    off = torch.autocast(head.weight.device.type, enabled=False)

    def enter(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        off.__enter__()
        return (inputs[0].to(head.weight.dtype),)

    def leave(*_: Any) -> None:
        off.__exit__(None, None, None)

    with head.register_forward_pre_hook(enter), head.register_forward_hook(leave, always_call=True):
        yield


_logged: set[str] = set()


def generator_for(model: Any, name: str = "native", tokens: int = 0) -> Generator:
    """The generator `native`, `transformers` or `vllm`. `native` falls back to `transformers` for a model that it
    cannot decode, and for texts longer than the model's attention window, and logs the reason.

    Args:
        tokens: length of the longest prompt with its answer.

    Raises ValueError for another name, if vLLM is not installed, or if the fallback decodes the model wrongly.
    """
    if name == "vllm":
        from modeling.vllm import VLLMGenerator

        return VLLMGenerator()
    if name not in ("native", "transformers"):
        raise ValueError(f"generator={name!r} is not one of native, transformers, vllm")
    if name == "native":
        far = beyond_window(model, tokens)
        failure = far or decoding_failure(NativeGenerator(), model)
        if failure is None:
            return NativeGenerator()
        refuse_wrong_decoding(TransformersGenerator(), model)
        if far is not None:
            refuse_wrong_window(model)
        if failure not in _logged:
            _logged.add(failure)
            log.warning("%s: using transformers' generate, whose texts depend on the batch size", failure)
    return TransformersGenerator()


def beyond_window(model: Any, tokens: int) -> str | None:
    """Why our decoder cannot decode texts of this length; None if they fit the model's attention window.

    Sequences share the cache's columns: once the longest exceeds the window, the mask hides prompts of shorter ones.
    """
    window = attention_window(model.config)
    if window is None or tokens <= window:
        return None
    return f"a prompt with its answer does not fit the attention window of {window} tokens"


def refuse_wrong_window(model: Any) -> None:
    """Raises ValueError if transformers' `generate` cannot decode beyond the model's attention window.

    Tries a small copy of the model with a window of 4 tokens, fewer than `decoding_failure` decodes. Global random
    states are unchanged.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    settings = copy.deepcopy(base.config)
    text = settings.get_text_config()
    for name in WINDOWS:
        if getattr(text, name, None):
            setattr(text, name, 4)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        small = small_copy(type(base), settings)
    if small is None:
        log.warning("decoding beyond the attention window was not checked: no small copy of this model can be made")
    elif (failure := decoding_failure(TransformersGenerator(), small)) is not None:
        shorter = "lower data.max_prompt_tokens or max_new_tokens, or choose another model"
        raise ValueError(f"{failure} beyond its attention window of {attention_window(model.config)} tokens: {shorter}")


def refuse_wrong_decoding(generator: Generator, model: Any) -> None:
    """Raises ValueError if the generator cannot decode the model."""
    if (failure := decoding_failure(generator, model)) is not None:
        raise ValueError(f"{failure}; {NEEDED}")


@torch.no_grad()
def decoding_failure(generator: Generator, model: Any) -> str | None:
    """Why the generator cannot decode the model; None if a few decoded tokens agree with plain forward passes.

    This is tested because architectures differ in masks and positions. Raises ValueError for a non-finite logit.
    """
    words, device = model.get_input_embeddings().num_embeddings, model.get_input_embeddings().weight.device
    failure = f"{type(generator).__name__} cannot decode {type(model).__name__}"
    prompts = [[token % words for token in prompt] for prompt in ((1, 2, 3, 4, 5), (6, 7))]
    temperature = 10.0 if generator.records_logprobs else 0.0  # a high one draws many different tokens
    sampling = GenerationSettings(4, temperature)

    def logits(ids: Sequence[int]) -> Tensor:
        found_SV: Tensor = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].double()
        require_finite({"a logit": float(found_SV.amax())}, "decoding", OVERFLOW)
        return found_SV.clamp(min=float(found_SV.amax()) - 100)  # lower ones are masks

    outputs: list[Tensor] = []  # of the output layer
    hook = model.get_output_embeddings().register_forward_hook(lambda module, inputs, found: outputs.append(found))
    with hook, float32_arithmetic(backbone_of(model)):
        rough = torch.finfo(model.dtype).bits < 32 or getattr(model, "is_quantized", False)
        tolerance = float(logits(prompts[0]).std()) * (0.5 if rough else 5e-3)
        outputs.clear()
        try:
            made = generator.generate(model, prompts, [0, 1], sampling)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            return f"{failure} ({type(error).__name__}: {error})"
        steps = list(outputs)
        for row, (prompt, response) in enumerate(zip(prompts, made, strict=True)):
            logits_TV = logits([*prompt, *response.ids])[len(prompt) - 1 : -1]
            if isinstance(generator, TransformersGenerator):  # it decodes the prompts together, the longest first
                step_TV = torch.stack([step[row, -1] for step in steps[: len(logits_TV)]])
                if not (off := float((step_TV - outputs[-1][0, len(prompt) - 1 : -1]).abs().max())) <= tolerance:
                    return f"{failure} (a logit is off by {off:.2g})"
            expected_T, recorded = logits_TV.amax(-1), response.logprobs
            if recorded is not None:
                logits_TV = temperature * (logits_TV / temperature).log_softmax(-1)
                expected_T = temperature * torch.tensor(recorded, device=device)
            chosen_T = logits_TV.gather(1, torch.tensor(response.ids, device=device)[:, None])[:, 0]
            if not (off := float((chosen_T - expected_T).abs().max())) <= tolerance:
                return f"{failure} (a logit is off by {off:.2g})"
    return None
