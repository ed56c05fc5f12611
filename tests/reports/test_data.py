"""The report stands alone, shows what there is, and no text of anybody's can break out of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from data.config import SourceConfig
from data.facts import facts_of
from data.sets import set_file
from reports.data import write_data_report
from reports.data_warnings import warnings
from reports.dry_run import plan
from tests.data.making import demonstrations, described, file_of, made, prompts, rankings, twins, written

HOSTILE = "<script>alert('no')</script> | ![x](http://tracker/x.png) ```` and \n# a heading"
PICTURES = ["languages", "prompt_lengths", "prompts_per_user", "rankings", "use_cases"]


def reported(folder: Path, rows: dict[str, Any] | None = None, **settings: Any) -> tuple[str, str, list[str]]:
    facts = described(folder, rows, **settings)
    write_data_report(facts, "fake", folder)
    return (folder / "report.html").read_text(), (folder / "report.md").read_text(), warnings(facts)


def text_of(html: str) -> str:
    """What a reader sees, tags taken as gaps."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("<body>")[1]))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, list[str], Path]:
    hostile = [{"prompt": HOSTILE, "user_id": "a"}, {"prompt": HOSTILE + "!", "user_id": "b"}]
    opinions = {"anna": [1, 2], "ben": [1, 2], "cleo": [2, 1]}
    judged = [row | {"labeler_id": who, "ranks": ranks} for row in rankings(20) for who, ranks in opinions.items()]
    rows = {"prompts": [*prompts(20), *hostile, '{"<i>": 1}'], "rankings": judged}
    folder = tmp_path_factory.mktemp("report")
    strange = SourceConfig(place=file_of(folder / "strange.jsonl", [{"prompt": "one | two", "user_id": "c"}]))
    names = [str(folder / "prompts.jsonl"), "<b>pipe | set"]
    return *reported(folder, rows, bad_rows="skip", sources={names[1]: strange}, prompts=names), folder


def test_numbers_stand_in_their_places(report):
    html, markdown, doubts, _ = report
    seen = text_of(html)
    assert (
        "5 sources read; kept 82 of 83 prompts, 60 of 60 rankings, 2 of 2 documents. 1 malformed row skipped." in seen
    )
    assert "near duplicate 1 1.2%" in seen
    assert "Rankings 60" in seen
    assert "Strict pairs 60" in seen
    assert "Answers per ranking (K) 2: 60 2.00 4 to 9" in seen
    assert "20 prompts, 3 labelers" in seen
    assert "Agreement on pairs that both order strictly chance: 50% 33.3% 33.3% to 33.3% 60 72.6 ± 1.5%" in seen
    assert "Strict pairs won by the longer answer chance: 50% 33.3%" in seen
    assert "Longest answer ranked best a random answer: 50.0% 33.3%" in seen
    assert "| Strict pairs | 60 |  |" in markdown
    assert (
        "96% of the paper&#39;s instructions were in English" in html
        or "96% of the paper's instructions were in English" in html
    )
    assert all(doubt in seen for doubt in (text.replace("'", "&#39;") for text in doubts))


def test_html_stands_alone_and_markdown_has_its_pictures_beside_it(report):
    html, markdown, _, folder = report
    assert html.count("<img ") == html.count('<img src="data:image/png;base64,') == len(PICTURES)
    assert all(
        place.startswith(("data:image/png;base64,", "#")) for place in re.findall(r'\b(?:src|href)="(.*?)"', html)
    )
    assert sorted(re.findall(r"\]\(report_pictures/(\w+)\.png\)", markdown)) == PICTURES
    assert sorted(path.stem for path in (folder / "report_pictures").iterdir()) == PICTURES


def test_texts_cannot_break_out(report):
    html, markdown, _, _ = report
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(") == 2, "the removed prompt and its twin"
    assert "<b>" not in html
    assert "<i>" not in html
    assert f"`````text\n{HOSTILE}!\n`````" in markdown
    assert "&lt;b>pipe \\| set" in markdown


def test_tables_of_markdown_have_as_many_cells_as_columns(report):
    blocks = re.findall(r"(?:^\|.*\n)+", report[1], re.M)
    assert len(blocks) > 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_without_rankings_and_use_cases(tmp_path):
    plain = [{key: value for key, value in row.items() if key != "use_case"} for row in demonstrations()]
    html, markdown, _ = reported(tmp_path, {"demonstrations": plain})
    assert html.count("<img ") == len(PICTURES) - 2
    for text in (html, markdown):
        assert "There are no rankings in the data; the labeling stages make them." in text
        assert "No prompt names its use case." in text
        assert "Do labelers agree?" not in text


def test_without_a_strict_pair_or_labelers(tmp_path):
    tied = rankings(5, ranks=[1, 1], labeler_id="")
    # A source without a strict pair is refused, so the only one is in a row that curation removes.
    removed = rankings(1, labeler_id="")[0] | {"prompt": "word " * 5000}
    html, _, _ = reported(tmp_path, {"rankings": [*tied, removed]})
    assert "No pair is ordered strictly." in html
    assert "No two labelers ranked the same answers, so agreement is unknown." in html


def test_by_organisation(tmp_path):
    firms = [row | {"organisation_id": f"firm {number % 20}"} for number, row in enumerate(demonstrations())]
    html, _, _ = reported(tmp_path, {"demonstrations": firms}, group_by="organisation")
    assert "Users are organisations here" in html


def test_nobodys_personal_data_are_shown(tmp_path):
    secret = "bob.miller@miller-tools.com"
    rows = [
        {"prompt": f"{number} times write to {secret} now", "user_id": f"{secret} {number}"} for number in range(20)
    ]
    rows += [row | {"user_id": "again", "prompt": row["prompt"] + "!"} for row in rows]
    rows.append({"prompt": "who is it", "source": secret})
    ranked = rankings(20, labeler_id=secret, user_id=secret)
    html, markdown, doubts = reported(tmp_path, {"prompts": rows, "rankings": ranked}, bad_rows="skip")
    assert "[EMAIL]" in html
    assert "&#39;source&#39; is &#39;[EMAIL]&#39;" in html
    for text in (html, markdown, "\n".join(doubts)):
        assert "bob.miller" not in text


def test_the_plan_says_what_would_be_written(tmp_path):
    built, config = made(tmp_path, {"prompts": prompts(20) + twins(1), "rankings": rankings(20)})
    said = plan(facts_of(built, config))
    files = written(built, tmp_path)
    assert re.search(r"prompts +near_duplicate +1 +1\.2% +shares its first 90%", said)
    for name in ("sft", "rm", "rl", "rankings"):
        counts = [str(len(files[f"{name}_{split}"])) for split in ("train", "valid", "test")]
        assert re.search(rf"^  {name} +{' +'.join(counts)}$", said, re.M)
    assert re.search(rf"prompts +rows +20 of 21 rows +{re.escape(Path(config.prompts[0]).name)}$", said, re.M)
    listed = set(re.findall(r"^  (\w+\.parquet)$", said, re.M))
    assert listed == {path.name for path in tmp_path.glob("*.parquet")}
    assert set_file(tmp_path, "texts", "heldout").name in listed
    assert "Too small to tell two models apart" in said


def test_the_plan_lists_skipped_rows_after_the_warnings_and_counts_them_as_read(tmp_path):
    bad = [{"promt": "x"}, *({"prompt": ""} for _ in range(6))]
    built, config = made(tmp_path, {"prompts": prompts(20) + bad}, bad_rows="skip")
    said = plan(facts_of(built, config))
    assert re.search(r"prompts +rows +20 of 27 rows ", said)
    (warnings, skipped), place = said.split("\nWarnings\n")[1].split("\n\n")[:2], config.prompts[0]
    assert "7 malformed rows skipped: correct the source; the first are listed below" in warnings
    assert skipped.splitlines()[1].endswith(f"{place}:21: unknown key 'promt', did you mean 'prompt'?")
    assert len(skipped.splitlines()) == 1 + 5 + 1
    assert skipped.endswith("and 2 more")


def test_prompts_that_the_simulated_labeler_leaves_out_are_counted(tmp_path):
    for rows, said in (({"prompts": prompts(15)}, "15 of 75 RM prompts have no demonstration"), ({}, "")):
        folder = tmp_path / str(len(rows))
        html, markdown, _ = reported(folder, rows)
        found = plan(described(folder, rows))
        assert all((said or "have no demonstration") in text for text in (html, markdown, found)) == bool(said)


def test_the_plan_promises_no_file_without_rows(tmp_path):
    said = plan(described(tmp_path))
    assert "rl_test.parquet" in said
    assert "rankings_" not in said
