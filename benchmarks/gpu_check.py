"""Checks this project on one GPU in a few minutes, and writes what it found to runs/gpu-check.md, for a bug report.

python -m benchmarks.gpu_check      # exit code 0 if all passed, 1 if not, 2 without a GPU; make gpu-check: 0 or 2
"""

import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modeling.batch import Batch
from modeling.config import GenerationSettings, ModelConfig
from modeling.generation import NativeGenerator
from modeling.load import autocast_dtype
from modeling.models import policy_model

REPORT = Path("runs/gpu-check.md")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "flash-attn", "bitsandbytes", "vllm")
COMMANDS: dict[str, list[str]] = {
    "tests that need CUDA": ["-m", "pytest", "-m", "gpu", "-rs", "tests/gpu"],
    "the pipeline on a tiny model (configs/smoke.yaml)": [
        "-m", "stages.pipeline", "--config", "configs/smoke.yaml", "--model.device", "auto",
        "--run_name", "gpu-check", "--force",
    ],
}  # fmt: skip
"""Python arguments of each check."""
LINES = 25
"""Lines of each check's output in the report."""


@dataclass(frozen=True)
class Size:
    """A random Llama and the work to measure. The default has 0.30 billion parameters."""

    layers: int = 16
    hidden: int = 1024
    vocabulary: int = 32_000
    prompts: int = 64
    prompt_tokens: int = 128
    new_tokens: int = 128
    steps: int = 5


def measure(size: Size, device: torch.device, dtype: torch.dtype | None) -> dict[str, float]:
    """Speed, peak memory and the KL to itself of one model under mixed precision; `dtype` None computes in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers, num_attention_heads=16, num_key_value_heads=16, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    models = [policy_model(LlamaForCausalLM(config).to(device).eval(), dtype) for _ in range(2)]
    policy, reference = models
    reference.load_state_dict(policy.state_dict())
    prompts = torch.randint(2, size.vocabulary, (size.prompts, size.prompt_tokens)).tolist()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def generate(new_tokens: int) -> list[Any]:
        sampling = GenerationSettings(new_tokens, batch_size=size.prompts)
        with policy.encoder.autocast():
            return NativeGenerator().generate(policy.causal, prompts, range(size.prompts), sampling)

    generate(2)  # warms up
    start = now(device)
    responses = generate(size.new_tokens)
    sampled = sum(len(response.ids) for response in responses)
    generation = sampled / (now(device) - start)
    batch = Batch(prompts, [response.ids for response in responses], device)
    recorded_R = torch.tensor([logprob for response in responses for logprob in response.logprobs or ()])
    with torch.no_grad():
        logprobs_R, reference_R = (model(batch)[0] for model in models)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-5, fused=True)
    for step in range(size.steps + 1):
        start = now(device) if step == 1 else start  # the first one warms up
        (-policy(batch)[0].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    tokens = sampled + size.prompts * size.prompt_tokens
    found = {
        "KL of SFT to itself, nats per response": float((logprobs_R - reference_R).sum()) / size.prompts,
        "decoding against scoring, nats per token": float((recorded_R - logprobs_R.cpu()).abs().mean()),
        "generated tokens per second": generation,
        "trained tokens per second": tokens * size.steps / (now(device) - start),
    }
    if device.type == "cuda":
        found["peak memory, GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def measure_largest_batch(size: Size, device: torch.device, dtype: torch.dtype | None) -> tuple[Size, dict[str, float]]:
    """`measure` with the largest batch that fits into memory: `size.prompts`, halved until it fits. Raises
    torch.OutOfMemoryError if a single prompt does not fit.
    """
    while True:
        try:
            return size, measure(size, device, dtype)
        except torch.OutOfMemoryError:
            if size.prompts == 1:
                raise
        torch.cuda.empty_cache()
        size = replace(size, prompts=size.prompts // 2)


def now(device: torch.device) -> float:
    """Seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def run(arguments: Sequence[str]) -> tuple[bool, str]:
    """(whether Python succeeded with these arguments, a line with its seconds and its last lines of output)."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # A progress bar draws all its states on one line.
    lines = [line.rpartition("\r")[2] for line in done.stdout.decode(errors="replace").strip().split("\n")]
    seconds = f"{time.perf_counter() - start:.0f} s, exit code {done.returncode}"
    return done.returncode == 0, "\n".join([seconds, *lines[-LINES:]])


def environment(device: torch.device) -> dict[str, str]:
    """The machine and the versions of packages."""
    found = {"system": platform.platform(), "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def check(device: torch.device, size: Size, commands: Mapping[str, Sequence[str]], report: Path) -> bool:
    """Runs all checks and writes the report; returns whether all of them passed."""
    dtype = autocast_dtype(ModelConfig(), device)
    parts = ["# GPU check", table(environment(device))]
    passed = True
    for name, arguments in commands.items():
        print(f"gpu-check: {name}", flush=True)
        succeeded, output = run(arguments)
        passed &= succeeded
        parts.append(f"## {name}: {'passed' if succeeded else 'FAILED'}\n\n```\n{output}\n```")
    print("gpu-check: speed and memory", flush=True)
    try:
        size, found = measure_largest_batch(size, device, dtype)
        exact = found["KL of SFT to itself, nats per response"] == 0.0
        outcome = "passed" if exact else "FAILED, the KL must be 0"
        numbers = table({name: f"{value:.4g}" for name, value in found.items()})
    except Exception as error:  # keeps the results of the earlier checks
        exact, outcome, numbers = False, "FAILED", f"```\n{type(error).__name__}: {error}\n```"
    parts += [f"## {size}, {dtype or torch.float32}: {outcome}", numbers]
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"gpu-check: {'passed' if passed and exact else 'FAILED'}; see {report}", flush=True)
    return passed and exact


def table(rows: Mapping[str, str]) -> str:
    """Two columns of Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def main() -> int:
    """The exit code."""
    if not torch.cuda.is_available():
        print("error: gpu-check needs an NVIDIA GPU, and torch finds none", file=sys.stderr)
        return 2
    return 0 if check(torch.device("cuda", 0), Size(), COMMANDS, REPORT) else 1


if __name__ == "__main__":
    sys.exit(main())
