"""vLLM as an engine, through its public API. It needs a GPU and `pip install -e '.[vllm]'`; we have not run it on one
(docs/engines.md).

vLLM keeps a copy of the model of its own. Before each generation the policy, with its adapter merged, is written as
safetensors to a scratch folder, which is the one vLLM was started from; its workers' `reload_weights` reads it again,
and cached prefixes of the old weights are dropped.
"""

import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from modeling.adapters import merged_weights, plain_state
from modeling.engines.types import Generation, Sampling, check_room
from modeling.load import context_length


class VLLMEngine:
    """`vllm.LLM`, started on first use.

    It records no log-probabilities: vLLM computes them in its own arithmetic, so the policy recomputes them.
    """

    records_logprobs = False

    def __init__(self, gpu_memory_utilization: float = 0.3, tensor_parallel_size: int = 1) -> None:
        """`gpu_memory_utilization` is the part of a GPU's memory that vLLM may take; the rest is the training's. Raises
        ValueError without vLLM.
        """
        try:
            import vllm
        except ImportError:
            raise ValueError(
                "the vllm engine needs vLLM and a GPU: pip install -e '.[vllm]', or take the native engine"
            ) from None
        self.vllm = vllm
        self.options = {"gpu_memory_utilization": gpu_memory_utilization, "tensor_parallel_size": tensor_parallel_size}
        self.scratch = tempfile.TemporaryDirectory(prefix="rlhf-ptx-vllm-")
        self.llm: Any = None

    @torch.no_grad()
    def generate(
        self, model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling,
        stop_ids: Collection[int], pad_id: int,
        on_batch: Callable[[int], object] | None = None,
    ) -> list[Generation]:  # fmt: skip
        """See `Engine`. Each prompt has its seed; vLLM does not promise the same text in another batch."""
        check_room(model, prompts, sampling)
        if not prompts:
            return []
        self._synchronise(model)
        generation = (model.get_base_model() if isinstance(model, PeftModel) else model).generation_config
        suppressed = dict.fromkeys(generation.suppress_tokens or [], -100.0)  # the lowest bias that vLLM accepts
        bias = {"logit_bias": suppressed} if suppressed else {}
        chosen = [
            self.vllm.SamplingParams(
                seed=seed, temperature=sampling.temperature, top_p=1.0, top_k=0, max_tokens=sampling.max_new_tokens,
                stop_token_ids=sorted(stop_ids), ignore_eos=True, detokenize=False, **bias,
            )
            for seed in seeds
        ]  # fmt: skip
        outputs = self.llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], chosen, use_tqdm=False)
        if on_batch is not None:
            on_batch(len(prompts))
        results = []
        for output in outputs:
            ids = list(output.outputs[0].token_ids)
            results.append(Generation(ids, None, ended=bool(ids) and ids[-1] in stop_ids))
        return results

    def _synchronise(self, model: Any) -> None:
        folder = Path(self.scratch.name) / "policy"
        write_policy(model, folder)
        if self.llm is None:
            self.llm = self.vllm.LLM(
                model=str(folder),
                skip_tokenizer_init=True,
                max_model_len=min(context_length(model.config), MOST_TOKENS),
                **self.options,
            )
        else:
            self.llm.collective_rpc("reload_weights")
            self.llm.reset_prefix_cache()


MOST_TOKENS = 32_768
"""Of a row: vLLM lays out its cache for as many, where the model names no limit or a very large one."""


def write_policy(model: Any, folder: Path) -> None:
    """The policy as a plain model in Hugging Face form: what vLLM reads. A whole folder takes the place of the one
    before.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    beside = folder.with_name(f"{folder.name}.next")
    with merged_weights(model):
        base.save_pretrained(beside, state_dict=plain_state(model), safe_serialization=True)
    if folder.exists():
        shutil.rmtree(folder)
    beside.rename(folder)
