"""Compares base, SFT and PPO on the prompts of held-out users.

python -m stages.evaluate --config configs/demo.yaml
"""

import functools
import gc
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.runner import RunFolder, Stage, stage_main

SCORING_BATCH = 16
"""Sequences whose logits, a number for every token of the vocabulary at every place, are in memory at a time."""


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes generations.jsonl, evaluation.json and headline.json, and best_of_n.jsonl where there are answers to
    choose from.
    """
    from data.files import write_rows
    from data.intervals import interval
    from data.sets import read_set, read_texts
    from data.tokenize import pretraining_chunks
    from evaluation.best_of_n import Proxy, best_of_n, with_proxy
    from evaluation.compare import (
        MODELS,
        Scoring,
        judged_answers,
        kl_between,
        logprobs_of_answers,
        parts_table,
        perplexity,
        preference,
        rubric_win_rates,
        win_rate,
    )
    from labeling.judges import closeness_judge
    from labeling.sampling import answer
    from labeling.scratch import remembered
    from modeling.accelerator import from_main, make_accelerator
    from modeling.generation import Sampling
    from modeling.load import autocast, autocast_dtype, base_model_place, load_causal, load_tokenizer, read_settings
    from modeling.models import policy_model
    from stages.inputs import evenly, refuse_long_texts

    accelerator = make_accelerator(config.model.device)
    settings, resamples = config.evaluate, config.evaluate.bootstrap_resamples
    data = run.stage("data")
    prompts = evenly(read_set(data, "sft", "test"), settings.max_prompts)
    sampling = Sampling(
        settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p, settings.batch_size
    )
    policy = run.stage("ppo") / ("model_ema" if settings.weights == "ema" else "model")
    places = {
        "ppo": str(policy),
        "sft": str(run.stage("sft") / "model"),
        "base": from_main(accelerator, lambda: base_model_place(config.model)),
    }
    refuse_long_texts(config, read_settings(places["base"], config.model))
    chosen = evenly(range(len(prompts)), settings.best_of_n_prompts)
    some = [prompts[index] for index in chosen]
    proxy: Proxy | None = None
    if settings.best_of_n:
        trust = (config.model if config.reward.base is None else config.reward).trust_remote_code
        proxy = Proxy.of(run.stage("sft") / "model", run.stage("reward") / "model", config.model, trust)
        proxy.check(some)
    generations, perplexities, logprobs, candidates, scores = {}, {}, {}, [], []
    scoring = Scoring(settings.temperature or 1.0, SCORING_BATCH, accelerator)
    scratch = out / "scratch"
    for name, place in places.items():
        tokenizer = load_tokenizer(place, config.model)
        model = load_causal(place, config.model, tokenizer).to(accelerator.device)
        count = 1 if name == "base" else settings.answers_per_prompt
        with autocast(config.model, accelerator.device):
            stream = f"evaluate {name}"
            generations[name] = answer(
                model, tokenizer, prompts, count, sampling, stream, config.seed, accelerator, scratch
            )
            if name == "sft" and proxy is not None:
                count = settings.best_of_n
                candidates = answer(
                    model, tokenizer, some, count, sampling, "best of n", config.seed, accelerator, scratch
                )
        chunks = pretraining_chunks(tokenizer, read_texts(data, "heldout"), config.data.pretraining_tokens)
        texts = evenly(chunks, settings.perplexity_examples)
        scored = policy_model(model, autocast_dtype(config.model, accelerator.device))
        measure = functools.partial(perplexity, scored, texts, SCORING_BATCH, accelerator)
        perplexities[name] = remembered(scratch, f"perplexity {name}", accelerator, measure)
        if name != "base":  # PPO's answers, by PPO and by SFT in the same batches
            measure_answers = functools.partial(
                logprobs_of_answers, scored, tokenizer, prompts, generations["ppo"], scoring
            )
            logprobs[name] = remembered(scratch, f"log-probabilities by {name}", accelerator, measure_answers)
            del measure_answers
        del model, scored, measure
        gc.collect()
    kl = kl_between(logprobs["ppo"], logprobs["sft"])
    if proxy is not None:
        of_ppo = [generations["ppo"][index] for index in chosen]
        limit = config.reward.max_tokens_per_micro_batch
        rate = functools.partial(proxy.scores, some, [candidates, of_ppo], limit, accelerator)
        scores = remembered(scratch, "reward scores", accelerator, rate)
    if not accelerator.is_main_process:
        return {}

    judge = closeness_judge(config.labels.closeness)
    answers = {name: judged_answers(tokenizer, prompts, generations[name], config.labels, judge) for name in MODELS}
    width = config.labels.tie_width
    against = {name: win_rate(answers["ppo"], answers[name], width, resamples) for name in ("sft", "base")}
    accuracy = json.loads((run.stage("reward") / "accuracy.json").read_text())
    evaluation = {
        "prompts": len(prompts),
        "users": len({prompt.user_id for prompt in prompts}),
        "weights": settings.weights,
        "answers_per_prompt": settings.answers_per_prompt,
        "win_rate": against,
        **rubric_win_rates(answers["ppo"], answers["sft"], config.labels, resamples),
        "models": parts_table(answers, resamples),
        "perplexity": perplexities,
        "kl": interval(kl, resamples),
        "reward_model": accuracy["test"],
    }
    if proxy is not None:
        ours, theirs = ([answers[name][index] for index in chosen] for name in ("ppo", "sft"))
        sampled = with_proxy(judged_answers(tokenizer, some, candidates, config.labels, judge), scores[0])
        evaluation["best_of_n"] = best_of_n(
            sampled, with_proxy(ours, scores[1]), theirs, [kl[index] for index in chosen], width, resamples
        )
        write_rows(
            out / "best_of_n.jsonl",
            [
                {"prompt_id": prompt.prompt_id, "answers": [asdict(given) for given in row]}
                for prompt, row in zip(some, sampled, strict=True)
            ],
        )
    (out / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n")
    rows = []
    for index, prompt in enumerate(prompts):
        row: dict[str, Any] = {
            "prompt_id": prompt.prompt_id,
            "use_case": prompt.use_case,
            "prompt": prompt.text,
            "reference": prompt.completion,
            "kl": kl[index],
        }
        row |= {name: [asdict(given) for given in answers[name][index]] for name in MODELS}
        first = {name: answers[name][index][0].parts["score"] for name in ("ppo", "sft")}
        rows.append(row | {"ppo_against_sft": preference(first["ppo"], first["sft"], width)})
    write_rows(out / "generations.jsonl", rows)
    headline = {
        "reward_accuracy": accuracy["test"]["accuracy"]["mean"],
        "win_rate": against["sft"]["mean"],
        "win_rate_low": against["sft"]["low"],
        "win_rate_high": against["sft"]["high"],
        "kl": evaluation["kl"]["mean"],
        "perplexity_sft": perplexities["sft"],
        "perplexity_ppo": perplexities["ppo"],
        "seconds_before_evaluation": seconds_so_far(run),
    }
    (out / "headline.json").write_text(json.dumps(headline, indent=2) + "\n")
    return headline


def seconds_so_far(run: RunFolder) -> float:
    """Wall seconds of the finished stages before this one."""
    from stages import manifest
    from stages.runner import STAGES

    found = [manifest.read(run.stage(name)) for name in STAGES[: STAGES.index("evaluate")]]
    return round(sum(item.seconds for item in found if item is not None), 1)


STAGE = Stage(
    "evaluate",
    sections=(
        "model", "evaluate", "labels", "data.pretraining_tokens", "reward.base", "reward.trust_remote_code",
        "reward.max_tokens_per_micro_batch",
    ),
    after=("data", "sft", "reward", "ppo"),
    work=work,
    parallel=True,
    discardable=("scratch",),
)  # fmt: skip

if __name__ == "__main__":
    stage_main(STAGE, "Compares base, SFT and PPO on held-out prompts.")
