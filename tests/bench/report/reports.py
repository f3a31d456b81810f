"""A results folder with hostile texts, for reports of it."""

import json
from dataclasses import replace
from pathlib import Path

from bench.names import SENTENCES, cell_id, escape
from bench.records import write_records
from tests.bench import synthetic

HOSTILE = [
    '<script>document.title = "owned"</script>',
    "\"'><img src=x onerror=\"document.title='owned'\">",
    "\u202eright to left\u2066 &amp; {{ 7 * 7 }} {% raw %}",
    "x" * 10_000,
]
PLAIN = [f"the {word} house" for word in ("red", "small", "old", "near")]


def write_results(folder: Path, examples: bool = True) -> Path:
    """Write a results folder in which one system says hostile things, and the other what it should."""
    folder.mkdir(exist_ok=True)
    records = synthetic.records(seeds=(1,))
    hostile = "<b>bold & co"
    records += [replace(r, system=hostile, settings="a=<i>") for r in records if r.system == "ctc" and r.data == "raw"]
    write_records(folder / "records.csv", records)
    environment = {
        "command": ["python", "-m", "bench", "run", "suites/quick.yaml", "--jobs", "2", "--set", "a=b c", "--out", "x"],
        "git": {"commit": "0123abc", "dirty": True}, "version": "0.1.0", "run": "abc",
        "machine": {"cpu": "<cpu>", "cores": 2, "memory_gib": 4.5, "libraries": {"torch": "2.13", "babel": None}},
        "suite": {
            "references": [{"system": "transformer", "settings": {"beam": 1}}],
            "tasks": [{"name": "dates", "config": {"first_year": 1990}}],
            "systems": [
                {"name": "ctc", "config": {"upsampling": 2, "norm": "pre", "convolution": None},
                 "teacher": "transformer", "train": {"budget": {"minutes": 45}, "seeds": [1]},
                 "settings": [{"label": "search=greedy", "values": {"search": "greedy"}}]},
            ],
        },
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    texts = folder / "hypotheses" / "dates"
    texts.mkdir(parents=True, exist_ok=True)
    if examples:
        rows = [{"id": f"test-{i}", "source": text, "references": [text]} for i, text in enumerate(PLAIN)]
        rows[0]["source"] = HOSTILE[0]
        (texts / SENTENCES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for system, data, settings, outputs in (
        ("transformer", "raw", "beam=5", PLAIN),
        ("ctc", "raw", "search=greedy", HOSTILE),
        (hostile, "raw", "a=<i>", ["", "the", *PLAIN[2:]]),
    ):
        (texts / f"{cell_id(system, data, 1, settings)}.txt").write_text("".join(f"{escape(o)}\n" for o in outputs))
    return folder
