import json

import pytest

from bench.execution import forget_failed
from bench.steps import Step
from bench.store import Store


@pytest.mark.parametrize(("status", "kept"), [("ok", True), ("oom", True), ("failed", False), ("timeout", False)])
def test_a_measurement_in_which_something_failed_is_taken_again(status, kept, tmp_path):
    store = Store(tmp_path)
    rows = {"measurements": [{"status": "ok"}, {"status": status}]}
    store.build("measure", "k", lambda folder: (folder / "measurements.json").write_text(json.dumps(rows)))
    forget_failed(store, [Step("measure", "k", {}), Step("measure", "never made", {})])
    assert store.has("measure", "k") is kept
