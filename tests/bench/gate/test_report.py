"""What people and machines read of the gate."""

import xml.etree.ElementTree as ET

import pytest

from bench.cli import main
from bench.gate.report import junit, markdown, summary
from bench.gate.verdicts import Finding, Verdict, exit_code
from tests.bench.gate_runs import damaged, sentences, write_side

KEY = ("dates", "ctc<b>|", "distilled", "beam=5", 1)
FINDINGS = [
    Finding(KEY, "bleu", Verdict.OK, 30.0, 30.0, reason="the same outputs"),
    Finding(KEY, "bleu", Verdict.REGRESSED, 30.0, 25.5, p_value=0.0004),
    Finding(KEY, "tokens_per_second", Verdict.ADVISORY, 100.0, 80.0, batch_size=8, reason="another machine"),
    Finding(KEY, "bleu", Verdict.MISSING, reason="bell \a and [brackets]"),
]


def test_markdown_has_the_worst_first_and_no_markup_from_data():
    lines = markdown(FINDINGS).splitlines()
    assert lines[0] == "Something has become worse. 1 REGRESSED, 1 MISSING, 1 ADVISORY, 1 OK."
    assert lines[4].startswith(
        "| REGRESSED | dates: ctc\\<b\\>\\| (distilled) \\[beam=5\\], seed 1 | BLEU | 30.0 | 25.5 | -4.50 |"
    )
    assert lines[5].startswith("| MISSING")
    assert "-20.0 %" in lines[6]
    assert len(lines) == 8


def test_junit_fails_what_the_gate_fails():
    root = ET.fromstring(junit(FINDINGS))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("4", "2", "1")
    cases = list(root)
    assert [[child.tag for child in case] for case in cases] == [[], ["failure"], ["skipped"], ["failure"]]
    assert "�" in cases[3][0].get("message")


def test_the_summary_says_when_nothing_was_compared():
    assert summary([]) == "Nothing could be compared."
    doubtful = [Finding(KEY, "sentences_per_second", Verdict.INCONCLUSIVE, 1.0, 1.0, batch_size=1)]
    assert exit_code(doubtful) == 3


@pytest.mark.parametrize(("share", "code"), [(0.1, 0), (0.4, 1)])
def test_the_verb_prints_writes_and_exits(tmp_path, capsys, share, code):
    test = sentences()
    before = write_side(tmp_path / "before", {"a": damaged(test, 0.1)}, test)
    after = write_side(tmp_path / "after", {"a": damaged(test, share)}, test)
    files = ["--markdown", str(tmp_path / "gate.md"), "--junit", str(tmp_path / "gate.xml")]
    assert main(["gate", "--baseline", str(before), "--candidate", str(after), *files]) == code
    shown = capsys.readouterr().out
    assert "toy: a [beam=1], seed 1" in shown
    assert ("REGRESSED" in shown) == (code == 1)
    assert (tmp_path / "gate.md").read_text().startswith("Something" if code else "Nothing is shown")
    ET.parse(tmp_path / "gate.xml")


def test_the_verb_refuses_what_is_not_there(tmp_path, capsys):
    assert main(["gate", "--baseline", str(tmp_path), "--candidate", str(tmp_path)]) == 3
    assert "no records.csv here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to compare"),
        (["--identical", "--against", "HEAD", "--suite", "a.yaml"], "--identical compares outputs"),
        (["--baseline", "a"], "name both folders"),
        (["--against", "HEAD"], "--against and --suite: name both"),
        (["--suite", "a.yaml"], "--against and --suite: name both"),
    ],
)
def test_the_verb_says_what_is_missing(arguments, complaint, capsys):
    assert main(["gate", *arguments]) == 3
    assert complaint in capsys.readouterr().err


def test_times_in_pairs_show_their_interval():
    finding = Finding(
        KEY, "sentences_per_second", Verdict.OK, 100.0, 99.0, "sentences/s", reason="20 pairs", batch_size=8,
        ratio=(0.985, 0.95, 1.012),
    )  # fmt: skip
    text = markdown([finding], ["Timed in turn."])
    assert "| Sentences/s, batch 8 | 100 | 99.0 | -1.5 \\[-5.0, +1.2\\] % |" in text
    assert text.endswith("\n\nTimed in turn.\n")
    assert ET.fromstring(junit([finding], ["Timed in turn."])).find("system-out").text == "Timed in turn."
