"""Damage to bytes and to text, drawn at random."""

import numpy as np

#: Values where a number of a JSON or CSV file belongs.
HOSTILE = [
    *("1e999", "-1e999", "1e300", "1e39", "1e-400", "NaN", "-Infinity", "nan", "inf"),
    *("1" + "0" * 400, "1" * 5000, "2147483648", "-2147483649", "9" * 20, "-0", "0x10"),
    *("null", "true", "None", "''", '""', '"cat"', '"1"', '"\\ud800"', '"\\u0000"'),
    *("[]", "{}", "[[1, 2]]", "[1, [2]]", '{"x": 1}', "[" * 5000, "[" * 70 + "]" * 70),
    *("[" * 900 + "]" * 900, '{"a":' * 5000, "1 2", "1,2", "", " ", "+1", ".5", "1."),
    *("\x00", "\udcff", "\ufeff", "\u2028", "1_000", "٣", "1j", "2020-01-01", "#", "?"),
]


def flip_bits(rng: np.random.Generator, raw: bytes, within: int | None = None) -> bytes:
    """One to four flipped bits, in the first ``within`` bytes if given."""
    data = np.frombuffer(raw, np.uint8).copy()
    end = min(within or len(data), len(data))
    for _ in range(rng.integers(1, 5) if end else 0):
        data[rng.integers(end)] ^= 1 << rng.integers(8)
    return data.tobytes()


def cut(rng: np.random.Generator, raw: bytes) -> bytes:
    """Only the beginning, or only the end."""
    at = int(rng.integers(len(raw) + 1))
    return raw[:at] if rng.integers(2) else raw[at:]


def insert(rng: np.random.Generator, raw: bytes) -> bytes:
    """Some random bytes, or a copy of a part, somewhere."""
    at, start = rng.integers(len(raw) + 1, size=2)
    part = raw[start : start + rng.integers(1, 64)]
    more = part if rng.integers(2) else rng.bytes(int(rng.integers(1, 16)))
    return raw[:at] + more + raw[at:]


def overwrite(rng: np.random.Generator, raw: bytes, within: int | None = None) -> bytes:
    """Four bytes replaced by an extreme integer, in either byte order."""
    end = max(min(within or len(raw), len(raw)) - 4, 1)
    value = int(rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**30, 255, 65536]))
    order = "big" if rng.integers(2) else "little"
    at = int(rng.integers(end))
    return raw[:at] + value.to_bytes(4, order) + raw[at + 4 :]


def damage(rng: np.random.Generator, raw: bytes, header: int | None = None) -> bytes:
    """One kind of damage to bytes; half of them in the ``header`` if it is given."""
    within = header if rng.integers(2) else None
    kind = rng.integers(5)
    if kind == 0:
        return cut(rng, raw)
    if kind == 1:
        return insert(rng, raw)
    if kind == 2:
        return overwrite(rng, raw, within)
    return flip_bits(rng, raw, within)


def hostile(rng: np.random.Generator) -> str:
    """One hostile value."""
    return HOSTILE[rng.integers(len(HOSTILE))]


def encode(text: str) -> bytes:
    """UTF-8, and single bytes that are none where the text holds surrogates."""
    return text.encode(errors="surrogateescape")
