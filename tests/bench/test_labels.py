"""Labels of training pairs: alignments under a CTC model, and fertilities from a word aligner."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bench import labels
from bench.batching import collate, pad
from bench.preparation import PreparedData
from bench.training import training_pairs
from models.alignment import collapse
from models.ctc import CTC, Config
from models.interface import BLANK
from models.weights import weights_of
from tests.bench import tiny

CONFIG = {**tiny.CONFIG, "upsampling": 1, "dropout": 0.0}
SPEC = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    root = tmp_path_factory.mktemp("labels")
    data = tiny.prepare(root / "data")
    torch.manual_seed(4)
    (root / "ctc").mkdir()
    save_file(weights_of(CTC(Config(**CONFIG), PreparedData(data).data_spec)), root / "ctc" / "model.safetensors")
    return {"data": data, "companion_ctc": root / "ctc"}


def label(folder, parents, **spec):
    folder.mkdir()
    labels.run(SPEC | spec, folder, parents, tiny.silent)
    return training_pairs(PreparedData(parents["data"]), parents.get("targets"), folder)


def test_alignments_collapse_to_their_targets_and_are_empty_where_the_target_does_not_fit(parents, tmp_path):
    spec = {"labels": "ctc_alignment", "companions": {"ctc": {"family": "ctc", "config": CONFIG}}}
    pairs = label(tmp_path / "out", parents, **spec)
    assert len(pairs) == 120
    fitting = [pair for pair in pairs if pair.labels]
    for pair in fitting:
        assert len(pair.labels) == len(pair.source), "one symbol a frame, one frame a source token"
        tokens, lengths = collapse(*pad([pair.labels]))
        assert tokens[0, : lengths[0]].tolist() == pair.target
    # The target is the source reversed: it fits unless a word follows itself.
    repeats = [any(a == b for a, b in zip(p.target, p.target[1:], strict=False)) for p in pairs]
    assert [not pair.labels for pair in pairs] == repeats
    assert any(repeats)
    report = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert (report["pairs"], report["without_labels"]) == (120, sum(repeats))


def test_labels_belong_to_the_distilled_targets_if_there_are(parents, tmp_path):
    pairs = training_pairs(PreparedData(parents["data"]), None)
    distilled = tmp_path / "distilled"
    distilled.mkdir()
    (distilled / "targets.jsonl").write_text("".join(json.dumps(p.target[:1]) + "\n" for p in pairs))
    spec = {"labels": "ctc_alignment", "companions": {"ctc": {"family": "ctc", "config": CONFIG}}}
    for pair in label(tmp_path / "out", {**parents, "targets": distilled}, **spec):
        assert set(pair.labels) - {pair.target[0]} <= {5}, "only the one token and blank (id 5)"


def test_fertilities_sum_to_the_length_of_the_target(parents, tmp_path):
    pairs = label(tmp_path / "out", parents, labels="fertility", max_fertility=4, seed=1)
    assert len(pairs) == 120
    for pair in pairs:
        assert len(pair.labels) == len(pair.source)
        assert sum(pair.labels) == len(pair.target)
        assert max(pair.labels) <= 4


def test_a_batch_pads_labels_with_zeros_and_has_none_if_no_pair_has(parents, tmp_path):
    pairs = label(tmp_path / "out", parents, labels="fertility", max_fertility=4, seed=1)
    batch = collate(pairs[:8])
    assert [row[:n].tolist() for row, n in zip(batch.labels, batch.src_len, strict=True)] == [
        p.labels for p in pairs[:8]
    ]
    assert collate(training_pairs(PreparedData(parents["data"]), None)[:8]).labels is None


def test_labels_of_other_data_are_refused(parents, tmp_path):
    (tmp_path / "labels.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="labels for 1 of 120 training pairs"):
        training_pairs(PreparedData(parents["data"]), None, tmp_path)


def test_a_token_begins_where_its_run_begins():
    """Frames A A _ A B B with one and with two frames a position; a run that goes on begins nothing."""
    alignment = [20, 20, BLANK, 20, 21, 21]
    assert labels.token_starts(alignment, 1) == [1, 0, 0, 1, 1, 0]
    assert labels.token_starts(alignment, 2) == [1, 1, 1]
    assert labels.token_starts([20, 21, 22], 2) == [2, 1]
    assert labels.token_starts([], 1) == []
