"""Results folders for the gate: outputs for made-up sentences, and the records that follow from them."""

import json
import random
from dataclasses import replace

from bench.metrics import MEASURES
from bench.names import SENTENCES, cell_id, escape, slug
from bench.records import Record, write_records
from bench.sides import Sentence

WORDS = ["red", "green", "blue", "small", "large", "house", "tree", "bird", "sings", "falls", "near", "under", "the"]
RUN = {"suite": "small", "split": "test", "family": "transformer", "device": "cpu: test", "dtype": "float32"}


def sentences(count=200, seed=1):
    rng = random.Random(seed)
    made = []
    for i in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(5, 12)))
        made.append(Sentence(f"test-{i}", f"source {i}", (text,)))
    return made


def damaged(test, share, seed=2):
    """Outputs of which a share of the words is wrong."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(WORDS) if rng.random() < share else word for word in sentence.references[0].split())
        for sentence in test
    ]


def write_side(
    folder, cells, test, task="toy", metrics=("bleu",), rates=None, fingerprint="machine", failures=None, suite="small",
    gate=None, arithmetic=None,
):  # fmt: skip
    """Write a results folder.

    cells: outputs by system; rates: tokens per second by system and batch size; failures: (status, reason) by system.
    """
    texts = folder / "hypotheses" / slug(task)
    texts.mkdir(parents=True)
    rows = [{"id": s.id, "source": s.source, "references": s.references} for s in test]
    (texts / SENTENCES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = []
    for system, outputs in cells.items():
        base = Record(
            **RUN, task=task, system=system, settings="beam=1", data="raw", seed=1, metric="", value=None, unit=""
        )
        (texts / f"{cell_id(system, 'raw', 1, 'beam=1')}.txt").write_text("".join(f"{escape(o)}\n" for o in outputs))
        for metric in metrics:
            records.append(replace(base, metric=metric, value=MEASURES[metric](outputs, test).value(), n=len(test)))
        for size, (low, value, high) in (rates or {}).get(system, {}).items():
            records.append(
                replace(base, metric="tokens_per_second", value=value, ci_low=low, ci_high=high, batch_size=size)
            )
    for system, (status, reason) in (failures or {}).items():
        records.append(
            Record(**RUN, task=task, system=system, settings="beam=1", data="raw", seed=1, metric="cell", value=None,
                   unit="", status=status, reason=reason)
        )  # fmt: skip
    write_records(folder / "records.csv", [replace(record, suite=suite) for record in records])
    environment = {"measurements": {task: {"fingerprint": fingerprint}}, "suite": {"gate": gate or {}}}
    if arithmetic:
        environment["machine"] = {"arithmetic": arithmetic}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder
