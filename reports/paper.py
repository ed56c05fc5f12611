"""The paper's numbers, shown beside the run's (Ouyang et al. 2022). Its PPO set is our `rl`; it reports no test
splits.
"""

USE_CASE_SHARES = {
    "generation": 0.456, "open_qa": 0.124, "brainstorming": 0.112, "chat": 0.084, "rewrite": 0.066,
    "summarization": 0.042,
    "classification": 0.035, "other": 0.035, "closed_qa": 0.026, "extract": 0.019,
}  # fmt: skip
"""Table 1: prompts of its API customers by use case."""

SIZES = {
    ("sft", "train"): (11_295, 1_430), ("sft", "valid"): (1_550, 103), ("rm", "train"): (6_623, 26_584),
    ("rm", "valid"): (3_488, 14_399),
    ("rl", "train"): (None, 31_144), ("rl", "valid"): (None, 16_185),
}  # fmt: skip
"""Table 6: prompts by (labelers, customers)."""

PROMPTS_PER_CUSTOMER = {
    ("sft", "train"): 1.65, ("sft", "valid"): 1.87, ("rm", "train"): 5.35, ("rm", "valid"): 27.96,
    ("rl", "train"): 6.01, ("rl", "valid"): 31.55,
}  # fmt: skip
"""Table 7. Its test set had 1.81."""

SET_TITLES = {"sft": "SFT", "rm": "RM", "rl": "RL", "rankings": "Rankings"}
"""Titles of the sets, as the paper has them."""
