"""vLLM on the training GPU, through trl's `VLLMGeneration`: needs a GPU and `pip install -e '.[vllm]'`.

Unproven: tested against a stand-in for vLLM only, never run on a GPU (docs/generation.md).
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from modeling.adapters import merged_weights
from modeling.config import GenerationSettings
from modeling.generation import Generation, OnBatch, Prompts, check_room
from modeling.load import context_length, stop_ids


class VLLMGenerator:
    """Starts vLLM on first use. Records no log-probabilities, since vLLM's arithmetic differs from the trainer's."""

    records_logprobs = False

    def __init__(self) -> None:
        if find_spec("vllm") is None:
            raise ValueError("vLLM is missing: pip install -e '.[vllm]' (needs a GPU), or choose native")
        self.vllm: Any = None

    @torch.no_grad()
    def generate(
        self, model: Any, prompts: Prompts, seeds: Sequence[int], sampling: GenerationSettings, on_batch: OnBatch = None
    ) -> list[Generation]:
        """See `Generator`. vLLM does not guarantee the same text for a seed in a different batch."""
        from trl.generation import vllm_generation

        check_room(model, prompts, sampling)
        ends, pad_id = sorted(stop_ids(model)), model.config.pad_token_id
        # The policy suppresses an added pad token only; a base's other settings would change the distribution.
        suppressed = [pad_id] if pad_id in (model.generation_config.suppress_tokens or []) else []
        if self.vllm is None:
            self.vllm = vllm_generation.VLLMGeneration(
                _Merged(model), Accelerator(), None,  # no tokenizer: only images need it
                gpu_memory_utilization=0.3, max_model_length=min(context_length(model.config), 32_768),
            )  # fmt: skip
        self.vllm.model = _Merged(model)
        with merged_weights(model):
            self.vllm.sync_weights()
        how = [  # trl's `generate` has one seed for all prompts
            vllm_generation.SamplingParams(
                seed=seed, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens, stop_token_ids=ends, ignore_eos=True, detokenize=False,
                logit_bias=dict.fromkeys(suppressed, -100.0) or None,
            )
            for seed in seeds
        ]  # fmt: skip
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        ids = [list(made.outputs[0].token_ids) for made in self.vllm.llm.generate(given, how, use_tqdm=False)]
        if on_batch is not None:
            on_batch(len(ids))
        return [Generation(row, None, ended=row[-1] in ends) for row in ids]


class _Merged(nn.Module):
    """What `VLLMGeneration` reads from a model: its path, and its weights under the names of a model without adapters.

    trl merges and unmerges a PeftModel with peft, which would change the last bits of the base at every
    synchronization.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.name_or_path = self.base.name_or_path

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights, tied ones once."""
        for name, weight in self.base.named_parameters():
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), weight
