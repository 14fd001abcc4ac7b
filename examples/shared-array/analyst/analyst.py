"""Looks for a knock in a recording that it maps: not one sample is copied."""

from spear_sdk import Context, function

RATE = 65_536


@function
def find_knock(key: str, ctx: Context) -> dict[str, object]:
    """The second of the recording under this key that has the loudest sample."""
    recording = ctx.objects.get(key)
    samples = memoryview(recording).cast("d")  # or numpy.frombuffer(recording, "float64")
    seconds = (samples[at : at + RATE] for at in range(0, len(samples), RATE))
    peaks = [max(second) for second in seconds]
    ctx.log.info("version %d has %d samples", recording.version, len(samples))
    loudest = max(peaks)
    return {"second": peaks.index(loudest), "peak": round(loudest, 3)}
