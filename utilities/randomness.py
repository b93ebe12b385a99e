"""Everything random is a function of (seed, epoch, step) and of nothing else: not of what was drawn before it."""

import hashlib


def derive(*numbers):
    """A seed, 0 to 2^63 - 1, from whole numbers and words; other arguments give an unrelated one."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
