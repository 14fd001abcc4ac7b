"""Count the words of a text: the smallest useful function."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from spear_sdk import Context, function


@function
def word_statistics(text: str, context: Context) -> dict[str, Any]:
    """Length, vocabulary and the commonest long words of ``text``."""
    words = re.findall(r"[a-z']+", text.lower())
    counted = Counter(words)
    context.log.info("%d words, %d different", len(words), len(counted))
    return {
        "words": len(words),
        "different_words": len(counted),
        "sentences": len(re.findall(r"[.!?](?:\s|$)", text)),
        "longest": max(counted, key=len, default=""),
        "common": dict(Counter(w for w in words if len(w) > 5).most_common(5)),
    }
