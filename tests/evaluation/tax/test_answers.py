"""Greedy answers, their classifier, and what the harness's results become."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from evaluation.tax.config import TaxConfig
from evaluation.tax.harness import Harness, metrics_of
from evaluation.tax.instructions import INSTRUCTIONS
from evaluation.tax.model import Asked
from evaluation.tax.questions import Question, Questions
from evaluation.tax.toxicity import Toxicity, classifier_of


def test_an_answer_is_greedy_in_the_chat_template_and_ends_at_the_first_line_break(
    tax_model: Any, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, question = tax_model(max_new_tokens=6), Question("q.jsonl:1", "Why?", ["So."], "The sky is blue.")
    text = model.answers([Asked("q.jsonl:1", question.prompt)], "questions")
    tokenizer = AutoTokenizer.from_pretrained(saved())
    plain = AutoModelForCausalLM.from_pretrained(saved(), dtype=torch.float32).eval()
    messages = [{"role": "user", "content": "The sky is blue.\n\nWhy?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    made = plain.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
    assert text == [tokenizer.decode(made, skip_special_tokens=True).strip().split("\n")[0].strip()]
    monkeypatch.setattr("evaluation.tax.model.decode_completion", lambda *arguments: "One. \nTwo.\nThree.")
    assert model.answers([Asked("q.jsonl:1", question.prompt)], "questions") == ["One."]


def test_a_prompt_that_leaves_no_room_is_named(tax_model: Any) -> None:
    asked = Questions([Question("q.jsonl:5", "egg " * 300, ["A"])])
    with pytest.raises(ValueError, match=r"^q\.jsonl:5: the prompt has \d+ tokens, which together with tax.max_new"):
        asked.check(tax_model(max_new_tokens=200))


def test_questions_about_one_context_are_resampled_together() -> None:
    asked = [Question(f"q:{n}", "Q?", ["A"], context) for n, context in enumerate(["x", "x", "", ""])]
    assert Questions(asked).clusters == ["x", "x", "q:2", "q:3"]


def test_toxicity_is_measured_under_each_instruction(tmp_path: Path) -> None:
    seen: dict[str, list[str]] = {}

    def answers(asked: list[Asked], stream: str) -> list[str]:
        seen[stream] = [one.prompt.text for one in asked]
        return [f"{stream} {one.prompt.text[-1]}" for one in asked]

    model: Any = SimpleNamespace(answers=answers, accelerator=SimpleNamespace(num_processes=1, device="cpu"))
    task = Toxicity([("x:1", "So A"), ("x:2", "So B")], lambda texts, device: [len(text) / 100 for text in texts])
    found = task.measure(model)
    for kind, instruction in INSTRUCTIONS.items():
        assert seen[f"toxicity {kind}"] == [f"{instruction}\nSo {end}".lstrip() for end in "AB"]
        expected = len(f"toxicity {kind} A") / 100
        assert found.metrics[f"toxicity_{kind}"].rows_NS == [[expected], [expected]]
    assert found.answers[0] == {"instruction": "basic", "prompt": "So A", "answer": "toxicity basic A"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: Any, tiny_tokenizer: Any) -> Path:
    """A random classifier with three labels."""
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, id2label={0: "fine", 1: "Toxic", 2: "odd"}, label2id={"fine": 0, "Toxic": 1, "odd": 2},
        pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("classifier")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_a_classifiers_score_is_the_probability_of_its_toxic_label(classifier: Path) -> None:
    texts, device = ["You are kind.", "No!"], torch.device("cpu")
    found = classifier_of(TaxConfig(toxicity_classifier=str(classifier)))(texts, device)
    odd = classifier_of(TaxConfig(toxicity_classifier=str(classifier), toxicity_label="odd"))(texts, device)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    with torch.no_grad():
        shares = [model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1) for text in texts]
    assert found == pytest.approx([float(share[1]) for share in shares], abs=1e-5)
    assert odd == pytest.approx([float(share[2]) for share in shares], abs=1e-5)
    with pytest.raises(ValueError, match="has the labels fine, Toxic, odd: name the one for toxic text"):
        classifier_of(TaxConfig(toxicity_classifier=str(classifier), toxicity_label="rude"))


def test_a_classifier_whose_head_was_not_trained_is_refused(classifier: Path, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a text classifier: its architecture is LlamaForCausalLM"):
        classifier_of(TaxConfig(toxicity_classifier=str(tiny_llama)))
    shutil.copytree(classifier, tmp_path / "headless")
    weights = load_file(classifier / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "headless" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"its file lacks the weights score\.weight"):
        classifier_of(TaxConfig(toxicity_classifier=str(tmp_path / "headless")))(["No!"], torch.device("cpu"))


@pytest.mark.parametrize("place", ["profanity-check", "classifier"])
def test_an_empty_answer_is_not_toxic_and_leaves_the_others_in_their_places(classifier: Path, place: str) -> None:
    found = classifier_of(TaxConfig(toxicity_classifier=str(classifier) if place == "classifier" else place))
    alone, device = found(["No!", "You are kind."], torch.device("cpu")), torch.device("cpu")
    assert found(["", "No!", " ", "You are kind."], device) == pytest.approx([0.0, alone[0], 0.0, alone[1]], abs=1e-6)
    assert found([""], device) == [0.0]


def test_profanity_check_is_the_default() -> None:
    kind, rude = classifier_of(TaxConfig())(["Thank you, dear friend.", "fuck you, idiot"], torch.device("cpu"))
    assert kind < 0.2 < 0.8 < rude


def test_harness_results_are_compared_by_item_where_they_are_means() -> None:
    samples = [{"filter": "none", "acc": 1.0, "f1": (1, 2)}, {"filter": "none", "acc": 0.0, "f1": (3, 4)}]
    found = metrics_of(
        {
            "samples": {"quiz": samples},
            "results": {"quiz": {"alias": "quiz", "acc,none": 0.5, "acc_stderr,none": 0.5, "f1,none": 0.7,
                                 "f1_stderr,none": "N/A"}},
            "higher_is_better": {"quiz": {"acc": True, "f1": False}},
        }
    )  # fmt: skip
    assert list(found) == ["quiz acc", "quiz f1"]
    assert (found["quiz acc"].kind, found["quiz acc"].rows_NS, found["quiz acc"].better) == (
        "mean", [[1.0], [0.0]], "higher",
    )  # fmt: skip
    (mean, error, count), *_ = found["quiz f1"].rows_NS
    assert (found["quiz f1"].kind, mean, math.isnan(error), count) == ("reported", 0.7, True, 2.0)
    assert found["quiz f1"].better == "lower"


def test_a_missing_harness_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install -e '\.\[harness\]'"):
        TaxConfig(harness=["hellaswag"]).validate()
    TaxConfig().validate()


TASK = """task: eggs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: ["yes", "no"]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


def test_the_harness_runs_a_local_task_on_a_loaded_model(
    tax_model: Any, saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra `harness`")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions = ["Is an egg round?", "Is the sea dry?", "Is it so?"]
    rows = "".join(f'{{"question": "{text}", "label": {n % 2}}}\n' for n, text in enumerate(questions))
    (tmp_path / "eggs.jsonl").write_text(rows)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "eggs.yaml").write_text(TASK.format(file=tmp_path / "eggs.jsonl"))
    config = TaxConfig(harness=["eggs"], harness_folder=str(tmp_path / "tasks"))
    found = Harness(config).measure(tax_model()).metrics["eggs acc"]
    tokenizer = AutoTokenizer.from_pretrained(saved())
    plain = AutoModelForCausalLM.from_pretrained(saved(), dtype=torch.float64).eval()
    expected = []
    for number, text in enumerate(questions):
        before = tokenizer(f"Question: {text}\nAnswer:")["input_ids"]
        scores = []
        for answer in (" yes", " no"):
            ids = tokenizer(answer)["input_ids"]
            with torch.no_grad():
                logprobs = plain(torch.tensor([before + ids])).logits[0].log_softmax(-1)
            scores.append(sum(float(logprobs[len(before) - 1 + t, token]) for t, token in enumerate(ids)))
        expected.append([float((scores[1] > scores[0]) == number % 2)])
    assert found.rows_NS == expected
    with pytest.raises(ValueError, match=r"tax\.harness names no_such_task, which is not a task of"):
        Harness(TaxConfig(harness=["no_such_task"])).check(tax_model())
