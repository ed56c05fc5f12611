"""Seeds derived from names and numbers, so that one stream of random numbers never depends on how many others there
are.
"""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts: `derive_seed(seed, "rollout", iteration, episode)`."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
