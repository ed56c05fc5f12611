"""The embedded assets: what is kept, what is refused, and what is never done twice. No test here touches the network.

pytest tests/data/test_embedded.py
"""

import bz2
import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

import data.download
import data.embedded
from data.chat_template import CHATML, PLAIN
from data.download import Asset
from data.embedded import ARTICLES, BASE_MODEL, SENTENCE_ENCODER, cache_folder, main, wikipedia_file
from data.files import read_rows
from data.wikitext import prose

PARAGRAPH = (
    "The [[aardvark|earth pig]] is '''nocturnal''' and digs its burrows at night, far from any "
    "town.{{citation needed}} "
)
PAGE = "<page><title>{title}</title><ns>{ns}</ns>{redirect}<revision><text>{text}</text></revision></page>"
DUMP = (
    '<mediawiki xmlns="some-namespace">'
    + PAGE.format(title="Aardvark", ns=0, redirect="", text=PARAGRAPH * 10)
    + PAGE.format(
        title="Earth pig",
        ns=0,
        redirect='<redirect title="Aardvark"/>',
        text="#REDIRECT [[Aardvark]] " + PARAGRAPH * 10,
    )
    + PAGE.format(title="Stub", ns=0, redirect="", text=PARAGRAPH)
    + PAGE.format(title="Talk:Aardvark", ns=1, redirect="", text=PARAGRAPH * 10)
    + "</mediawiki>"
)


def wikipedia_articles() -> list[str]:
    return [row["text"] for _, row in read_rows(wikipedia_file())]


class FakePip:
    """Stands in for pip: puts one wheel where pip would, and counts."""

    def __init__(self, wheel: Path, returncode: int = 0, stderr: str = "") -> None:
        self.wheel, self.returncode, self.stderr = wheel, returncode, stderr
        self.calls: list[list[str]] = []

    def __call__(self, arguments: list[str]) -> "subprocess.CompletedProcess[str]":
        self.calls.append(arguments)
        if self.returncode == 0:
            (Path(arguments[arguments.index("--dest") + 1]) / self.wheel.name).write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(arguments, self.returncode, "", self.stderr)


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """A wheel with a small dump in it, the asset that describes it, and an empty cache."""
    dump = bz2.compress(DUMP.encode())
    wheel = tmp_path / "texts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("texts/dump.xml.bz2", dump)
    describe(monkeypatch, wheel, {"texts/dump.xml.bz2": hashlib.sha256(dump).hexdigest()})
    fake = FakePip(wheel)
    monkeypatch.setattr(data.download, "run_pip", fake)
    monkeypatch.setenv("RLHF_PTX_CACHE", str(tmp_path / "cache"))
    return fake


def describe(monkeypatch: pytest.MonkeyPatch, wheel: Path, members: dict[str, str], **changes: Any) -> None:
    settings = {"wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(), "members": members, **changes}
    asset = Asset(name="texts.jsonl", what="Texts", licence="CC0", requirement="texts==1.0", **settings)
    monkeypatch.setattr(data.embedded, "ARTICLES", asset)


def leftovers() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir() if not path.name.endswith(".lock"))


def test_articles_come_out_of_the_wheel_as_prose_and_nothing_else_stays(pip: FakePip) -> None:
    (text,) = wikipedia_articles()
    assert text.startswith("The earth pig is nocturnal and digs its burrows at night, far from any town.")
    assert leftovers() == ["texts.jsonl", "texts.jsonl.LICENSE.txt"]
    assert json.loads((cache_folder() / "texts.jsonl").read_text())["title"] == "Aardvark"
    assert "CC0" in (cache_folder() / "texts.jsonl.LICENSE.txt").read_text()


def test_pip_is_asked_for_one_wheel_only_and_nothing_is_built(pip: FakePip) -> None:
    wikipedia_articles()
    (arguments,) = pip.calls
    assert arguments[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "texts==1.0"} <= set(arguments)


def test_a_second_call_downloads_nothing(pip: FakePip) -> None:
    assert wikipedia_articles() == wikipedia_articles()
    assert len(pip.calls) == 1


def test_several_callers_at_once_download_once(pip: FakePip) -> None:
    answers: list[list[str]] = []
    threads = [threading.Thread(target=lambda: answers.append(wikipedia_articles())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pip.calls) == 1
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)


def test_an_interrupted_making_is_not_taken_for_the_real_thing(pip: FakePip) -> None:
    cache_folder().mkdir()
    (cache_folder() / "texts.jsonl").write_text('{"title": "half", "text": "half"}\n')
    half = cache_folder() / "texts.jsonl.partial" / "members" / "wheel"
    half.mkdir(parents=True)
    (half / "other.whl").write_text("half")
    (text,) = wikipedia_articles()
    assert "earth pig" in text
    assert len(pip.calls) == 1
    assert leftovers() == ["texts.jsonl", "texts.jsonl.LICENSE.txt"]


def test_a_folder_is_replaced_as_a_whole(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(pip.wheel) as archive:
        content = archive.read("texts/dump.xml.bz2")
    describe(monkeypatch, pip.wheel, {"texts/dump.xml.bz2": hashlib.sha256(content).hexdigest()})
    monkeypatch.setattr(data.embedded, "SENTENCE_ENCODER", data.embedded.ARTICLES)
    half = cache_folder() / "texts.jsonl"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_text("half")
    folder = data.embedded.sentence_encoder()
    assert [file.name for file in folder.iterdir()] == ["dump.xml.bz2"]


def test_a_newer_recipe_makes_the_asset_again(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    wikipedia_articles()
    describe(monkeypatch, pip.wheel, dict(data.embedded.ARTICLES.members), recipe=2)
    wikipedia_articles()
    wikipedia_articles()
    assert len(pip.calls) == 2


def test_a_wheel_with_another_hash_is_refused(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(monkeypatch, pip.wheel, dict(data.embedded.ARTICLES.members), wheel_sha256="0" * 64)
    with pytest.raises(ValueError, match=r"the wheel of texts==1\.0 is not the file that was expected"):
        wikipedia_articles()
    assert leftovers() == []


def test_a_member_with_another_hash_is_refused(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(monkeypatch, pip.wheel, {"texts/dump.xml.bz2": "0" * 64})
    with pytest.raises(ValueError, match=r"dump\.xml\.bz2 is not the file that was expected"):
        wikipedia_articles()
    assert leftovers() == []


def test_a_missing_member_is_named(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(monkeypatch, pip.wheel, {"texts/other.bz2": "0" * 64})
    with pytest.raises(ValueError, match=r"holds no texts/other\.bz2"):
        wikipedia_articles()
    assert leftovers() == []


def test_a_failed_download_says_why_and_never_where(pip: FakePip) -> None:
    pip.returncode = 1
    pip.stderr = (
        "WARNING: Retrying after connection broken by HTTPSConnectionPool(host='mirror.example.org', port=443)\n"
        "ERROR: No matching distribution found for texts==1.0 at https://user:token@mirror.example.org/simple "
        "(mirror.example.org:443)\n"
        "WARNING: There was an error checking the latest version of pip.\n"
    )
    with pytest.raises(
        ValueError, match=r"could not download texts==1\.0 \(pip: No matching distribution found"
    ) as raised:
        wikipedia_articles()
    assert "example" not in str(raised.value)
    assert "token" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert leftovers() == []


def test_pip_that_succeeds_without_a_wheel_counts_as_failed(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.download, "run_pip", lambda arguments: subprocess.CompletedProcess(arguments, 0, "", ""))
    with pytest.raises(ValueError, match="exit status 0, no wheel"):
        wikipedia_articles()


def test_a_cache_that_cannot_be_written_is_one_sentence(
    pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_PTX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="set RLHF_PTX_CACHE"):
        wikipedia_articles()


def test_the_command_line_prints_errors_without_a_traceback(pip: FakePip, capsys: pytest.CaptureFixture[str]) -> None:
    pip.returncode = 1
    assert main() == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("error: could not download")
    assert "Traceback" not in printed.err


def test_pip_runs_in_this_python_and_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(subprocess, "run", lambda command, **options: seen.update(command=command, **options))
    data.download.run_pip(["download"])
    assert seen["command"] == [sys.executable, "-m", "pip", "download"]
    assert seen["env"]["PIP_NO_INPUT"] == "1"
    assert seen["stdin"] == subprocess.DEVNULL


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RLHF_PTX_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "rlhf-ptx"
    monkeypatch.setenv("RLHF_PTX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_every_asset_is_pinned_and_holds_no_pickle() -> None:
    for asset in (BASE_MODEL, SENTENCE_ENCODER, ARTICLES):
        assert "==" in asset.requirement
        assert all(len(digest) == 64 for digest in (asset.wheel_sha256, *asset.members.values()))
        assert not any(member.endswith((".bin", ".pt", ".pkl", ".pth")) for member in asset.members)


def test_only_the_running_text_of_an_article_is_kept() -> None:
    sentence = "This sentence is long enough to count as a paragraph of prose in an article."
    markup = f"""{{{{Infobox|name=x}}}}
[[File:a.jpg|thumb|A caption that is long enough to be mistaken for a paragraph of the article.]]
'''First'''{{{{cn}}}} ({{{{IPA|x}}}}; {{{{lang|fr|premier}}}}) is {{{{convert|3|km|mi}}}} away.<ref>A note.</ref> {sentence}

== History ==
{sentence} <math>x^2</math>
=== Early&nbsp;days ===
{{| class="wikitable"
| {sentence}
|}}
* Item
{sentence}
{sentence} Here a reference <ref>was left open.
== See also ==
=== Lists ===
{sentence}
== Legacy ==
{sentence}
[[Category:Sentences]]
"""
    assert prose(markup).split("\n\n") == [
        f"First (premier) is 3 km away. {sentence}",
        "Early days",
        sentence,
        "Legacy",
        sentence,
    ]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_a_prompt_is_a_prefix_of_the_conversation_it_starts(template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    answer = {"role": "assistant", "content": "Because."}
    (prompt,), _ = render_jinja_template([question], chat_template=template, add_generation_prompt=True, **tokens)
    (whole,), _ = render_jinja_template([[*question, answer]], chat_template=template, **tokens)
    assert whole.startswith(prompt + "Because.<|im_end|>")
    assert whole.count("assistant") + whole.count("Assistant") == 1


@pytest.mark.skipif(
    not (cache_folder() / "smollm2-135m-instruct.LICENSE.txt").is_file(), reason="the base model is not in the cache"
)
def test_the_base_model_in_the_cache_has_our_tokenizer() -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cache_folder() / "smollm2-135m-instruct")
    config = AutoConfig.from_pretrained(cache_folder() / "smollm2-135m-instruct")
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template) == (
        "<|endoftext|>",
        "<|im_end|>",
        CHATML,
    )
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert tokenizer.tokenize("\n\n12") == ["ĊĊ", "1", "2"]
