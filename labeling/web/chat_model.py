"""A language model that streams its answers. For the same seed, `NativeGenerator` generates the same text."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, TextStreamer

from data.records import Prompt
from data.tokenize import check_prompt, decode_completion, encode_prompt
from modeling.accelerator import make_accelerator
from modeling.config import GenerationSettings, ModelConfig
from modeling.generation import check_room, draw, head_outside_autocast, uniform_numbers
from modeling.load import autocast, load_causal, load_tokenizer, stop_ids


class LoadedModel:
    """A causal language model with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, config: ModelConfig) -> None:
        self.model, self.tokenizer, self.config, self.ends = model, tokenizer, config, stop_ids(model)
        model.generation_config = GenerationConfig(
            eos_token_id=sorted(self.ends), pad_token_id=model.config.pad_token_id
        )

    @staticmethod
    def load(place: Path, config: ModelConfig) -> "LoadedModel":
        """A model that a stage has saved."""
        tokenizer = load_tokenizer(place, config)
        model = load_causal(place, config, tokenizer).to(make_accelerator(config.device).device)
        return LoadedModel(model, tokenizer, config)

    def __call__(
        self, prompt: Prompt, generation: Mapping[str, Any], put: Callable[[str], object], stopped: Callable[[], bool]
    ) -> tuple[str, bool]:
        """See `streaming.ChatModel`."""
        model, tokenizer, how = self.model, self.tokenizer, dict(generation)
        seed, sampling = how.pop("seed"), GenerationSettings(**how)
        check_prompt(tokenizer, prompt)
        ids = encode_prompt(tokenizer, prompt)
        check_room(model, [ids], sampling)
        ids_1P = torch.tensor([ids], device=model.device)
        with autocast(self.config, model.device), head_outside_autocast(model):
            made_1S = model.generate(
                input_ids=ids_1P, attention_mask=torch.ones_like(ids_1P), max_new_tokens=sampling.max_new_tokens,
                do_sample=False, logits_processor=[SeededSampling(sampling, seed)], stopping_criteria=[Stop(stopped)],
                streamer=PartStreamer(tokenizer, put),
            )  # fmt: skip
        new = made_1S[0, len(ids) :].tolist()
        ended = new[-1] in self.ends
        return decode_completion(tokenizer, new, ended), ended


class SeededSampling(LogitsProcessor):
    """Samples with `draw` and the seed of the answer; `generate` itself would use torch's global generator."""

    def __init__(self, sampling: GenerationSettings, seed: int) -> None:
        self.sampling, self.uniforms = sampling, iter(uniform_numbers(seed, sampling.max_new_tokens))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores in which the drawn token is the highest."""
        tokens, _ = draw(scores, next(self.uniforms)[None].to(scores.device), self.sampling)
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor(tokens, device=scores.device), 0)


class Stop(StoppingCriteria):
    """Stops generation when nobody waits for the answer."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """For each sequence of the batch, whether it ends."""
        return torch.full((len(input_ids),), self.stopped(), device=input_ids.device)


class PartStreamer(TextStreamer):
    """Passes text on when its words are complete."""

    def __init__(self, tokenizer: Any, put: Callable[[str], object]) -> None:
        super().__init__(tokenizer, True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.put_text = put

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by `generate`."""
        if text:
            self.put_text(text)
