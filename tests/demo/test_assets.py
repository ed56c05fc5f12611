"""The demo's assets are downloaded once, checked and complete. No test here uses the network."""

import bz2
import dataclasses
import hashlib
import json
import pwd
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

import demo.assets
from data.chat_template import PLAIN
from data.files import read_rows
from demo.assets import ASSETS, CHATML, Asset, cache_folder, convert_articles, main
from demo.wikitext import prose

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


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset in a wheel that pip finds in a folder, and an empty cache."""
    wheel = tmp_path / "index" / "texts-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("texts/dump.xml.bz2", bz2.compress(DUMP.encode()))
        archive.writestr("texts-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: texts\nVersion: 1.0\n")
        archive.writestr("texts-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("RLHF_PTX_CACHE", str(tmp_path / "cache"))
    return Asset(
        name="texts.jsonl",
        what="Texts",
        licence="CC0",
        requirement="texts==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        members=("texts/dump.xml.bz2",),
        make=convert_articles,
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The calls of pip."""
    found: list[list[str]] = []

    def counted(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
        found.append(arguments)
        return run_pip(arguments)

    run_pip = demo.assets.run_pip
    monkeypatch.setattr(demo.assets, "run_pip", counted)
    return found


def texts(asset: Asset) -> list[str]:
    return [row["text"] for _, row in read_rows(asset.path())]


def leftovers() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir() if not path.name.endswith(".lock"))


def test_articles_come_out_of_the_wheel_as_prose_and_nothing_else_stays(asset: Asset) -> None:
    (text,) = texts(asset)
    assert text.startswith("The earth pig is nocturnal and digs its burrows at night, far from any town.")
    assert leftovers() == ["texts.jsonl", "texts.jsonl.LICENSE.txt"]
    assert json.loads((cache_folder() / "texts.jsonl").read_text())["title"] == "Aardvark"
    assert "CC0" in (cache_folder() / "texts.jsonl.LICENSE.txt").read_text()


def test_several_callers_download_one_wheel_once_and_build_nothing(asset: Asset, calls: list[list[str]]) -> None:
    answers: list[list[str]] = []
    threads = [threading.Thread(target=lambda: answers.append(texts(asset))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)
    (arguments,) = calls
    assert arguments[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(arguments)


def test_an_asset_that_was_interrupted_is_made_again(asset: Asset, calls: list[list[str]]) -> None:
    cache_folder().mkdir()
    (cache_folder() / "texts.jsonl").write_text('{"title": "half", "text": "half"}\n')
    half = cache_folder() / "texts.jsonl.partial" / "members" / "wheel"
    half.mkdir(parents=True)
    (half / "other.whl").write_text("half")
    (text,) = texts(asset)
    assert "earth pig" in text
    assert len(calls) == 1
    assert leftovers() == ["texts.jsonl", "texts.jsonl.LICENSE.txt"]


def test_a_folder_is_replaced_as_a_whole(asset: Asset) -> None:
    half = cache_folder() / "texts.jsonl"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_text("half")
    folder = dataclasses.replace(asset, make=shutil.copytree).path()
    assert [file.name for file in folder.iterdir()] == ["dump.xml.bz2"]


def test_a_newer_recipe_makes_the_asset_again(asset: Asset, calls: list[list[str]]) -> None:
    texts(asset)
    newer = dataclasses.replace(asset, recipe=2)
    texts(newer)
    texts(newer)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sha256": "0" * 64}, r"the wheel of texts==1\.0 does not have the expected SHA-256"),
        ({"members": ("texts/other.bz2",)}, r"the wheel of texts==1\.0 has no texts/other\.bz2"),
        ({"requirement": "texts==2.0"}, r"could not download texts==2\.0 \(pip: No matching distribution found"),
    ],
)
def test_another_wheel_is_refused_and_leaves_nothing(asset: Asset, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        texts(dataclasses.replace(asset, **changes))
    assert leftovers() == []


def test_a_failed_download_shows_no_addresses(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    error = (
        "WARNING: Retrying after connection broken by HTTPSConnectionPool(host='mirror.example.org', port=443)\n"
        "ERROR: No matching distribution found for texts==1.0 at https://user:token@mirror.example.org/simple "
        "(mirror.example.org:443)\n"
        "WARNING: There was an error checking the latest version of pip.\n"
    )
    answer = subprocess.CompletedProcess([], 1, "", error)
    monkeypatch.setattr(demo.assets, "run_pip", lambda arguments: answer)
    with pytest.raises(ValueError, match=r"texts==1\.0 \(pip: No matching distribution found") as raised:
        texts(asset)
    assert not any(part in str(raised.value) for part in ("example", "token", "\n"))
    answer.stderr = ""
    with pytest.raises(ValueError, match="pip: exit 1"):
        texts(asset)
    answer.stdout = "An error occurred during configuration: option timeout: invalid value\n"
    with pytest.raises(ValueError, match="option timeout: invalid value"):
        texts(asset)


def test_a_cache_that_cannot_be_written_is_one_sentence(
    asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLHF_PTX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="set RLHF_PTX_CACHE"):
        texts(asset)


def test_the_command_line_prints_errors_without_a_traceback(
    asset: Asset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.assets, "ASSETS", (dataclasses.replace(asset, requirement="texts==2.0"),))
    assert main() == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("error: could not download")
    assert "Traceback" not in printed.err


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RLHF_PTX_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "rlhf-ptx"
    monkeypatch.setenv("RLHF_PTX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a user of a container without an entry in its passwd file."""

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("RLHF_PTX_CACHE", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ValueError, match="no home folder: set RLHF_PTX_CACHE"):
        cache_folder()


def test_every_asset_is_pinned_and_contains_no_pickle() -> None:
    for asset in ASSETS:
        assert "==" in asset.requirement
        assert len(asset.sha256) == 64
        assert not any(member.endswith((".bin", ".pt", ".pkl", ".pth")) for member in asset.members)


def test_only_the_running_text_of_an_article_is_kept() -> None:
    sentence = "This sentence is long enough to count as a paragraph of prose in an article."
    markup = f"""{{{{Infobox|name=x}}}}
[[File:a.jpg|thumb|A caption that is long enough to be mistaken for a paragraph of the article.]]
'''First'''{{{{cn}}}} ({{{{IPA|x}}}}; {{{{lang|fr|premier}}}}) is {{{{convert|3|km|mi}}}} away.\
<ref>A note.</ref> {sentence}

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
