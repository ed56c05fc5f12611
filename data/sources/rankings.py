"""Row functions of public preferences and ratings. docs/data.md lists the files and licences.

The published judgments are kept: ties stay ties, comparisons that do not form an order stay pairs, and an empty answer
that was judged stays. Each prompt is its own user unless the function says otherwise. A demonstration by the best
answer is usually a model's.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, groupby

from data.messages import Message
from data.sources.convert import (
    Answers,
    Fields,
    Row,
    answered,
    dense_ranks,
    identifier,
    need,
    objects,
    opening_id,
    optional,
    ranked,
)

JUDGED = re.compile(r"Q: (?P<question>.*?)\nA: ?(?P<answer>.*)\n(?P<kind>True|Helpful):", re.DOTALL)
ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
PARTS = {"subreddit": "SUBREDDIT: r/{}", "title": "TITLE: {}", "post": "POST: {}", "article": "ARTICLE: {}"}


def qa_feedback(row: Row) -> Fields:
    """QA-Feedback (Wu et al. 2023). The answers were sampled and judged with the passages, so the prompt has them."""
    question, passages = need(row, "question", str).strip(), need(row, "passages", list)
    lines = [line for line in map(_passage, passages) if line]
    if not lines:
        return {"prompt": question, "use_case": "open_qa"}
    text = "\n".join(["Answer the question from the passages.", "", *lines, "", f"Question: {question}"])
    return {"prompt": text, "use_case": "closed_qa"}


def _passage(passage: object) -> str:
    """A passage, published as its title and its sentences, as one line without a heading that repeats the title."""
    if not isinstance(passage, list) or not all(isinstance(part, str) for part in passage):
        raise ValueError("each of 'passages' must be a list of strings: a title, then sentences")
    title, *sentences = passage or [""]
    text = "\n".join(sentences)
    # A heading may be split into several sentences, and ends its line: "Bloom is an album" is no heading.
    text = re.sub(r"\A" + r"\s+".join(map(re.escape, title.split())) + r"\s*\n", "", text)
    return ": ".join(part for part in (title.strip(), " ".join(text.split())) if part)


def qa_feedback_demonstration(row: Row) -> Fields:
    """The `gold` answer of the files with comparisons, or the first `answer` of those for supervised training."""
    if "gold" in row:
        return {"completion": need(row, "gold", str).strip()}
    answers = need(row, "answer", list, "a list of answers")
    if not answers or not isinstance(answers[0], str):
        raise ValueError("'answer' must be a list of strings, the first of them the reference answer")
    return {"completion": answers[0].strip()}


def qa_feedback_ranking(row: Row) -> Fields:
    """The six comparisons as raw pairs: one question in twenty has a cycle, or a tie that no ranking can express."""
    completions = [need(row, f"prediction {number}", str) for number in range(1, 5)]
    verdicts, pairs = need(row, "preference", list), list(combinations(range(4), 2))
    if len(verdicts) != len(pairs) or not all(type(verdict) is int and verdict in (0, 1, 2) for verdict in verdicts):
        raise ValueError(
            f"'preference' must hold {len(pairs)} verdicts, each 1 (the first is better), 2 (the second) or 0 (neither)"
        )
    judged = list(zip(pairs, verdicts, strict=True))
    better = [[a, b] if verdict == 1 else [b, a] for (a, b), verdict in judged if verdict != 0]
    return {"completions": completions, "preferences": better, "ties": [[*pair] for pair, v in judged if v == 0]}


def truthfulqa(row: Row) -> Fields:
    """TruthfulQA (Lin et al. 2022): 817 questions that people often answer wrongly. The question is the user."""
    question = need(row, "Question", str).strip()
    return {"prompt": question, "user_id": question, "use_case": "open_qa"}


def truthfulqa_demonstration(row: Row) -> Fields:
    return {"completion": need(row, "Best Answer", str).strip()}


def truthfulqa_rankings(rows: Sequence[Row]) -> list[Fields]:
    """The judgments of a question, ranked by 2 * true + helpful: truth comes first, as in the paper's metric.

    Left out are answers without both judgments, or that a file judges both ways (76 of 36,622). Repeats count once.
    """
    judged: dict[str, dict[str, set[int]]] = defaultdict(lambda: {"True": set(), "Helpful": set()})
    judgments = [_judgment(row) for row in rows]
    question = judgments[0][0]
    for _, answer, kind, verdict in judgments:
        judged[answer][kind].add(verdict)
    if not all(any(found[kind] for found in judged.values()) for kind in ("True", "Helpful")):
        files = "finetune_truth.jsonl and finetune_info.jsonl"
        raise ValueError(f"question {question!r} has judgments of one kind only: read {files} together")
    both = {text: found for text, found in judged.items() if len(found["True"]) == len(found["Helpful"]) == 1}
    ranks = dense_ranks([2 * min(found["True"]) + min(found["Helpful"]) for found in both.values()])
    ranking = ranked(list(zip(both, ranks, strict=True)))
    return [truthfulqa({"Question": question}) | ranking] if ranking else []


def _judgment(row: Row) -> tuple[str, str, str, int]:
    """(question, answer, True or Helpful, 1 for yes) of {"prompt": "Q: ...\\nA: ...\\nTrue:", "completion": " yes"}."""
    match = JUDGED.fullmatch(need(row, "prompt", str))
    if not match:
        raise ValueError(
            "'prompt' must read 'Q: (question)', 'A: (answer)' and 'True:' or 'Helpful:', each on a line of its own"
        )
    verdict = need(row, "completion", str).strip()
    if verdict not in ("yes", "no"):
        raise ValueError(f"'completion' must be ' yes' or ' no', found {row['completion']!r}")
    return match["question"].strip(), match["answer"].strip(), match["kind"], int(verdict == "yes")


def truthfulqa_question(row: Row) -> str:
    """The question of a row of any of the files; a malformed row is a group of its own."""
    match = JUDGED.fullmatch(str(row.get("prompt")))
    return match["question"].strip() if match else str(row.get("Question", row))


def transcript(row: Row, key: str) -> list[Message]:
    """The messages of "\\n\\nHuman: ...\\n\\nAssistant: ...". Raises ValueError if the text is no such transcript.

    Consecutive turns of one speaker become one message, since chat templates require turns that alternate.
    """
    before, *parts = TURN.split(need(row, key, str, "a string"))
    if before.strip() or not parts:
        raise ValueError(f"{key!r} must be a transcript that begins with 'Human:' or 'Assistant:'")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [
        Message(role=SPEAKERS[speaker], content="\n\n".join(text.strip() for _, text in texts).strip())
        for speaker, texts in groupby(turns, key=lambda turn: turn[0])
    ]


def hh_rlhf(row: Row) -> Fields | None:
    """Anthropic's helpful and harmless dialogues (Bai et al. 2022): two transcripts that differ in the last reply.

    Other pairs are left out. Later rows often continue earlier ones, so the first message is the user.
    """
    (*prompt, chosen), (*other, rejected) = transcript(row, "chosen"), transcript(row, "rejected")
    replies = chosen["role"] == rejected["role"] == "assistant"
    if prompt != other or not prompt or not prompt[-1]["content"] or not replies:
        return None
    completions = [chosen["content"], rejected["content"]]
    return {"prompt": prompt, "user_id": opening_id(prompt), "completions": completions, "ranks": [1, 2]}


def ultrafeedback(row: Row) -> Fields:
    """UltraFeedback (Cui et al. 2023). Each answer had a system prompt of its own, which the judge did not see."""
    return {"prompt": need(row, "instruction", str)}


def ultrafeedback_answers(row: Row) -> Answers:
    """Ranked by the mean of the four ratings from 1 to 5; equal means tie.

    `overall_score` is not used: it is parsed from a critique, and some of the worst answers have a 10 where the critic
    wrote 1. An answer without all four ratings (published as "N/A") has no rank.
    """
    answers = objects(row, "completions", "each of 'completions' must be an object with 'response' and 'annotations'")
    ranks = dense_ranks([_score(answer) for answer in answers])
    return [(need(answer, "response", str).strip(), rank) for answer, rank in zip(answers, ranks, strict=True)]


def _score(answer: Row) -> int | None:
    """The sum of the ratings, which orders as their mean does; None if one is missing."""
    annotations: Fields = optional(answer, "annotations", {}, "an object with a rating for each aspect")
    ratings = []
    for aspect in ASPECTS:
        annotation = annotations.get(aspect)
        rating = annotation.get("Rating") if isinstance(annotation, dict) else None
        if rating is not None and not isinstance(rating, str):
            kind = type(rating).__name__
            raise ValueError(f"'Rating' of {aspect!r} must be a string, '1' to '5' or 'N/A', found {kind}")
        ratings.append(int(rating) if rating in ("1", "2", "3", "4", "5") else 0)
    return None if 0 in ratings else sum(ratings)


def binarized(row: Row) -> Fields | None:
    """UltraFeedback as Zephyr was trained on it: chosen has the highest `overall_score`, rejected is a random other.
    Pairs whose conversations differ before the last reply are left out.
    """
    prompt, _ = answered(row, "chosen")
    if answered(row, "rejected")[0] != prompt:
        return None
    return {"prompt": prompt, "prompt_id": identifier(row, "prompt_id", default="")}


def binarized_demonstration(row: Row) -> Fields | None:
    _, chosen = answered(row, "chosen")
    return {"completion": chosen} if chosen.strip() else None


def binarized_ranking(row: Row) -> Fields:
    """Chosen above rejected; equal scores tie, and ties do not count in the loss."""
    for key in ("score_chosen", "score_rejected"):
        if isinstance(row.get(key), bool) or not isinstance(row.get(key), int | float):
            raise ValueError(f"{key!r} must be a number, found {row.get(key)!r}")
    completions = [answered(row, key)[1] for key in ("chosen", "rejected")]
    return {"completions": completions, "ranks": [1, 1 if row["score_chosen"] == row["score_rejected"] else 2]}


def nectar(row: Row) -> Fields | None:
    """Nectar (Zhu et al. 2023). Prompts that end with the assistant's turn or an empty message are left out. The first
    message is the user, as in `hh_rlhf`, from which many prompts come.
    """
    prompt = transcript(row, "prompt")
    if prompt[-1] == Message(role="assistant", content=""):  # published prompts end with "Assistant: "
        prompt.pop()
    if not prompt or prompt[-1]["role"] != "user" or not prompt[-1]["content"]:
        return None
    return {"prompt": prompt, "user_id": opening_id(prompt)}


def nectar_answers(row: Row) -> Answers:
    """The published ranks, without answers that have several: prompts with fewer than seven answers repeat one."""
    ranks: dict[str, set[int]] = defaultdict(set)
    for answer in objects(row, "answers", "each of 'answers' must be an object with 'answer' and 'rank'"):
        text, rank = need(answer, "answer", str).strip(), answer.get("rank")
        if isinstance(rank, bool) or not isinstance(rank, int | float) or rank < 1 or rank != rank // 1:
            raise ValueError(f"'rank' must be a whole number from 1 up, found {rank!r}")
        ranks[text].add(int(rank))  # published as a number with a decimal point
    return [(text, found.pop()) for text, found in ranks.items() if len(found) == 1]


def shp(row: Row) -> Fields:
    """Stanford Human Preferences (Ethayarajh et al. 2022): a Reddit post and comments. The post is the user."""
    post = identifier(row, "post_id")
    return {"prompt": need(row, "history", str), "prompt_id": post, "user_id": post}


def shp_rankings(rows: Sequence[Row]) -> list[Fields]:
    """The comparisons of a post as one ranking: a comment is preferred if it came later and still scored higher."""
    fields = shp(rows[0])
    completions: list[str] = []
    preferences = []
    for row in rows:
        if shp(row) != fields:
            raise ValueError(f"post {fields['user_id']!r} has rows with different 'history'")
        texts = [need(row, key, str).strip() for key in ("human_ref_A", "human_ref_B")]
        label = need(row, "labels", int)
        if label not in (0, 1):
            raise ValueError(f"'labels' must be 1 (A is preferred) or 0 (B is), found {label}")
        completions += [text for text in dict.fromkeys(texts) if text not in completions]
        a, b = map(completions.index, texts)
        if a == b:  # comments with identical text stay a pair, which the rule for identical answers counts
            b = len(completions)
            completions.append(texts[1])
        preferences.append([a, b] if label == 1 else [b, a])
    return [fields | {"completions": completions, "preferences": preferences}]


def summarize_feedback(row: Row) -> Fields:
    """Summarize from feedback (Stiennon et al. 2020). The prompt is the paper's query, ending in "TL;DR:"; the post or
    article is the user.
    """
    info = {key: value for key, value in need(row, "info", dict, "an object").items() if value is not None}
    texts = {key: need(info, key, str).strip() for key in (*PARTS, "id") if key in info}
    if not texts.get("post") and not texts.get("article"):
        raise ValueError("'info' must hold the text to summarize as 'post' or 'article'")
    lines = [form.format(texts[key]) for key, form in PARTS.items() if texts.get(key)]
    prompt = "\n\n".join([*lines, "TL;DR:"])
    return {"prompt": prompt, "user_id": texts.get("id", ""), "use_case": "summarization"}


def summarize_feedback_ranking(row: Row) -> Fields:
    """One labeler's comparison; comparisons of a post are not merged, so that each keeps its labeler."""
    requirement = "'summaries' must be a list of two objects with 'text'"
    summaries, choice = objects(row, "summaries", requirement), need(row, "choice", int)
    if len(summaries) != 2:
        raise ValueError(requirement)
    if choice not in (0, 1):
        raise ValueError(f"'choice' must be 0 (the first summary is better) or 1 (the second is), found {choice}")
    return {
        "completions": [need(summary, "text", str).strip() for summary in summaries],
        "ranks": [1, 2] if choice == 0 else [2, 1],
        "labeler_id": identifier(row, "worker", default=""),
    }
