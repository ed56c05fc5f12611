"""A run with the results of all its stages, made up for tests of the reports."""

import json
import math
import random
from pathlib import Path

INPUTS = {
    "data": {"seeds/home.jsonl": "a" * 64},
    "sft": {"data": "b" * 64},
    "samples": {"data": "b" * 64, "sft": "c" * 64},
}
HOSTILE = "<script>alert('no')</script> | ```` and \n# a heading"


def around(mean: float, width: float = 0.05, n: int = 120) -> dict[str, float]:
    return {"mean": mean, "low": mean - width, "high": mean + width, "n": n}


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = value if path.suffix == ".jsonl" else [value]
    assert isinstance(rows, list)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fake_best_of_n() -> dict[str, object]:
    """Of a reward model that is pleased more and more while chrF turns down."""
    rows = []
    for n in (1, 2, 4, 8, 16):
        root = math.sqrt(math.log(n) - (n - 1) / n)
        means = {
            "proxy": 1.3 * root - 0.1,
            "score": 0.55 + 0.2 * root - 0.05 * root**2,
            "chrf": 0.19 + 0.02 * root - 0.012 * root**2,
        }
        rows.append(
            {"n": n, "kl": root**2, "win_rate": around(0.5 + 0.15 * root)}
            | {key: around(mean, 0.06 * mean) for key, mean in means.items()}
        )
    ppo = {
        "kl": around(8.765, 0.6),
        "proxy": around(1.612, 0.1),
        "score": around(0.82, 0.04),
        "chrf": around(0.181, 0.01),
    }
    against = {"n": 16, "kl": rows[-1]["kl"], "win_rate": around(0.5321, 0.06, 40)}
    return {
        "prompts": 40,
        "samples": 16,
        "rows": rows,
        "ppo": ppo | {"win_rate": around(0.6412)},
        "ppo_against": against,
    }


def fake_run(run: Path, ptx: bool = True, iterations: int = 20, prompts: int = 40) -> Path:
    """Every file that the report reads, with numbers of a plausible run."""
    noise = random.Random(0)
    config = {
        "run_name": "fake",
        "data": {"rankings": []},
        "labels": {
            "labeler": "simulated",
            "disagreement": 0.1,
            "weights": {"closeness": 1.0, "complete": 0.3, "repetition": 0.3, "copying": 0.5, "profanity": 0.5},
        },
        "ppo": {"kl_coef": 0.02, "ptx_coef": 27.8 if ptx else 0.0},
        "evaluate": {"answers_per_prompt": 1, "temperature": 1.0, "weights": "ema"},
    }
    for index, stage in enumerate(("data", "sft", "samples", "labels", "reward", "ppo", "evaluate")):
        headline = {
            "samples": {"prompts": 900, "complete": 0.81},
            "labels": {"rankings": 900, "all_tied": 14, "tied_pairs": 0.19},
        }.get(stage, {})
        put(
            run / stage / "manifest.json",
            {
                "stage": stage, "fingerprint": f"{index}{'f' * 63}", "inputs": INPUTS.get(stage, {}),
                "peak_memory_gib": 1.5, "seconds": 100.0 + index, "device": "cuda:0", "world_size": 1,
                "python": "3.11.9",
                "headline": headline,
                "git_commit": "0123456789abcdef0123456789abcdef01234567+dirty",
                "packages": {"torch": "2.9.1", "trl": "1.16.0"}, "config": config,
            },
        )  # fmt: skip
    sizes = {
        "sft_train": 1234,
        "sft_valid": 130,
        "sft_test": prompts,
        "rl_train": 987,
        "texts_train": 450,
        "texts_heldout": 50,
    }
    put(
        run / "data" / "counts.json",
        {"rows": sizes, "removed": {"prompts": {"near_duplicate": 31, "over_cap": 7}, "rankings": {"repeated": 5}}}
        | {"skipped": 23, "skipped_rows": ["a.jsonl:3: not JSON"]},
    )
    sft: list[dict[str, float]] = [
        {"step": step, "loss": 1.9 + math.exp(-step / 15) + noise.gauss(0, 0.05), "token_accuracy": 0.55 + 0.001 * step}
        for step in range(1, 81)
    ]
    put(run / "sft" / "metrics.jsonl", sft + [{"step": 40, "valid_loss": 2.05}, {"step": 80, "valid_loss": 2.0}])
    reward = [
        {
            "step": k,
            "loss": 0.5 + 0.25 * math.exp(-k / 9) + noise.gauss(0, 0.03),
            "accuracy": min(1, 0.55 + k / 150 + noise.gauss(0, 0.05)),
        }
        for k in range(1, 31)
    ]
    put(run / "reward" / "metrics.jsonl", reward)
    judges = {"longest": 0.5432, "shortest": 0.4568, "random": 0.5011, "sft_likelihood": 0.6021}
    test = {
        "accuracy": around(0.7123, 0.02, 700),
        "best_vs_worst": around(0.8457),
        "score_std": 1.234,
        "prompts": 120,
        "pairs": 700,
    }
    test |= {"best_baseline": "sft_likelihood", "users": 30}
    test["baselines"] = {
        name: {
            "accuracy": around(mean, 0.03, 700),
            "best_vs_worst": None,
            "difference": around(0.7123 - mean, 0.0404, 700),
        }
        for name, mean in judges.items()
    }
    test["calibration"] = {"bins": [], "expected_calibration_error": 0.0345, "loss": 0.5678, "temperature": 1.2}
    left_out = {
        "train": {"all_tied": 11, "too_long": 2},
        "valid": {"all_tied": 1, "too_long": 0},
        "test": {"all_tied": 2, "too_long": 0},
    }
    put(run / "reward" / "accuracy.json", {"bias": 0.31, "left_out": left_out, "valid": test, "test": test})
    ppo, timings = [], []
    for k in range(1, iterations + 1):
        kl = 9 * (1 - math.exp(-k / 8)) + noise.gauss(0, 0.3)
        row = {
            "step": k,
            "episodes": 512.0 * k,
            "score": 0.45 * math.sqrt(max(kl, 0)) - 0.2 + noise.gauss(0, 0.04),
            "kl": kl,
            "kl_k3": kl + 0.4,
        }
        row |= {
            "entropy": 1.9 - 0.02 * k,
            "ended": 0.78 + 0.006 * k,
            "length": 92 + k,
            "clip_fraction": 0.03 + 0.001 * k,
            "ratio_max": 2.5 + 0.05 * k,
        }
        row |= {"value_loss": 0.05 + 0.3 * math.exp(-k / 4), "explained_variance": math.nan if k == 1 else 0.7 - 1 / k}
        row |= {"ptx_loss": 2.9 - 0.004 * k, "ptx_to_ppo_grad_ratio": 4 + noise.random()} if ptx else {}
        timings.append(
            {
                "step": k,
                "seconds_rollout": 21.0 + noise.random(),
                "seconds_score": 6.0,
                "seconds_update": 33.0 + noise.random(),
            }
        )
        ppo.append(row)
    put(run / "ppo" / "metrics.jsonl", ppo)
    put(run / "ppo" / "timings.jsonl", timings)

    means = {
        "closeness": (0.412, 0.533, 0.561),
        "complete": (0.6, 0.81, 0.92),
        "repetition": (0.12, 0.041, 0.033),
        "copying": (0.05, 0.04, 0.03),
        "profanity": (0.02, 0.021, 0.019),
    }
    means |= {"score": (0.55, 0.76, 0.82), "chrf": (0.19, 0.255, 0.262), "tokens": (120.0, 93.0, 104.0)}
    table = {
        model: {key: around(row[index], 0.03 * max(row[index], 0.1)) for key, row in means.items()}
        for index, model in enumerate(("base", "sft", "ppo"))
    }
    evaluation = {
        "prompts": prompts, "users": 30, "weights": "ema", "answers_per_prompt": 1, "best_of_n": fake_best_of_n(),
        "win_rate": {"sft": around(0.6346), "base": around(0.8766, 0.03)}, "models": table,
        "win_rate_length_controlled": around(0.57, 0.06),
        "win_rate_length_matched": around(0.5987, 0.08, 71), "win_rate_both_end": around(0.4953, 0.062, 88),
        "win_rate_without": {
            "closeness": around(0.5911), "complete": around(0.5264, 0.055),
            "repetition": around(0.6322), "copying": around(0.6301), "profanity": around(0.6233),
        },
        "win_rate_by_part": {
            "closeness": around(0.5111), "complete": around(0.5822),
            "repetition": around(0.5033), "copying": around(0.4981), "profanity": around(0.4944),
        },
        "perplexity": {"base": 17.01, "sft": 18.12, "ppo": 19.03},
        "chrf_difference": around(0.0071, 0.01), "complete_difference": around(0.1133, 0.02),
        "kl": around(8.765, 0.6), "reward_model": test,
        "judges": [{"name": "rubric", "taught": True}, {"name": "llm", "taught": False}],
        "comparisons": {
            model: {
                "rubric": {"win_rate": around(0.6111), "length_controlled": around(0.5777)},
                "llm": {"win_rate": around(0.5432), "length_controlled": None},
            }
            for model in ("ppo", "echo", "owner/name")
        },
        "judge_agreement": {
            "between": [{"judges": ["rubric", "llm"], "pairs": 321, "same": 0.7123, "kappa": 0.4321, "alpha": None}]
        },
        "llm_judge": {"pairs": 654, "pairs_without_verdict": 3, "position_bias": {"share": around(0.25)}},
        "metadata": {
            "ppo": {
                "all": {"quality": around(5.43), "hallucination": around(0.08), "opinion": None},
                "use_cases": {"chat": {"quality": around(6.21)}},
                "minus_sft": {"quality": around(0.31), "hallucination": around(-0.02), "opinion": None},
            }
        },
    }  # fmt: skip
    put(run / "evaluate" / "evaluation.json", evaluation)
    put(run / "evaluate" / "headline.json", {"win_rate": 0.6346})
    rows = []
    for index in range(prompts):
        row = {
            "prompt_id": f"p{index:03d}",
            "user_id": f"user {index // 2}",
            "use_case": "open_qa",
            "prompt": f"Question {index}: why is the sky blue?",
            "kl": 8.7,
        }
        for column, model in enumerate(("base", "sft", "ppo")):
            parts = {key: value[column] + noise.gauss(0, 0.02) for key, value in means.items() if key != "tokens"}
            text = (
                f"{HOSTILE}\0\x1b[2J"
                if index == 0
                else f"Answer of {model} to {index}. " + "Light scatters off the molecules of the air. " * (2 + column)
            )
            row[model] = [{"text": text, "complete": model != "base", "tokens": 90 + index, "parts": parts}]
        rows.append(
            row
            | {"reference": "Because shorter waves scatter more.", "ppo_against_sft": (1.0, 0.5, 0.0, 1.0)[index % 4]}
        )
    put(run / "evaluate" / "generations.jsonl", rows)
    return run
