"""The reward of an episode is the weighted sum of its terms; an unusable term is named in one sentence."""

import math
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.records import Ranking
from evaluation.compare import Answer
from evaluation.config import GoldConfig
from evaluation.judges.gold import GoldJudge
from evaluation.reward_scores import SavedRewardModel
from modeling.config import ModelConfig
from modeling.generation import Generation
from modeling.tiny import make_tiny_model
from modeling.tracking import read_metrics
from ppo.config import HeldOutSettings
from ppo.experience import Rollout
from ppo.reward_list import RewardFunction, prepare
from ppo.reward_terms import RewardTerm, load_function
from ppo.trainer import PPOData
from reward.batches import ranking_example
from stages import ppo
from stages.config import RunConfig, parse_config
from tests.conftest import enliven
from tests.families import CLASSIFIERS, classifier_folder
from tests.ppo.conftest import ALONE, PROMPTS, Chain, save_reward, small
from tests.ppo.test_reward_scorer import LOUD, OTHER_WORDS, by_hand, every_ending, prompt_ids

DOCS = (Path(__file__).parents[2] / "docs" / "reward.md").read_text()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of another family, with another tokenizer and template."""
    folder = tmp_path_factory.mktemp("other")
    made = make_tiny_model(
        folder / "made", "gpt2", vocab_size=330, hidden_size=48, layers=3, seed=4, corpus=OTHER_WORDS
    )
    return save_reward(folder / "reward", made, LOUD, eos="</s>") / "model"


def example(name: str, folder: Path) -> RunConfig:
    """The configuration in docs/reward.md, with its Python function in a file, and this reward model."""
    [config] = [block for block in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL) if "rewards:" in block]
    [function] = [block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "def polite" in block]
    (folder / "my_rewards.py").write_text(function.replace('"please"', '"a"'))
    (folder / "x.yaml").write_text(config.replace("my_rewards.py", str(folder / "my_rewards.py")))
    written = yaml.safe_load((folder / "x.yaml").read_text())
    written["ppo"]["rewards"][1] |= {"path": name, "name": "other"}
    (folder / "x.yaml").write_text(yaml.safe_dump(written))
    return parse_config("stages.ppo", "", ["--config", str(folder / "x.yaml")])[0]


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_the_reward_is_the_weighted_sum_of_models_of_any_tokenizer_length_and_functions(
    chains: Callable[[str], Chain], other: Path, adapter: str, tmp_path: Path
):
    chain, terms = chains(adapter), example(str(other), tmp_path).ppo.rewards
    case = every_ending(chain.tokenizer)
    rollout = Rollout(case.prompts, prompt_ids(chain, case), case.responses, ALONE.device)
    rollout.make_micro_batches([[0, 1], [2, 3], [4, 5]], max_tokens=80)
    models = chain.models(rewards=terms)
    total_B, parts, _ = models.rewards(rollout, 80)
    expected = {
        "model": by_hand(chain, case),
        "other": by_hand(Chain(chain.sft, other.parent, chain.config, chain.tokenizer), case),
        "length": [float(len(response.ids)) for response in case.responses],
        "polite": [float("a" in chain.tokenizer.decode(response.ids).lower()) for response in case.responses],
    }
    assert parts.keys() == expected.keys()
    assert 0 < sum(expected["polite"]) < len(case.responses)
    for name, values in expected.items():
        assert parts[name].tolist() == pytest.approx(values, abs=5e-5), name
    weights = {"model": 1.0, "other": 0.5, "length": -0.001, "polite": 0.1}
    wanted = [sum(weights[name] * expected[name][row] for name in weights) for row in range(len(case.responses))]
    assert total_B.tolist() == pytest.approx(wanted, abs=1e-4)
    frozen = [weight for scorer in models.rewards.scorers for weight in scorer.model.head.parameters()]
    assert not any(weight.requires_grad for weight in frozen)


@pytest.mark.parametrize("pad", ["EOS", "another token"])
@pytest.mark.parametrize("closing", ["", "\\n"])
def test_a_downloaded_reward_model_is_read_where_transformers_reads_it(
    chains: Callable[[str], Chain], tiny: Callable[[str], Path], tmp_path: Path, closing: str, pad: str
):
    """At the last token that is not the pad token of its config: before EOS if that is the pad token."""
    chain, tokenizer = chains("none"), AutoTokenizer.from_pretrained(tiny("gpt2"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] + eos_token + '" + closing + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    )
    model = enliven(AutoModelForSequenceClassification.from_pretrained(tiny("gpt2"), num_labels=1)).eval()
    if pad == "EOS":
        tokenizer.pad_token, model.config.pad_token_id = tokenizer.eos_token, tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts, expected = ["A cat.", "It purrs! The sea is blue"], []
    for text in texts:
        talk = [*PROMPTS[0].messages, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            expected.append(model(ids).logits.item())

    eos = chain.tokenizer.eos_token_id
    answers = [[*chain.tokenizer(text, add_special_tokens=False)["input_ids"], eos] for text in [*texts, ""]]
    rollout = Rollout([PROMPTS[0]] * 3, [[5]] * 3, [Generation(ids, None, ended=True) for ids in answers], ALONE.device)
    rollout.make_micro_batches([[0, 1, 2]], max_tokens=1000)
    models = chain.models(rewards=[RewardTerm(path=str(tmp_path))], value_init="sft")
    in_ppo = models.rewards(rollout, 1000)[0].tolist()
    own = ModelConfig(base="unused", device="cpu")
    saved = SavedRewardModel.of(tmp_path, own, "evaluate_reward.model")
    row = ranking_example(
        saved.tokenizer,
        Ranking(prompt=PROMPTS[0].prompt, completions=[*texts, ""], ranks=[1, 2, 3]),
        saved.answer_suffix,
    )
    assert in_ppo[:2] == pytest.approx(expected, abs=5e-5)
    [ranked] = saved.scores([(row.prompt, row.answers)], 1000, ALONE)
    assert ranked == pytest.approx(in_ppo, abs=5e-5)
    judge = GoldJudge.of(GoldConfig(model=str(tmp_path)), own, 1000, ALONE)
    [gold] = judge.scores(PROMPTS[:1], [[Answer(text, True, 1) for text in [*texts, ""]]])
    assert gold == pytest.approx(in_ppo, abs=5e-5)


def test_each_term_is_logged_and_the_sum_is_what_ppo_maximizes_and_what_is_evaluated(
    chains: Callable[[str], Chain], tmp_path: Path
):
    """Without the run's reward model, which then is not loaded: the length alone, twice."""
    terms = [RewardTerm("length", 0.5), RewardTerm("length", -2.0, name="cost")]
    config = small(rewards=terms, value_init="sft", total_episodes=8, held_out=HeldOutSettings(every=1, judge="none"))
    chain = chains("lora")
    models = chain.models(rewards=terms, value_init="sft")
    assert not models.rewards.scorers
    assert "reward" not in models.policy.encoder.model.peft_config
    trainer = chain.trainer(tmp_path, config, models)
    rollout = trainer.generate(0)
    experience = trainer.advantages(trainer.score(rollout), rollout)
    lengths = [float(length) for length in rollout.lengths]
    assert experience.scores.rewards_B.tolist() == pytest.approx([-1.5 * length for length in lengths])
    chain.trainer(tmp_path / "run", config, models, PPOData(PROMPTS, held_out=PROMPTS[:3])).train()
    [row] = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert row["score_length"] == row["score_cost"] == row["length"]
    assert row["score"] == pytest.approx(-1.5 * row["length"])
    for held_out in read_metrics(tmp_path / "run" / "held_out.jsonl"):
        assert held_out["held_out_score"] == pytest.approx(-1.5 * held_out["held_out_length"])


def test_a_function_is_called_as_trl_calls_reward_functions(chains: Callable[[str], Chain]):
    given: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        given.update(columns, prompts=prompts, completions=completions, completion_ids=completion_ids)
        return [0.0] * len(prompts)

    chain = chains("lora")
    case = every_ending(chain.tokenizer)
    rollout = Rollout(case.prompts, prompt_ids(chain, case), case.responses, ALONE.device)
    assert RewardFunction("f", reward, chain.tokenizer)(rollout) == [0.0] * 6
    assert given["prompts"] == [prompt.prompt for prompt in case.prompts]
    assert given["completions"][:2] == ["A cat. It purrs!", "The sea is blue"]
    [message] = given["completions"][4]  # its prompt is a conversation
    assert message["role"] == "assistant"
    assert given["completion_ids"] == [response.ids for response in case.responses]
    assert given["user_id"] == [prompt.user_id for prompt in case.prompts]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda **given: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        (lambda prompts, completions: [0.0], "failed: TypeError: .* unexpected keyword argument"),
        (lambda prompts, **given: [0.0] * (len(prompts) - 1), "returned 5 values for 6 prompts"),
        (lambda prompts, **given: [0.0] * 5 + [math.nan], "returned nan, which is not a finite number"),
        (lambda prompts, **given: [None] * 6, "failed: TypeError"),
        (lambda **given: sys.exit("no key"), "failed: SystemExit: no key"),
    ],
)
def test_a_function_that_fails_is_named(chains: Callable[[str], Chain], function: Any, said: str):
    chain = chains("lora")
    case = every_ending(chain.tokenizer)
    rollout = Rollout(case.prompts, prompt_ids(chain, case), case.responses, ALONE.device)
    with pytest.raises(ValueError, match=f"^the reward function 'mine:f' {said}"):
        RewardFunction("mine:f", function, chain.tokenizer)(rollout)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("[]", "ppo.rewards is empty"),
        ("[{kind: model, weight: 0}]", "the weights in ppo.rewards are all 0"),
        ("[{kind: length}]", "ppo.rewards does not contain the run's reward model"),
        ("[{kind: length}, {kind: model, weight: 0}]", "ppo.rewards does not contain the run's reward model"),
        ("[{kind: model}, {kind: model}]", "ppo.rewards[1]: the name 'model' is taken by ppo.rewards[0]"),
        (
            "[{kind: model}, {kind: length, name: std}]",
            "ppo.rewards[1]: the name 'std' is taken by the metric score_std",
        ),
        ("[{kind: model, weight: .nan}]", "ppo.rewards[0].weight=nan must be a finite number"),
        ("[{kind: model}, {kind: model, path: no/such/place}]", "ppo.rewards[1].path=no/such/place: no such folder"),
        ("[{kind: model, trust_remote_code: true}]", "belong to a path"),
        ("[{kind: model}, {kind: length, function: a:b}]", "ppo.rewards[1].function belongs to kind: python"),
        ("[{kind: model}, {kind: python}]", "ppo.rewards[1] needs a function"),
        ("[{kind: model}, {kind: python, function: polite}]", "must be module:function or path/to/file.py:function"),
        ("[{kind: model}, {kind: python, function: no.py:f}]", "no.py does not exist"),
        ("[{kind: model}, {kind: python, function: no.such:f}]", "there is no module 'no.such'"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_when_it_is_read(rewards: str, said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_config("stages.ppo", "", ["--ppo.rewards", rewards])


def test_the_error_for_an_unknown_field_of_a_term_suggests_the_nearest(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse_config("stages.ppo", "", ["--ppo.rewards", "[{kind: length, wieght: 0.5}]"])
    assert "did you mean 'weight'?" in capsys.readouterr().err


def test_a_term_that_cannot_be_loaded_is_refused_before_the_models_are(
    chains: Callable[[str], Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chain, file = chains("lora"), tmp_path / "mine.py"
    file.write_text("f = 3\n")
    for term, said in (
        (RewardTerm("python", function=f"{file}:f"), "is not callable"),
        (RewardTerm("python", function=f"{file}:g"), "has no function 'g'"),
        (RewardTerm(path=str(chain.sft / "model")), "is not a reward model: its architecture is LlamaForCausalLM"),
    ):
        with pytest.raises(ValueError, match=said):
            prepare(term, chain.config, chain.tokenizer, ALONE.device)
    for kind, said in CLASSIFIERS.items():
        place = str(classifier_folder(tmp_path / kind, chain.sft / "model", kind))
        with pytest.raises(ValueError, match=said):
            prepare(RewardTerm(path=place), chain.config, chain.tokenizer, ALONE.device)
    file.write_text("import no_such_thing\n")
    with pytest.raises(ValueError, match="cannot be imported: ModuleNotFoundError"):
        prepare(RewardTerm("python", function=f"{file}:f"), chain.config, chain.tokenizer, ALONE.device)
    package = tmp_path / "judges_of_mine"
    package.mkdir()
    (package / "rewards.py").write_text("def f(**given): return []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for text, said in (
        ("import no_such_thing\n", "No module named 'no_such_thing'"),
        ("y = undefined_name\n", r"\(NameError: name 'undefined_name' is not defined\)"),
    ):
        (package / "__init__.py").write_text(text)
        with pytest.raises(ValueError, match=rf"'judges_of_mine\.rewards:f' cannot be loaded.*{said}"):
            prepare(
                RewardTerm("python", function="judges_of_mine.rewards:f"), chain.config, chain.tokenizer, ALONE.device
            )
    with pytest.raises(ValueError, match=r"there is no module 'judges_of_yours\.rewards'"):
        prepare(RewardTerm("python", function="judges_of_yours.rewards:f"), chain.config, chain.tokenizer, ALONE.device)
    for text in ("async def f(**given): return []\n", "class F:\n    async def __call__(self): ...\nf = F()\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match="is asynchronous: write `def f`, without async"):
            prepare(RewardTerm("python", function=f"{file}:f"), chain.config, chain.tokenizer, ALONE.device)


def test_functions_of_a_file_that_is_loaded_again_can_be_pickled_and_a_changed_file_counts(tmp_path: Path):
    file, library = tmp_path / "my_judge.py", sys.modules["json"]
    file.write_text("def f(): return 1\ndef g(): return f\n")
    first, second = load_function(f"{file}:f"), load_function(f"{file}:g")()
    assert pickle.loads(pickle.dumps(first)) is first is second
    assert str(tmp_path) in sys.path, "workers that are spawned import it from there"
    file.write_text("def f(): return 2\n")
    os.utime(file, ns=(0, 0))
    changed = load_function(f"{file}:f")
    assert changed() == 2
    assert pickle.loads(pickle.dumps(changed)) is changed
    (tmp_path / "json.py").write_text("def f(): return 3\n")
    assert load_function(f"{tmp_path / 'json.py'}:f")() == 3
    assert sys.modules["json"] is library


def test_a_function_may_change_its_arguments(chains: Callable[[str], Chain]):
    def reward(prompts: Any, completion_ids: Any, user_id: Any, **columns: Any) -> list[float]:
        for prompt in prompts:
            if isinstance(prompt, list):
                prompt.append({"role": "assistant", "content": "x"})
        for ids in completion_ids:
            ids.clear()
        user_id.clear()
        return [0.0] * len(prompts)

    chain = chains("lora")
    case = every_ending(chain.tokenizer)
    rollout = Rollout(case.prompts, prompt_ids(chain, case), case.responses, ALONE.device)
    before = deepcopy((rollout.prompts, rollout.ids, [response.ids for response in rollout.responses]))
    assert any(isinstance(prompt.prompt, list) for prompt in rollout.prompts)
    RewardFunction("f", reward, chain.tokenizer)(rollout)
    assert (rollout.prompts, rollout.ids, [response.ids for response in rollout.responses]) == before


@pytest.mark.parametrize(
    "setting",
    ["torch.set_grad_enabled(False)", "torch.set_default_dtype(torch.bfloat16)", "torch.set_default_device('meta')",
     "torch.set_autocast_enabled('cpu', True)", "warnings.simplefilter('error')", "os.chdir('/')"],
)  # fmt: skip
def test_settings_of_a_users_module_and_function_do_not_reach_the_training(
    chains: Callable[[str], Chain], tmp_path: Path, setting: str
):
    def settings() -> tuple[Any, ...]:
        of_torch = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
        return *of_torch, torch.is_autocast_enabled("cpu"), list(warnings.filters), Path.cwd()

    chain, before = chains("lora"), settings()
    for number, text in enumerate(
        (
            f"import os, torch, warnings\n{setting}\ndef f(prompts, **given): return [1.0] * len(prompts)\n",
            f"import os, torch, warnings\ndef f(prompts, **given):\n    {setting}\n    return [1.0] * len(prompts)\n",
        )
    ):
        file = tmp_path / f"judge{number}.py"
        file.write_text(text)
        reward = prepare(RewardTerm("python", function=f"{file}:f"), chain.config, chain.tokenizer, ALONE.device)()
        assert settings() == before
        case = every_ending(chain.tokenizer)
        reward(Rollout(case.prompts, prompt_ids(chain, case), case.responses, ALONE.device))
        assert settings() == before


def test_a_changed_file_or_folder_changes_the_inputs_of_the_stage(other: Path, tmp_path: Path):
    config = example(str(other), tmp_path)
    before = ppo.STAGE.external(config)
    assert before.keys() == {str(tmp_path / "my_rewards.py"), str(other)}
    (tmp_path / "my_rewards.py").write_text("def polite(**kwargs): ...\n")
    (other / "note.txt").write_text("changed")
    after = ppo.STAGE.external(config)
    (other / "note.txt").unlink()
    assert all(after[name] != before[name] for name in before)
    assert ppo.STAGE.external(RunConfig()) == {}
