"""Two processes with a sharded model against plain autograd in one: gradients, memory and checkpoints of each mode."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import debug_launcher
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from modeling.accelerator import make_accelerator
from modeling.batch import text_batch
from modeling.models import PolicyModel, policy_model
from modeling.sharded_checkpoint import (
    allocate_optimizer,
    load_tensors,
    optimizer_tensors,
    save_tensors,
    saved_shapes,
    weight_tensors,
)
from modeling.sharding import Sharding, clip_gradients, full

pytestmark = pytest.mark.slow
LAYERS = 3
TEXTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9], [3, 2, 3, 8]]
OF_PROCESS = ([TEXTS[:1], TEXTS[1:2], TEXTS[2:3]], [TEXTS[3:]])
"""The micro-batches of each process: three and one."""
ROUNDING = 1e-12
"""Of float64 sums in another order, relative to the largest gradient."""


def make() -> PolicyModel:
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=True,
    )  # fmt: skip
    return policy_model(LlamaForCausalLM(settings).eval().double())


def backward(policy: PolicyModel, texts: list[list[int]]) -> None:
    logprobs_R, _ = policy(text_batch(texts or [[0]], "cpu"))
    (-logprobs_R.sum()).backward()


def optimizer_of(parameters: dict[str, Any]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters.values(), lr=0.1, fused=True)


def state_of(parameters: dict[str, Any], optimizer: torch.optim.Adam) -> dict[str, torch.Tensor]:
    return weight_tensors("policy", parameters) | optimizer_tensors("optimizer", optimizer, parameters)


def train_sharded(sharding: Sharding, folder: Path) -> None:
    """A step on two processes; saves its gradient, its norm, and how many layers were whole at once."""
    torch.set_num_threads(1)
    accelerator = make_accelerator("cpu", timeout_minutes=1)
    policy = make()
    model = policy.encoder.model
    sharding.shard(model)
    parameters = dict(model.named_parameters())
    assert all(isinstance(weight, DTensor) for weight in parameters.values())
    whole: list[int] = []

    def count(*given: Any) -> None:
        layers = model.model.layers
        whole.append(sum(not isinstance(layer.mlp.up_proj.weight, DTensor) for layer in layers))

    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(count)
    with sharding.computing(model):
        for texts in sharding.even(OF_PROCESS[accelerator.process_index], []):
            backward(policy, texts)
        sharding.reduce_gradients(model, parameters.values())
    found = {name: full(weight.grad).clone() for name, weight in parameters.items()}
    found |= {"norm": torch.tensor(clip_gradients(parameters.values(), None)), "whole": torch.tensor(max(whole))}
    optimizer = optimizer_of(parameters)
    optimizer.step()
    save_tensors(folder / "state", state_of(parameters, optimizer))
    expected = {name: full(tensor).clone() for name, tensor in state_of(parameters, optimizer).items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in found.items()},
        folder / f"{accelerator.process_index}.safetensors",
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in expected.items()},
        folder / f"state-{accelerator.process_index}.safetensors",
    )
    make_accelerator().end_training()


MODES = {
    "step": Sharding(active=True),
    "layer": Sharding(active=True, layerwise=True),
    "layer, offloaded": Sharding(active=True, layerwise=True, offload=True),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_uneven_passes_is_that_of_one_process_and_the_state_can_be_read_by_it(
    mode: str, tmp_path: Path
) -> None:
    debug_launcher(train_sharded, (MODES[mode], tmp_path), num_processes=2)
    policy = make()
    parameters = dict(policy.encoder.model.named_parameters())
    backward(policy, TEXTS)
    norm = torch.cat([weight.grad.flatten() for weight in parameters.values()]).norm()
    largest = max(float(weight.grad.abs().max()) for weight in parameters.values())
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, weight in parameters.items():
            assert float((found[name] - weight.grad).abs().max()) < ROUNDING * largest, name
        assert float(found["norm"]) == pytest.approx(float(norm), rel=1e-6)  # returned in float32
        assert int(found["whole"]) == (LAYERS if mode == "step" else 1)

    files = sorted((tmp_path / "state").iterdir())
    assert {path.suffix for path in files} == {".safetensors"}, "a pickle"
    sizes = [sum(path.stat().st_size for path in files if path.name.startswith(f"shard-0000{k}")) for k in (1, 2)]
    assert 0.8 < sizes[0] / sizes[1] < 1.25, "one process has written more than its part"
    expected = load_file(tmp_path / "state-0.safetensors")
    optimizer = optimizer_of(parameters)
    allocate_optimizer("optimizer", optimizer, parameters, saved_shapes(tmp_path / "state"))
    restored = state_of(parameters, optimizer)
    load_tensors(tmp_path / "state", restored)
    assert restored.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in restored.items())
    assert any("exp_avg_sq" in name for name in restored)
