"""What the README says of the demo, measured: takes as long as the demo does, and fetches what it needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_shows_what_the_readme_says(tmp_path: Path):
    # The suite's own settings keep tests away from the network and from the user's cache; the demo needs both.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("HF_HUB_OFFLINE", "RLHF_PTX_CACHE", "ACCELERATE_USE_CPU")
    }
    subprocess.run(
        [sys.executable, "-m", "stages.pipeline", "--config", "configs/demo.yaml", "--runs_folder", str(tmp_path)],
        env=environment,
        check=True,
    )
    headline = json.loads((tmp_path / "demo" / "evaluate" / "headline.json").read_text())
    assert headline["reward_accuracy"] > 0.60
    assert headline["reward_above_best_baseline_low"] > 0
    assert headline["win_rate_low"] > 0.50
    assert headline["win_rate_both_end_low"] > 0.50
    assert headline["win_rate_length_controlled_low"] > 0.50
    assert headline["chrf_difference_high"] > 0, "chrF does not fall"
    assert headline["explained_variance"] > 0
    assert headline["kl"] < 10
    assert abs(headline["perplexity_ppo"] / headline["perplexity_sft"] - 1) < 0.05
