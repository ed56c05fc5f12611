"""Checks before training that the models support every stage of the pipeline, by running them on a few tokens."""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling.config import ModelConfig
from stages.config import RunConfig
from stages.inputs import answering, refuse_too_long
from stages.readers import check_readers

if TYPE_CHECKING:
    from reward.start import Start


def check_models(config: RunConfig, model: Any = None, whole_chain: bool = False) -> None:
    """Checks what the base model supports.

    Args:
        model: the base model; loaded if None.
        whole_chain: also check the initialization of PPO's value model; runs that only train a reward model need not
            configure it.

    Raises ValueError if a stage cannot use `model.base` or `reward.base`, before weights are loaded if the
    configurations show it.
    """
    from modeling.adapters import lora_config, refuse_untrained_end
    from modeling.architecture import refuse_by_config, refuse_headless, refuse_lookahead
    from modeling.generation import generator_for
    from modeling.load import base_model_place, load_causal, load_scalar, load_tokenizer, read_settings
    from modeling.logprobs import refuse_unknown_logits
    from modeling.models import refuse_recomputing

    place, name = base_model_place(config.model), f"model.base={config.model.base}"
    settings = read_settings(place, config.model)
    refuse_by_config(settings, name)
    tokenizer = load_tokenizer(place, config.model)
    start = check_reward_base(config, config.model, Path(place))
    if whole_chain:
        check_value_start(config, start, tokenizer)
    model = load_causal(place, config.model, tokenizer) if model is None else model
    refuse_lookahead(model, name)
    refuse_headless(settings, name, config.model.trust_remote_code)
    refuse_unknown_logits(model, name)
    if config.model.adapter == "lora":
        refuse_untrained_end(model, tokenizer, name)
        lora_config(model, config.model.lora)  # raises if the model has fewer layers than top_layers
    generator = generator_for(model)
    if config.ppo.engine == "native":  # PPOConfig.validate checks the others
        config.ppo.refuse_unrecorded(generator.records_logprobs)
    sft, reward, ppo = (part.activation_checkpointing for part in (config.sft, config.reward, config.ppo))
    if sft or ppo or (reward and not start.own_base):
        refuse_recomputing(model)
    reward_model = None
    if start.own_base:
        reward_model = load_scalar(start.place, start.model_config, start.tokenizer())
        refuse_lookahead(reward_model, f"reward.base={config.reward.base}")
        if reward or ppo:
            refuse_recomputing(reward_model)
    try_steps(model, reward_model, start, config)


def check_before_training(config: RunConfig, data: Path, model: Any, tokenizer: Any) -> None:
    """`check_models` for a loaded base model, and checks of the finished data sets in `data` for later stages."""
    from demo.assets import SENTENCE_ENCODER
    from modeling.load import base_model_place
    from stages.inputs import refuse_long_texts
    from stages.labels import earlier_rankings
    from stages.runner import RunFolder

    refuse_long_texts(config, model.config)
    if config.labels.closeness == "encoder":
        SENTENCE_ENCODER.path()  # the judge; a download that fails must not fail after training
    if config.labels.labeler == "none":
        refuse_undecided(config, data)
    earlier_rankings(config, RunFolder(data.parent))
    check_models(config, model)
    check_sampled_policy(config, data)
    check_window(config, model, check_rooms(config, data, Path(base_model_place(config.model)), tokenizer))
    check_readers(config, data, tokenizer)


def check_sampled_policy(config: RunConfig, data: Path) -> None:
    """Raises ValueError if `samples.policy` cannot generate the answers to rank, or if a prompt and an answer together
    exceed its context.
    """
    from data.records import SPLITS
    from data.tokenize import count_prompt_tokens
    from modeling.foreign import refuse_unusable
    from modeling.load import load_tokenizer, read_settings
    from stages.samples import prompts_to_sample

    place, model_config = config.samples.policy, config.model.of_export()
    if place is None or config.labels.labeler == "none":
        return
    setting = f"samples.policy={place}"
    try:
        refuse_unusable(place, model_config, setting)
        prompts = [prompt for split in SPLITS for prompt in prompts_to_sample(config, data, split)[0]]
        longest = max(count_prompt_tokens(load_tokenizer(place, model_config), prompts), default=0)
        refuse_too_long(config, {"samples": longest}, read_settings(place, model_config))
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(setting) else f"{setting}: {said}") from None


def check_window(config: RunConfig, model: Any, longest: Mapping[str, int]) -> None:
    """Raises ValueError if the texts of a stage exceed the model's attention window and its generator cannot decode
    them, or does not record log-probabilities that PPO needs.

    `longest` has the number of tokens of the longest prompt and answer by section.
    """
    from modeling.generation import beyond_window, generator_for

    tokens = max(count for name, count in longest.items() if name != "ppo" or config.ppo.engine != "vllm")
    if beyond_window(model, tokens) is None:
        return
    generator_for(model, tokens=tokens)
    if config.ppo.engine == "native":
        config.ppo.refuse_unrecorded(beyond_window(model, longest["ppo"]) is None)


def refuse_undecided(config: RunConfig, data: Path) -> None:
    """Raises ValueError when a split has no ranking with a strict pair, so that a reward model could not be trained or
    measured.
    """
    from data.answers import has_strict_pair
    from data.records import SPLITS
    from data.sets import read_set, set_file

    for split in SPLITS if config.reward.epochs > 0 else SPLITS[1:]:
        found = read_set(data, "rankings", split) if set_file(data, "rankings", split).is_file() else []
        if not any(map(has_strict_pair, found)):
            use = "trained" if split == "train" else "measured"
            raise ValueError(
                f"labels.labeler is none, and none of the {len(found)} {split} rankings in {data} puts one answer "
                f"above a different one, so the reward model could not be {use}: add rankings of more users to "
                "data.rankings, or try another data.split_salt"
            )


def try_steps(model: Any, reward_model: Any, start: "Start", config: RunConfig) -> None:
    """Tries a training step of SFT, the reward model and PPO on small copies of the configured models.

    `reward_model` is None if it starts from the SFT model. Raises ValueError when a step fails.
    """
    from transformers import AutoModelForSequenceClassification

    from modeling.trial import Trial

    def with_head(settings: Any) -> Any:
        trusted = config.model.trust_remote_code
        return AutoModelForSequenceClassification.from_config(settings, trust_remote_code=trusted)

    lora = config.model.adapter == "lora"
    trial = Trial(f"model.base={config.model.base}", config.model.lora if lora else None)
    trial.causal(model)
    if reward_model is None or config.ppo.value_init == "sft":
        trial.scalar(with_head, model.config)
    if reward_model is not None and (config.reward.epochs > 0 or config.ppo.value_init == "reward"):
        own = Trial(f"reward.base={config.reward.base}", start.model_config.lora if lora else None)
        own.scalar(type(reward_model), reward_model.config)


def check_rooms(config: RunConfig, data: Path, place: Path, tokenizer: Any) -> dict[str, int]:
    """Number of tokens of the longest prompt with its answer by section. Raises ValueError if one does not fit the
    context.

    The context is that of the policy, whose base is in `place`, and in PPO also that of a reward model from which the
    value model starts.
    """
    from data.records import SPLITS
    from data.sets import read_set
    from data.tokenize import count_prompt_tokens
    from modeling.load import read_settings
    from ppo.evaluation import held_out_prompts
    from reward.start import Start

    start = Start.of(config.reward, config.model, place)
    used: dict[str, list[Any]] = {}
    if "samples" in answering(config):
        used["samples"] = [prompt for split in SPLITS for prompt in read_set(data, "rm", split)]
    used["ppo"] = [*read_set(data, "rl", "train"), *held_out_prompts(data, config.ppo.held_out)]
    used["evaluate"] = read_set(data, "sft", "test")
    longest = {name: max(count_prompt_tokens(tokenizer, prompts), default=0) for name, prompts in used.items()}
    refuse_too_long(config, longest, read_settings(place, config.model))
    if config.ppo.value_init == "reward" and longest["ppo"] + config.ppo.max_new_tokens > start.context:
        raise ValueError(
            f"the longest prompt has {longest['ppo']} tokens, which together with "
            f"ppo.max_new_tokens={config.ppo.max_new_tokens} is more than the context of {start.context} of "
            "reward.base, from which the value model starts: lower ppo.max_new_tokens or data.max_prompt_tokens, or "
            "set ppo.value_init=sft"
        )
    return {name: tokens + operator.attrgetter(name)(config).max_new_tokens for name, tokens in longest.items()}


def check_reward_base(config: RunConfig, model_config: ModelConfig, sft: Path) -> "Start":
    """The reward model's initialization; `sft` holds the SFT model or, before there is one, the base model.

    Raises ValueError when the configuration of `reward.base` shows that it cannot become a reward model.
    """
    from modeling.architecture import refuse_by_config, refuse_headless
    from modeling.load import read_settings
    from reward.start import Start

    start = Start.of(config.reward, model_config, sft)
    if start.own_base:
        settings, name = read_settings(start.place, start.model_config), f"reward.base={config.reward.base}"
        refuse_by_config(settings, name)
        refuse_headless(settings, name, start.model_config.trust_remote_code)
    return start


def check_value_start(config: RunConfig, start: "Start", tokenizer: Any) -> None:
    """Raises ValueError when PPO's value model cannot start from the reward model as the configuration says, or a
    further term of the reward cannot be used.

    `tokenizer` is the policy's.
    """
    import torch

    from modeling.embeddings import embedding_count
    from modeling.load import base_model_place, read_settings
    from ppo.actor_critic import refuse_fewer_rows, refuse_value_layers, refuse_value_start
    from ppo.reward_list import prepare

    settings = read_settings(start.place, start.model_config)
    if start.own_base:
        refuse_value_start(config.ppo, tokenizer, reward_tokenizer := start.tokenizer())
        policy_settings = read_settings(base_model_place(config.model), config.model)
        rows = embedding_count(policy_settings, tokenizer), embedding_count(settings, reward_tokenizer)
        refuse_fewer_rows(config.ppo, *rows)
    refuse_value_layers(config.ppo, config.model.adapter == "lora" and start.own_base, settings)
    for term in config.ppo.rewards:
        if not term.is_own_model:
            prepare(term, config.model, tokenizer, torch.device("cpu"))
