"""All adapters by name."""

from data.sources import (
    alpaca,
    dolly,
    hh_rlhf,
    nectar,
    no_robots,
    oasst,
    qa_feedback,
    rows,
    self_instruct,
    sharegpt,
    shp,
    summarize_feedback,
    truthfulqa,
    ultrafeedback,
    ultrafeedback_binarized,
)
from data.sources.adapter import Adapter

MODULES = (
    rows, oasst, qa_feedback, truthfulqa, hh_rlhf, ultrafeedback, ultrafeedback_binarized, nectar, shp,
    summarize_feedback, dolly, alpaca,
    no_robots, self_instruct, sharegpt,
)  # fmt: skip
ADAPTERS: dict[str, Adapter] = {module.ADAPTER.name: module.ADAPTER for module in MODULES}
