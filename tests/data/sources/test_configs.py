"""The configurations for public data: they parse, and every source can play the roles that it is named for."""

from pathlib import Path

import pytest

from data.config import BUILT_IN, ROLES
from data.sources.registry import ADAPTERS
from stages.config import parse_config

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("name", ["hh_rlhf", "oasst", "qa_feedback", "truthfulqa", "ultrafeedback"])
def test_a_public_configuration_parses_and_its_sources_can_play_their_roles(name: str) -> None:
    config, _ = parse_config("test", "", ["--config", str(CONFIGS / f"{name}.yaml")])
    assert config.run_name == name
    assert config.labels.labeler == "none", "human or published rankings are the reward data"
    assert config.data.rankings
    for role in ROLES:
        for source in getattr(config.data, role):
            if source not in BUILT_IN:
                assert role in ADAPTERS[config.data.sources[source].format].convert
    for source in config.data.sources.values():
        adapter = ADAPTERS[source.format]
        assert source.place == adapter.hub if source.revision else adapter.hub is None, (
            "what is read from the Hub is pinned"
        )
    longest = config.data.max_prompt_tokens + max(config.data.max_answer_tokens, config.ppo.max_new_tokens)
    assert longest <= config.reward.max_tokens_per_micro_batch
