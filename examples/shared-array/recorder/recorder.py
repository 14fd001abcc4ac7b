"""Records a vibration and shares the samples: 64 MiB of them, written once."""

import array
import math

from spear_sdk import Context, function

RATE = 65_536
"""Samples a second."""
SECONDS = 128


@function
def record(ctx: Context, knock_at: int = 90) -> dict[str, object]:
    """A hum of 50 Hz, and a knock in the second that is given; answers where it lies."""
    hum = array.array("d", (math.sin(math.tau * 50 * n / RATE) for n in range(RATE)))
    samples = hum * SECONDS
    for n in range(RATE // 10):
        samples[knock_at * RATE + n] += 5 * math.exp(-n / 500)
    stat = ctx.objects.put("takes/latest", samples, content_type="application/x-float64")
    ctx.log.info("%d samples, version %d", len(samples), stat.version)
    return {"key": f"/{ctx.artifact.partition('@')[0]}/takes/latest", "bytes": stat.size}
