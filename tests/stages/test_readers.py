"""Prompts that a reward model with its own tokenizer, template or context cannot read are found before any training.

pytest tests/stages/test_readers.py
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from modeling.tiny import make_tiny_model
from stages import data
from stages.config import RunConfig, parse_config
from stages.readers import check_readers, reader_digests
from stages.runner import run_stage

LONG = "Tell me of every river, " * 6
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of another size, whose context is 64 and whose template has no system role."""
    folder = make_tiny_model(tmp_path_factory.mktemp("reader"), hidden_size=48)
    settings, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    settings.max_position_embeddings, tokenizer.chat_template = 64, NO_SYSTEM
    settings.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(root: Path, *more: str) -> RunConfig:
    given = ["--config", "configs/smoke.yaml", "--runs_folder", str(root), "--data.personal_data", "off", *more]
    return parse_config("test", "", given)[0]


def written(root: Path, row: Callable[[int], dict[str, object]]) -> Path:
    (root / "rows.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(60)))
    return root / "rows.jsonl"


@pytest.mark.parametrize("setting", ["reward.base", "ppo.rewards"])
def test_a_row_that_only_a_reward_models_template_refuses_is_told_at_its_place_or_skipped(
    reader: Path, tmp_path: Path, setting: str
) -> None:
    def row(number: int) -> dict[str, object]:
        system = [{"role": "system", "content": "Be brief."}] if number % 10 == 3 else []
        question = {"role": "user", "content": f"{number} times two is what?"}
        return {"prompt": [*system, question], "completion": "I do not know.", "user_id": str(number)}

    value = str(reader) if setting == "reward.base" else f"[{{kind: model}}, {{kind: model, path: {reader}}}]"
    given = ("--data.demonstrations", f"[{written(tmp_path, row)}]", f"--{setting}", value, "--ppo.value_init", "sft")
    if setting == "ppo.rewards":  # a path must be a reward model, of which only the configuration is read
        settings = json.loads((reader / "config.json").read_text()) | {
            "architectures": ["LlamaForSequenceClassification"]
        }
        (reader / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"rows\.jsonl:4: .*: the chat template refuses the role 'system'"):
        run_stage(data.STAGE, config_of(tmp_path, *given))
    found = run_stage(data.STAGE, config_of(tmp_path, *given, "--data.bad_rows", "skip"))
    assert found["skipped"] == 6


def test_prompts_that_leave_an_answer_no_room_in_a_reward_models_context_are_refused(
    reader: Path, tmp_path: Path
) -> None:
    def row(number: int) -> dict[str, object]:
        question = f"{number}: {LONG if number % 2 else 'Why?'}"
        return {"prompt": question, "completion": "So.", "user_id": str(number), "source": "api"}

    config = config_of(
        tmp_path, "--data.demonstrations", f"[{written(tmp_path, row)}]", "--data.max_prompt_tokens", "300",
        "--reward.base", str(reader), "--ppo.value_init", "sft", "--evaluate.best_of_n", "2",
    )  # fmt: skip
    run_stage(data.STAGE, config)
    folder, tokenizer = tmp_path / "smoke" / "data", AutoTokenizer.from_pretrained(reader)
    with pytest.raises(
        ValueError, match=r"^reward\.base=.*no room .* context of 64: .* or choose another reward model"
    ):
        check_readers(config, folder, tokenizer)
    config.ppo.rewards[0].kind, config.ppo.rewards[0].weight = "length", -0.1  # PPO does not read with it
    with pytest.raises(ValueError, match=r"^reward\.base=.*no room .* or set evaluate\.best_of_n=0"):
        check_readers(config, folder, tokenizer)
    config.evaluate.best_of_n = 0
    check_readers(config, folder, tokenizer)
    config.reward.bias_demonstrations = 1  # a long one
    with pytest.raises(ValueError, match=r"^reward\.base=.*none of the 1 demonstrations .* fits its context of 64"):
        check_readers(config, folder, tokenizer)


def test_the_data_depend_on_the_tokenizers_that_read_them_and_not_on_weights(reader: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, "--reward.base", str(reader))
    assert reader_digests(config_of(tmp_path)) == {}
    before = reader_digests(config)
    (reader / "model.safetensors").touch()
    (reader / "README.md").write_text("# A model card, which `make report` writes beside a run's models")
    assert reader_digests(config) == before
    (reader / "chat_template.jinja").write_text(NO_SYSTEM + " ")
    assert reader_digests(config) != before
