"""What each figure shows, in words, for those who do not see it."""

from __future__ import annotations

from bench.results import TaskResults, quality_metric

_TEXTS = {
    "quality-speedup": "{quality} against the speed-up over the first AR reference, a point for each system and "
    "setting; a line joins those that no other beats in both.",
    "throughput": "Tokens per second against batch size, a line for each system and setting.",
    "speedup": "Speed-up over the first AR reference against batch size, a line for each system and setting.",
    "latency": "How long a sentence takes at batch 1: the median and the spread of each system and setting.",
    "latency-length": "Latency at batch 1 against the length of the output, a line for each system and setting.",
    "quality-passes": "{quality} against decoder passes and against tokens a pass, a line over the settings of each "
    "iterative system.",
    "multimodality": "Rates of repetition and of mixed modes, raw beside distilled training data, a pair of bars for "
    "each system.",
    "quality-rtf": "{quality} against the real-time factor, a point for each system and setting.",
    "subsets": "{quality} by subset of the test set, a line for each system.",
    "errors": "Where in the reference which kind of error is made, a panel for each system.",
    "positions": "The share of tokens that are right by position in the reference, a line for each model; "
    "left-to-right ones also teacher-forced.",
    "learning": "{quality} of the development set as training goes on, over target tokens and over minutes, a line for "
    "each training.",
    "breakdown": "Which parts the time of decoding consists of, a bar for each system and setting.",
    "roofline": "The share of the device's roofline that decoding reaches, a point for each system, setting and batch "
    "size.",
}

_WITHOUT_TABLE = ("latency-length", "errors", "positions", "learning", "breakdown")


def describe(kind: str, task: TaskResults) -> str:
    """Return what the figure `kind` of `task` shows; the tables hold its numbers."""
    quality = quality_metric(task.headline).title if task.headline else "Quality"
    named = _TEXTS.get(kind, "A figure.").format(quality=quality)
    return f"{task.name}: {named}" + (" The numbers are in the tables." if kind not in _WITHOUT_TABLE else "")
