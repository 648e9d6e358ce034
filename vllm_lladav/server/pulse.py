# SPDX-License-Identifier: Apache-2.0
"""Whether the engine gets on.

An engine core answers between two steps. A question that it does not answer for long
means that a step hangs, in it or in one of its workers.
"""

import asyncio
from typing import Any

from vllm.logger import init_logger

from vllm_lladav.server.traffic import traffic_of

logger = init_logger(__name__)

INTERVAL_S = 2.0
"""Between an answer and the next question."""


async def feel_pulse(engine: Any, overdue_s: float) -> None:
    """Ask all engine cores over and over; set ``Traffic.is_overdue``.

    Ends when the engine is dead or ends, which vLLM tells by itself.

    Args:
        engine: vLLM's ``AsyncLLM``.
        overdue_s: seconds that a question may stay without an answer.
    """
    traffic = traffic_of(engine)
    while True:
        asked = asyncio.ensure_future(engine.is_paused())
        try:
            done, _ = await asyncio.wait([asked], timeout=overdue_s)
            if not done:
                traffic.is_overdue = True
                logger.error(
                    "The engine has not finished a step for %g s "
                    "(--step-overdue-seconds): /health answers 503 until it does.",
                    overdue_s,
                )
            await asked
        except asyncio.CancelledError:
            asked.cancel()
            raise
        except Exception as error:
            logger.debug("The engine is dead or ends: %s", error)
            return
        if traffic.is_overdue:
            logger.info("The engine gets on again.")
        traffic.is_overdue = False
        await asyncio.sleep(INTERVAL_S)
