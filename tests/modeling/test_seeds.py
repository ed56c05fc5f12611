"""Seeds: one stream for each name and number.

pytest tests/modeling/test_seeds.py
"""

from modeling.seeds import derive_seed


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    # Written down once: a stream that changes between versions or machines would change every run.
    assert derive_seed(0, "rollout", 3, 17) == derive_seed(0, "rollout", 3, 17) == 3381936270943995388
    parts = [(seed, name, number) for seed in range(20) for name in ("rollout", "head") for number in range(20)]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)
