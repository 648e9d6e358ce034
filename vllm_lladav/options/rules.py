# SPDX-License-Identifier: Apache-2.0
"""What is valid together: options that exclude, need, or idle each other."""

from collections.abc import Collection, Mapping
from typing import Any

from vllm_lladav.options.kinds import OptionError, refused
from vllm_lladav.options.option import Option
from vllm_lladav.options.options import RequestOptions
from vllm_lladav.pruning.policies import policy_of

STAGES = "prune_stages"
ONE_STAGE = ("prune_rate", "prune_layer")
CONFIDENCE = ("confidence_threshold", "confidence_factor")


def check_plugin(
    options: RequestOptions, known: Mapping[str, Option], plugin: str, needed: str
) -> None:
    """Refuse what needs a plugin that is not on.

    Args:
        options: whose ``given`` are looked at.
        plugin: that is on.
        needed: what is needed instead, with a place for the plugin's name.

    Raises:
        OptionError: naming the option and the plugin.
    """
    for name in sorted(options.given):
        wanted = known[name].plugin
        # Who asks for no pruning gets none.
        is_off = name == "prune_rate" and options.prune_rate == 0
        if wanted not in (None, plugin) and not is_off:
            value = getattr(options, name)
            raise OptionError(
                name, f"{name} needs {needed.format(wanted)}; got {value!r}"
            )


def check_together(options: RequestOptions) -> None:
    """Refuse what excludes each other.

    Raises:
        OptionError: naming the option that must be left out.
    """
    given = options.given
    if STAGES in given and not given.isdisjoint(ONE_STAGE):
        raise refused(STAGES, f"set without {' and '.join(ONE_STAGE)}", "both")
    if options.remasking == "random":
        for name in CONFIDENCE:
            if name in given and getattr(options, name):
                raise refused(name, "left out with random remasking", "a value")


def unset_by(given: Collection[str]) -> dict[str, Any]:
    """What a request unsets of the server's options by setting others."""
    return {} if set(ONE_STAGE).isdisjoint(given) else {STAGES: None}


def matters(name: str, options: RequestOptions) -> bool:
    """Whether the value of an option changes anything, the others being as they are.

    Without a plugin as with it: what a server lacks is not asked.
    """
    if name in CONFIDENCE:
        return options.remasking != "random"
    if name == "refresh_interval":
        return options.cache != "none"
    if not name.startswith("prune_"):
        return True
    if options.prune_stages is None:
        if name == STAGES:
            return False
        if not options.prune_rate:
            return name == "prune_rate"
    elif name in ONE_STAGE:
        return False
    policy = policy_of(options.prune_policy)
    if name == "prune_queries":
        return policy.uses_queries
    return name != "prune_tau" or policy.is_adaptive
