import json

import pytest

from bench.execution import forget_failed, left_out
from bench.steps import Step
from bench.store import Store


@pytest.mark.parametrize(("status", "kept"), [("ok", True), ("oom", True), ("failed", False), ("timeout", False)])
def test_a_measurement_in_which_something_failed_is_taken_again(status, kept, tmp_path):
    store = Store(tmp_path)
    rows = {"measurements": [{"status": "ok"}, {"status": status}]}
    store.build("measure", "k", lambda folder: (folder / "measurements.json").write_text(json.dumps(rows)))
    forget_failed(store, [Step("measure", "k", {}), Step("measure", "never made", {})])
    assert store.has("measure", "k") is kept


def test_examples_that_were_left_out_are_told_with_their_reasons(tmp_path):
    file = tmp_path / "data.json"
    assert left_out(file) is None
    counts = {"splits": {"train": {"read": 24, "dropped": {"unreadable": 3, "too_long": 0, "no_text": 1}}}}
    file.write_text(json.dumps(counts))
    assert left_out(file) == f"4 of 24 training examples are left out (3 unreadable, 1 no text); see {file}"
    counts["splits"]["train"]["dropped"] = {"too_long": 0}
    file.write_text(json.dumps(counts))
    assert left_out(file) is None
