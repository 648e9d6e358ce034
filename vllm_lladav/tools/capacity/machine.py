# SPDX-License-Identifier: Apache-2.0
"""The figures of a machine that capacity is computed from, and those of some GPUs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from vllm_lladav.options.kinds import Number

UNITS: Mapping[str, float] = {
    "memory": 1e9,
    "peak": 1e12,
    "bandwidth": 1e9,
    "share": 1,
    "bandwidth_share": 1,
    "overhead": 1e-3,
    "request_overhead": 1e-3,
    "link": 1e9,
}
"""Units that users give a :class:`Machine`'s figures in, as factors to its own: GB
(10^9 bytes), TFLOP/s, GB/s, ms."""

SHARE = Number("above 0 and at most 1", lambda value: 0 < value <= 1)
_SECONDS = Number("at least 0", lambda value: value >= 0)
_KINDS = {
    **dict.fromkeys(UNITS, Number("above 0", lambda value: value > 0)),
    **dict.fromkeys(("share", "bandwidth_share"), SHARE),
    **dict.fromkeys(("overhead", "request_overhead"), _SECONDS),
}


@dataclass(frozen=True)
class Machine:
    """One accelerator, or a computer without any: what one rank runs on.

    Attributes:
        memory: bytes.
        peak: floating-point operations per second, dense, in the model's dtype.
        bandwidth: bytes per second between memory and processor.
        share: fraction of ``peak`` that large matrix products reach, 0 to 1.
        bandwidth_share: fraction of ``bandwidth`` (and of ``link``) that is reached,
            0 to 1.
        overhead: seconds that a step takes beside the model's arithmetic.
        request_overhead: seconds that every request adds to a step's overhead.
        link: bytes per second to the other ranks, in one direction; None for a
            machine with one rank.

    Raises:
        ValueError: naming the figure that is out of range.
    """

    memory: float
    peak: float
    bandwidth: float
    share: float = 0.6
    bandwidth_share: float = 0.8
    overhead: float = 5e-3
    request_overhead: float = 0.3e-3
    link: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None:
                _KINDS[name].check(f"machine: {name}", value / UNITS[name])


GPUS: Mapping[str, Machine] = {
    "h100": Machine(80e9, 989.4e12, 3350e9, link=450e9),
    "h200": Machine(141e9, 989.4e12, 4800e9, link=450e9),
    "a100-80g": Machine(80e9, 312e12, 2039e9, link=300e9),
    "l40s": Machine(48e9, 362.05e12, 864e9, link=32e9),
    "4090": Machine(24e9, 165.2e12, 1008e9, link=32e9),
}
"""NVIDIA's data sheets (SXM where there is one): dense bfloat16 with float32
accumulation; links are NVLink, or PCIe 4.0 x16 for the last two, in one direction."""


def parse_machine(text: str, base: Machine | None = None) -> Machine:
    """Read ``name=value,...`` in the units of :data:`UNITS`.

    Args:
        base: machine whose figures are taken where ``text`` gives none.

    Raises:
        ValueError: naming the figure that is wrong or missing.
    """
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, is_pair, value = part.partition("=")
        name = name.strip()
        if not is_pair or name not in UNITS:
            raise ValueError(
                f"machine: {part.strip()!r} is not name=value; names are "
                f"{', '.join(UNITS)}"
            )
        try:
            given[name] = float(value) * UNITS[name]
        except ValueError:
            raise ValueError(f"machine: {name} must be a number: {value!r}") from None
    if base is not None:
        return replace(base, **given)
    if missing := [n for n in ("memory", "peak", "bandwidth") if n not in given]:
        raise ValueError(f"machine: {', '.join(missing)} must be given")
    return Machine(**given)


def describe(machine: Machine) -> str:
    """``name=value,...`` for ``--machine``, which :func:`parse_machine` reads back."""
    return ",".join(
        f"{name}={value / UNITS[name]:.6g}"
        for name, value in asdict(machine).items()
        if value is not None
    )
