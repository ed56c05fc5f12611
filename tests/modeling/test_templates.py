"""Chat templates: where they come from, which are refused, and that exported ones are read alike by others.

pytest tests/modeling/test_templates.py
"""

import re
from pathlib import Path

import jinja2
import pytest
from transformers import AutoTokenizer

from data.chat_template import PLAIN
from demo.assets import CHATML
from modeling.config import ModelConfig
from modeling.load import load_tokenizer
from tests.modeling.folders import one_sentence, rewrite, rewrite_tokenizer

TWO_WORDS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
MARKED = (
    "{{ strftime_now('%d %b %Y') }}{%- for m in messages %}\n{%- if m.role == 'assistant' -%} A:\n{%- generation -%} "
    "{{ m.content }}!\n "
    "{%- endgeneration -%}{%- else -%} {{ m.content }}\n{% endif %}{%- endfor %}"
)


def test_chat_templates_come_from_the_file_then_the_tokenizer_then_ours(
    copied: Path, tmp_path: Path, model_config: ModelConfig
) -> None:
    assert load_tokenizer(copied, model_config).chat_template == CHATML
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m['content'] }}!{% endfor %}")
    own = ModelConfig(chat_template=str(tmp_path / "own.jinja"))
    assert load_tokenizer(copied, own).apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"
    with pytest.raises(
        ValueError, match=r"model\.chat_template=.*absent\.jinja: no such file; give the path of a Jinja template"
    ):
        load_tokenizer(copied, ModelConfig(chat_template=str(tmp_path / "absent.jinja")))
    rewrite_tokenizer(copied, chat_template=None)
    (copied / "chat_template.jinja").unlink(missing_ok=True)
    assert load_tokenizer(copied, model_config).chat_template == PLAIN


def test_a_template_that_plain_jinja_cannot_parse_is_named_once(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers enables the extension with these tags; the exported template keeps them."""
    (tmp_path / "own.jinja").write_text(
        CHATML.replace("{% endfor %}", "\n{% if false %}{% break %}{% endif %}{% endfor %}")
    )
    config = ModelConfig(chat_template=str(tmp_path / "own.jinja"))
    for _ in range(2):
        load_tokenizer(tiny_llama, config)
    (record,) = caplog.records
    assert "plain Jinja does not (line 4: Encountered unknown tag 'break'" in record.message


def test_a_byte_order_mark_of_a_template_file_is_not_part_of_the_template(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(CHATML, encoding="utf-8-sig")
    assert load_tokenizer(tiny_llama, ModelConfig(chat_template=str(tmp_path / "own.jinja"))).chat_template == CHATML


def test_several_templates_without_a_default_are_refused_by_the_setting(
    copied: Path, model_config: ModelConfig
) -> None:
    (copied / "chat_template.jinja").unlink()
    rewrite(copied / "tokenizer_config.json", chat_template=[{"name": name, "template": CHATML} for name in ("a", "b")])
    with pytest.raises(ValueError, match=r"has several chat templates \(a, b\): set model\.chat_template") as error:
        load_tokenizer(copied, model_config)
    one_sentence(error)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "does not show the user's message"),
        ("fixed words only", "does not show the user's message"),
        ("{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}", "does not "
                                                                                                        "show the "
                                                                                                        "user's "
                                                                                                        "message"),
        ("{{ messages[0]['content'] }}", "the assistant's answer as they are"),
        ("\n{{ messages[0]['content'] + 1 }}", r"cannot render a question and its answer \(line 2\): can only "
                                               r"concatenate str"),
        ("{{ nothing.at.all }}", r"\(line 1\): 'nothing' is undefined"),
        ("{% for m in messages %}\n{{ m.content", r"\(line 2\): unexpected end of template"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ 1 / 0 }}{% endif "
         "%}", "division by zero"),
        ("{% if add_generation_prompt %}x{% endif %}{% if not messages[1] %}y{% endif %}{% for m in messages %}{{ "
         "m.content }}{% endfor %}",
         "differently from the same question with its answer"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_trained_with_is_refused_before_anything_is_loaded(
    tiny_llama: Path, tmp_path: Path, template: str, said: str
) -> None:
    (tmp_path / "own.jinja").write_text(template)
    with pytest.raises(
        ValueError, match=f"^model.chat_template={re.escape(str(tmp_path / 'own.jinja'))}: .*{said}"
    ) as error:
        load_tokenizer(tiny_llama, ModelConfig(chat_template=str(tmp_path / "own.jinja")))
    assert "\n" not in str(error.value)


def test_exported_templates_are_read_alike_by_plain_jinja_and_by_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    original = AutoTokenizer.from_pretrained(tiny_llama)
    original.chat_template = MARKED.replace("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024")
    (tmp_path / "own.jinja").write_text(MARKED)
    load_tokenizer(tiny_llama, ModelConfig(chat_template=str(tmp_path / "own.jinja"))).save_pretrained(
        tmp_path / "saved"
    )
    exported = AutoTokenizer.from_pretrained(tmp_path / "saved")
    expected = original.apply_chat_template(TWO_WORDS, tokenize=False)
    assert exported.apply_chat_template(TWO_WORDS, tokenize=False) == expected, (
        "a template that reads the clock would change from day to day"
    )
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(exported.chat_template)
    assert plain.render(messages=TWO_WORDS) == expected
    for ours in (CHATML, PLAIN):
        assert jinja2.Environment().from_string(ours).render(messages=TWO_WORDS, eos_token="").count("So.") == 1
