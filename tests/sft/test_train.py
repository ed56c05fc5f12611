"""Stage 1 on a tiny model: its losses against plain transformers, its schedule against the formula, and its going on
after a cut.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from data.records import Demonstration
from data.tokenize import encode_completion, encode_prompt
from modeling.config import ModelConfig
from modeling.load import load_causal
from modeling.run import Run
from modeling.tracking import Tracker
from sft.config import SFTConfig
from sft.train import Base, ResumableTrainer, SFTData, numbers_of, train
from tests.cuts import Cut
from tests.fakes import FakeAccelerator

IDS = torch.tensor([[3, 40, 50, 60, 70]])
ALONE = FakeAccelerator()
COLOURS = ("red", "green", "blue", "white", "black", "brown", "pink", "grey")
TRAIN = [
    Demonstration(prompt=f"Name {'one more ' * (n % 3)}colour {n}.", completion=f"It is {colour}.")
    for n, colour in enumerate(COLOURS)
]
VALID = [
    Demonstration(prompt=f"Name colour {n}, please.", completion=f"It is {colour}, I think.")
    for n, colour in enumerate(COLOURS[:4])
]
CHUNKS = [[40 + n, 50, 60, 70 + n, 80] for n in range(6)]
SETTINGS = SFTConfig(epochs=2, learning_rate=5e-3, batch_size=4, micro_batch_size=4, pretraining_fraction=0.0)


def loss_by_hand(
    model: Any, tokenizer: Any, demonstrations: Sequence[Demonstration], prompt_too: bool = False
) -> float:
    """Mean loss over answer tokens and EOS, one unpadded sequence at a time, in float64."""
    total, count = 0.0, 0
    with torch.no_grad():
        for demonstration in demonstrations:
            prompt, answer = (
                encode_prompt(tokenizer, demonstration),
                encode_completion(tokenizer, demonstration.completion),
            )
            ids = prompt + answer
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            for place in range(1 if prompt_too else len(prompt), len(ids)):
                total -= float(logprobs[place - 1, ids[place]])
                count += 1
    return total / count


@pytest.fixture
def run(
    tmp_path: Path, tiny_causal: Callable[[str], Any], tiny_tokenizer: Any, model_config: ModelConfig
) -> Callable[..., dict[str, float]]:
    def run(
        name: str = "out", settings: SFTConfig = SETTINGS, config: ModelConfig = model_config, **changes: Any
    ) -> dict[str, float]:
        model = tiny_causal(changes.pop("family", "llama"))
        context = Run(changes.pop("accelerator", ALONE), changes.pop("seed", 0), tmp_path / name)
        data = SFTData(**{"train": TRAIN, "valid": VALID, "chunks": CHUNKS} | changes)
        return train(settings, Base(model, tiny_tokenizer, config), data, context)

    return run


def metrics(folder: Path, name: str) -> list[float]:
    return [row[name] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if name in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_losses_are_those_of_plain_transformers_over_answers_alone(
    run: Any, tmp_path: Path, tiny_causal: Any, tiny_tokenizer: Any
) -> None:
    found = run(settings=replace(SETTINGS, epochs=6, batch_size=8, micro_batch_size=8))
    out = tmp_path / "out"
    before = tiny_causal("llama")
    losses, valid = metrics(out, "loss"), metrics(out, "valid_loss")
    assert losses[0] == pytest.approx(loss_by_hand(before, tiny_tokenizer, TRAIN), rel=1e-4), (
        "the first batch is the whole set"
    )
    assert losses[0] != pytest.approx(loss_by_hand(before, tiny_tokenizer, TRAIN, prompt_too=True), rel=1e-3)
    assert losses[-1] < losses[0] - 1
    assert valid[-1] < loss_by_hand(before, tiny_tokenizer, VALID) - 0.5

    after, tokenizer = (
        AutoModelForCausalLM.from_pretrained(out / "model").eval(),
        AutoTokenizer.from_pretrained(out / "model"),
    )
    assert found["valid_loss"] == valid[-1] == pytest.approx(loss_by_hand(after, tokenizer, VALID), rel=1e-4)
    assert found["valid_loss"] != pytest.approx(loss_by_hand(after, tokenizer, VALID, prompt_too=True), rel=1e-2)
    assert found["examples"] == 8


def test_the_rate_falls_by_a_cosine_to_a_tenth_without_warm_up(run: Any, tmp_path: Path) -> None:
    run()
    steps = 2 * len(TRAIN) // 4
    expected = [5e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2) for step in range(steps)]
    assert metrics(tmp_path / "out", "learning_rate") == pytest.approx(expected, rel=1e-6)


def test_micro_batches_do_not_change_the_result(run: Any, tmp_path: Path) -> None:
    """Adam divides by the gradient's size, so a rounding error of 1e-7 in a gradient near zero can move a weight by a
    part of the rate, 5e-3.
    """
    run("whole")
    run("parts", settings=replace(SETTINGS, micro_batch_size=1))
    assert metrics(tmp_path / "whole", "loss") == pytest.approx(metrics(tmp_path / "parts", "loss"), rel=1e-4)
    assert difference(weights(tmp_path / "whole"), weights(tmp_path / "parts")) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_does_not_depend_on_the_models_class(
    run: Any, tmp_path: Path, tiny_causal: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """The Llama's `forward` takes no further arguments, as in code that comes with a model; GPT-2's class names no loss
    of transformers. The answers differ in length, and the texts have no prompt.
    """
    if family == "llama":
        kept = type(tiny_causal(family))
        whole = kept.forward

        def forward(
            self: Any, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
            past_key_values: Any = None, inputs_embeds: Any = None, labels: Any = None, use_cache: Any = None,
            logits_to_keep: Any = 0, return_dict: Any = None, cache: Any = None,
        ) -> Any:  # fmt: skip
            cached = cache if past_key_values is None else past_key_values  # called `cache` since transformers 5.24
            texts = input_ids, attention_mask, position_ids, cached, inputs_embeds, labels, use_cache
            return whole(self, *texts, logits_to_keep)

        monkeypatch.setattr(kept, "forward", forward)
    train_set = [replace(row, completion="very " * n) for row, n in zip(TRAIN, (30, 1, 2, 9, 1, 1, 20, 3), strict=True)]
    settings = replace(
        SETTINGS, epochs=1, batch_size=10, micro_batch_size=1, pretraining_fraction=0.2, residual_dropout=0.0
    )
    run(settings=settings, train=train_set, chunks=CHUNKS[:1], family=family)
    before = tiny_causal(family)
    answers = sum(len(encode_completion(tiny_tokenizer, row.completion)) for row in train_set)
    with torch.no_grad():
        text = float(before(torch.tensor(CHUNKS[:1]), labels=torch.tensor(CHUNKS[:1])).loss) * 4
    expected = (loss_by_hand(before, tiny_tokenizer, train_set) * answers + 2 * text) / (answers + 8)
    assert metrics(tmp_path / "out", "loss")[0] == pytest.approx(expected, rel=1e-4)


def test_adapters_on_a_quantized_base_stay_in_float32(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_config: ModelConfig
) -> None:
    """trl rounds them to bfloat16, in which small updates are lost."""
    made, train = ResumableTrainer.__init__, ResumableTrainer.train
    found: list[set[torch.dtype]] = []

    def quantized(self: Any, model: Any = None, **given: Any) -> None:
        model.get_base_model().is_loaded_in_4bit = True  # what transformers sets
        with monkeypatch.context() as patch:
            patch.setattr("transformers.trainer.validate_quantization_for_training", lambda model: None, raising=False)
            made(self, model=model, **given)
        del model.get_base_model().is_loaded_in_4bit

    def spied(self: Any, *given: Any, **named: Any) -> Any:
        found.append({weight.dtype for weight in self.model.parameters() if weight.requires_grad})
        return train(self, *given, **named)

    monkeypatch.setattr(ResumableTrainer, "__init__", quantized)
    monkeypatch.setattr(ResumableTrainer, "train", spied)
    run(config=replace(model_config, adapter="lora"), settings=replace(SETTINGS, epochs=1))
    assert found == [{torch.float32}]


@pytest.mark.parametrize("micro_batch_size", [4, 1])
def test_the_validation_loss_is_the_mean_over_tokens_for_any_micro_batch(
    run: Any, tmp_path: Path, tiny_tokenizer: Any, micro_batch_size: int
) -> None:
    """The answers differ in length, and the last micro-batch is not full."""
    valid = [replace(VALID[0], completion="It is " + "very " * count + "red.") for count in (30, 0, 2, 9, 1)]
    settings = replace(SETTINGS, epochs=1, micro_batch_size=micro_batch_size)
    found = run(settings=settings, valid=valid)["valid_loss"]
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").eval()
    assert found == pytest.approx(loss_by_hand(after, tiny_tokenizer, valid), rel=1e-5)


def test_one_process_trains_on_one_device_of_a_machine_with_several(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer uses all devices that torch counts; a batch that grows with them would give fewer steps."""
    run("one")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    run("eight", accelerator=replace(ALONE, device=torch.device("cuda")))
    assert metrics(tmp_path / "eight", "loss") == metrics(tmp_path / "one", "loss")
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "eight")) == 0


def test_a_trainer_that_would_take_another_batch_is_stopped_before_training(run: Any, tmp_path: Path) -> None:
    """The world size is 2 but there is one process, as with a launcher that starts too few."""
    with pytest.raises(
        ValueError, match=r"sft\.batch_size=4, but the trainer would take 2 sequences per step: 1 processes"
    ):
        run(settings=replace(SETTINGS, micro_batch_size=2), accelerator=replace(ALONE, num_processes=2))
    assert not (tmp_path / "out" / "model").exists()


def test_plain_text_is_trained_on_with_every_token(
    run: Any, tmp_path: Path, tiny_causal: Any, tiny_tokenizer: Any
) -> None:
    found = run(settings=replace(SETTINGS, epochs=1, batch_size=10, micro_batch_size=10, pretraining_fraction=0.2))
    assert found["examples"] == 10
    before = tiny_causal("llama")
    answers = sum(len(encode_completion(tiny_tokenizer, d.completion)) for d in TRAIN)
    total = loss_by_hand(before, tiny_tokenizer, TRAIN) * answers
    with torch.no_grad():
        texts = [float(before(torch.tensor([chunk]), labels=torch.tensor([chunk])).loss) * 4 for chunk in CHUNKS]
    possible = {(total + texts[i] + texts[j]) / (answers + 8) for i in range(6) for j in range(i)}
    first = metrics(tmp_path / "out", "loss")[0]
    assert min(abs(first - value) for value in possible) < 1e-4 * first, "two of the six texts, four predictions each"


def test_lora_is_folded_into_a_model_that_plain_transformers_loads(
    run: Any, tmp_path: Path, tiny_causal: Any, model_config: ModelConfig
) -> None:
    lora = replace(model_config, adapter="lora")
    found = run(settings=replace(SETTINGS, epochs=3, learning_rate=2e-2), config=lora)
    folder = tmp_path / "out" / "model"
    assert not list(folder.glob("adapter*"))
    base, after = tiny_causal("llama"), AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    changed = {name for name, weight in after.state_dict().items() if not torch.equal(weight, base.state_dict()[name])}
    assert changed == {name for name in base.state_dict() if name.endswith("_proj.weight")}, (
        "all linear maps and nothing else"
    )
    assert found["valid_loss"] == pytest.approx(loss_by_hand(after, tokenizer, VALID), rel=1e-4)
    assert found["valid_loss"] < loss_by_hand(base, tokenizer, VALID) - 0.1


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_zero_epochs_export_and_measure_the_base(
    run: Any, tmp_path: Path, tiny_causal: Any, tiny_tokenizer: Any, model_config: ModelConfig, adapter: Any
) -> None:
    settings, config = replace(SETTINGS, epochs=0), replace(model_config, adapter=adapter)
    run(settings=settings, config=config)
    found = run(settings=settings, config=config)  # as a run that was killed while it exported
    base = tiny_causal("llama")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert difference(after.state_dict(), base.state_dict()) == 0
    assert found == {"valid_loss": pytest.approx(loss_by_hand(base, tiny_tokenizer, VALID), rel=1e-4)}
    assert metrics(tmp_path / "out", "valid_loss") == pytest.approx([found["valid_loss"]])


@pytest.mark.parametrize(
    ("adapter", "minutes", "left"),
    [("none", 10.0, ["checkpoint-3"]), ("lora", 0.0, ["checkpoint-3", "checkpoint-4"])],
)
def test_a_run_killed_in_the_second_epoch_is_bit_identical_to_an_uninterrupted_one(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_config: ModelConfig,
    adapter: Literal["lora", "none"],
    minutes: float,
    left: list[str],
) -> None:
    """With dropout and a ragged last batch, so that both the order and torch's generator show in the weights."""
    settings = replace(SETTINGS, batch_size=3, micro_batch_size=1, pretraining_fraction=0.1)
    config = replace(model_config, adapter=adapter)
    run("whole", settings, config, family="gpt2")
    log = Tracker.log

    def cut(tracker: Tracker, step: int, numbers: dict[str, float]) -> None:
        if step == 5:
            raise Cut
        log(tracker, step, numbers)

    cautious = replace(settings, checkpoint_minutes=minutes)
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log", cut)
        with pytest.raises(Cut):
            run("cut", cautious, config, family="gpt2")
    assert sorted(path.name for path in (tmp_path / "cut" / "trainer").glob("checkpoint-*")) == left
    # And a later checkpoint is only half written.
    half = shutil.copytree(newest := tmp_path / "cut" / "trainer" / left[-1], newest.with_name("checkpoint-7"))
    (half / "checksums.json").unlink()
    (half / "trainer_state.json").unlink()
    (half / "optimizer.pt").write_bytes((half / "optimizer.pt").read_bytes()[:100])
    torch.manual_seed(77)
    found = run("cut", cautious, config, family="gpt2")
    assert difference(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "cut" / "metrics.jsonl").read_text()
    assert found["valid_loss"] == metrics(tmp_path / "whole", "valid_loss")[-1]


def test_a_run_that_was_out_of_memory_resumes_with_smaller_micro_batches(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, where the number of micro-batches to skip depends on their size."""
    settings = replace(SETTINGS, checkpoint_minutes=0.0)
    run("whole", settings)
    log = Tracker.log

    def cut(tracker: Tracker, step: int, numbers: dict[str, float]) -> None:
        if step == 4:
            raise Cut
        log(tracker, step, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log", cut)
        with pytest.raises(Cut):
            run("cut", settings)
    assert (tmp_path / "cut" / "trainer" / "checkpoint-3").is_dir(), "two steps are an epoch"
    run("cut", replace(settings, micro_batch_size=2))
    assert difference(weights(tmp_path / "whole"), weights(tmp_path / "cut")) < 1e-5
    assert metrics(tmp_path / "cut", "loss") == pytest.approx(metrics(tmp_path / "whole", "loss"), rel=1e-4)


def test_activation_checkpointing_changes_no_byte_of_a_run(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_config: ModelConfig
) -> None:
    """With dropout, whose masks must be the same in the second forward pass."""
    calls, forward = {False: 0, True: 0}, GPT2Attention.forward

    def counted(*given: Any, **options: Any) -> Any:
        calls[checkpointing] += 1
        return forward(*given, **options)

    monkeypatch.setattr(GPT2Attention, "forward", counted)
    config = replace(model_config, adapter="lora")
    for checkpointing in calls:
        run(str(checkpointing), replace(SETTINGS, activation_checkpointing=checkpointing), config, family="gpt2")
    assert difference(weights(tmp_path / "False"), weights(tmp_path / "True")) == 0
    assert calls[True] > calls[False]


@pytest.mark.parametrize("base", ["gpt2", "mixtral"])
def test_the_exported_configuration_is_the_bases(
    base: str, tiny: Callable[[str], Path], tmp_path: Path, tiny_tokenizer: Any, model_config: ModelConfig
) -> None:
    folder = tmp_path / "base"
    if base == "mixtral":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
        sizes |= {"intermediate_size": 16, "num_local_experts": 2, "num_experts_per_tok": 1}
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = AutoConfig.for_model("mixtral", vocab_size=len(tiny_tokenizer), **sizes, **special)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    else:
        shutil.copytree(tiny(base), folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 4], "do_sample": true, "top_p": 0.9}')
    model = load_causal(folder, model_config, tiny_tokenizer, residual_dropout=0.2)
    settings = replace(SETTINGS, epochs=1, batch_size=8, micro_batch_size=8)
    base, data = Base(model, tiny_tokenizer, model_config), SFTData(TRAIN, VALID, CHUNKS)
    train(settings, base, data, Run(ALONE, 0, tmp_path / "out"))

    found, before = (json.loads((place / "config.json").read_text()) for place in (tmp_path / "out" / "model", folder))
    assert found == before
    generation = json.loads((tmp_path / "out" / "model" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["do_sample"], generation["top_p"]) == ([2, 4], True, 0.9)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert plain.generate(IDS, max_new_tokens=2).shape[1] > IDS.shape[1]


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_loss_that_is_not_finite_stops_training_and_exports_nothing(
    run: Any, tmp_path: Path, model_config: ModelConfig, adapter: str
) -> None:
    said = (
        r"^sft, step [12]: (loss|valid_loss|grad_norm) is (nan|inf): lower sft\.learning_rate, or with float16 "
        r"try another model\.precision; nothing is exported$"
    )
    with pytest.raises(ValueError, match=said):
        run(settings=replace(SETTINGS, learning_rate=1e30), config=replace(model_config, adapter=adapter))
    assert not (tmp_path / "out" / "model").exists()
    assert not list((tmp_path / "out").glob("trainer/checkpoint-*"))
    assert "NaN" not in (tmp_path / "out" / "metrics.jsonl").read_text()


def test_in_float16_an_overflow_is_counted_and_does_not_end_the_run(
    run: Any, tmp_path: Path, model_config: ModelConfig
) -> None:
    run(settings=replace(SETTINGS, epochs=1), config=replace(model_config, precision="float16"))
    # The Trainer gets the setting, but on a CPU accelerate computes in float32.
    assert set(metrics(tmp_path / "out", "skipped")) == {0.0}
    half: Any = SimpleNamespace(fp16=True)
    assert numbers_of(half, {"loss": 1.0, "grad_norm": math.inf}) == {"loss": 1.0, "skipped": 1.0}
    assert numbers_of(half, {"loss": 1.0, "grad_norm": 2.0}) == {"loss": 1.0, "grad_norm": 2.0, "skipped": 0.0}
    half.fp16 = False
    assert numbers_of(half, {"grad_norm": math.inf, "epoch": 1.0}) == {"grad_norm": math.inf}


def test_what_does_not_fit_is_refused_before_training(run: Any, tmp_path: Path) -> None:
    three = FakeAccelerator(process_index=0, num_processes=3, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"sft\.batch_size=4 is not divisible by the 3 processes"):
        run(accelerator=three)
    with pytest.raises(ValueError, match=r"sft\.micro_batch_size=4 does not divide the 6 sequences of each process"):
        run(settings=replace(SETTINGS, batch_size=12), accelerator=replace(three, num_processes=2))
    with pytest.raises(ValueError, match="more than the model's context of 512"):
        run(train=[Demonstration(prompt="Why?", completion="so " * 600)])
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": -1},
        {"batch_size": 4, "micro_batch_size": 3},
        {"pretraining_fraction": 1.0},
        {"pretraining_fraction": -0.1},
        {"learning_rate": 0},
    ],
)
def test_contradictions_are_refused_by_name(change: dict[str, Any]) -> None:
    SFTConfig().validate()
    with pytest.raises(ValueError, match=f"sft.{list(change)[-1]}="):
        replace(SFTConfig(), **change).validate()


def test_adam_has_the_papers_decays(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Recording(ResumableTrainer):
        def create_optimizer(self, *arguments: Any, **named: Any) -> Any:
            optimizer = super().create_optimizer(*arguments, **named)
            seen.append(optimizer.param_groups[0]["betas"])
            return optimizer

    monkeypatch.setattr("sft.train.ResumableTrainer", Recording)
    run()
    assert seen == [(0.9, 0.95)]
