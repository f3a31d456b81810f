"""What the report says, and that nothing in it is taken for markup."""

import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.cli import main
from bench.records import read_records, write_records
from bench.report import write_report
from bench.report.grid import grid
from bench.report.page import again, gather
from bench.sheets import Sheet
from bench.sides import Side
from tests.bench.report.reports import HOSTILE, PLAIN, write_results

ROOT = Path(__file__).parents[3]


class Page(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write_results(tmp_path_factory.mktemp("results"))
    write_report(made)
    return made


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else(page):
    links = [a.get(name, "") for _, a in page.elements for name in ("src", "href") if name in a]
    assert all(link.startswith(("data:", "#")) for link in links)
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert {a["href"][1:] for a in page.of("a")} <= set(identifiers)


def test_texts_are_texts(page):
    assert len(page.of("script")) == 1
    assert not [a for a in page.of("img") if a.get("src") == "x"]
    assert not page.of("b")
    assert "<b>bold & co" in page.text
    assert HOSTILE[1] in page.text
    assert "\ufffdright to left\ufffd &amp; {{ 7 * 7 }} {% raw %}" in page.text
    assert HOSTILE[3] in page.text
    assert "<cpu>" in page.text


def test_every_figure_says_what_it_shows(page):
    assert len(page.of("img")) >= 4
    assert all("dates: " in image["alt"] for image in page.of("img"))


def test_every_system_can_be_run_again(page):
    assert (
        "python -m bench run suites/quick.yaml --set 'a=b c' --only ctc,transformer --out results/ctc-again"
        in page.text
    )
    assert "git checkout 0123abc" in page.text
    assert "0123abc, with changes" in page.text
    assert again(["python", "-m", "bench", "plot", "x"], "ctc") == ""
    assert again(["bench", "run", "a.yaml", "--store=s", "--only", "b"], "c", ["c", "d"]) == (
        "bench run a.yaml --only c,d --out results/c-again"
    )


def test_a_system_has_its_options_recipe_and_settings(folder):
    [task] = gather(Side.read(folder)).tasks
    [ctc, _] = {family.name: family for family in task.families}["ctc"].systems
    sections = dict(ctc.sections)
    assert ("upsampling", "2") in sections["Model"]
    assert ("convolution", "null") in sections["Model"]
    assert sections["Training"] == [("teacher", "transformer"), ("budget.minutes", "45"), ("seeds", "[1]")]
    assert sections["Settings search=greedy"] == [("search", "greedy")]
    assert sections["Task"] == [("first_year", "1990")]


def test_what_to_beware_of_comes_first(tmp_path):
    folder = write_results(tmp_path / "results")
    records = read_records(folder / "records.csv")
    broken = replace(records[-1], system="broken", metric="cell", value=None, status="oom", reason="no memory")
    write_records(folder / "records.csv", [*records, broken])
    text = write_report(folder).read_text(encoding="utf-8")
    assert text.index("cells failed in whole or in part") < text.index("<table")
    assert text.index("broken [") < text.index("<table")
    assert "(no memory)" in text


@pytest.mark.parametrize(
    "environment",
    ['{"git": null}', '{"suite": null, "machine": null, "command": null}', '{"command": "a string", "suite": []}',
     '{"suite": {"systems": [{"family": "ctc"}, 3], "tasks": null}}'],
)  # fmt: skip
def test_what_the_environment_lacks_is_left_out(tmp_path, environment):
    folder = write_results(tmp_path / "results")
    (folder / "environment.json").write_text(environment)
    assert "ctc" in write_report(folder).read_text(encoding="utf-8")


def test_damaged_outputs_are_left_out_and_told(tmp_path):
    folder = write_results(tmp_path / "results")
    damaged = folder / "hypotheses" / "dates" / "ctc-raw-s1-search=greedy.txt"
    damaged.write_bytes(b"\xff\n")
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "Left out of the examples: " in page.text
    assert "not UTF-8" in page.text
    assert PLAIN[2] in page.text


def test_footnotes_stand_below_the_table_that_has_their_marks():
    rows = [["a", "ctc", "raw", "–¹"], ["b", "rnn", "raw", "12²"]]
    made = grid(Sheet("t", ["System", "Family", "Trained on", "N"], rows, 3), ["¹ too few", "² other", "³ elsewhere"])
    assert made.notes == ["¹ too few", "² other"]
    assert made.of_family("rnn").notes == ["² other"]


@pytest.mark.parametrize(
    ("title", "column", "falls"),
    [("t", "BLEU ↑", True), ("t", "CER (%) ↓", False), ("t", "Over transformer [beam=1], batch 8", True),
     ("t", "Latency p50 (ms)", False), ("CER (%) ↓ by SNR (dB)", "0..5", False), ("t", "Tokens/s, batch 1", True),
     ("t", "Decoder passes", False), ("t", "Tokens/decoder pass", True)],
)  # fmt: skip
def test_a_first_click_brings_the_best_to_the_top(title, column, falls):
    made = grid(Sheet(title, ["System", "Family", "Trained on", column], [["a", "ctc", "raw", "1"]], 3))
    assert made.header[-1].falling == falls


def test_headings_have_columns_and_rows(page):
    assert all(cell.get("scope") in ("col", "row") for cell in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table"))


def test_examples_go_from_easy_to_hard_and_show_the_best_settings(folder):
    [task] = gather(Side.read(folder)).tasks
    [easiest, *_, hardest] = task.examples
    assert {answer.cell.name for answer in easiest.answers} == {
        "transformer [beam=5]", "ctc [search=greedy]", "<b>bold & co [a=<i>]",
    }  # fmt: skip
    assert easiest.references[0] in PLAIN[2:]
    assert hardest.references[0] in PLAIN[:2]
    right = {answer.cell.system: answer.right for answer in easiest.answers}
    assert right == {"transformer": True, "ctc": False, "<b>bold & co": True}
    families = {family.name: family for family in task.families}
    assert [a.cell.system for a in families["ctc"].examples[0].answers] == ["ctc", "<b>bold & co"]


def test_without_sentences_there_are_no_examples(tmp_path):
    page = Page(write_report(write_results(tmp_path / "results", examples=False)).read_text(encoding="utf-8"))
    assert "kept without their sentences" in page.text


def test_numbers_are_sorted_as_numbers():
    rows = [
        ["a", "ctc", "raw", "97.2 [95.8, 98.6]", "1.23 M"], ["b", "rnn", "raw", "–", "990 k"],
        ["c", "ctc", "distilled", "failed¹", "12"], ["d", "ctc", "raw", "8.0²", "–"],
    ]  # fmt: skip
    made = grid(Sheet("t", ["System", "Family", "Trained on", "BLEU", "N"], rows, 3))
    keys = [[value.key for value in row.values[3:]] for row in made.rows]
    assert keys == [[97.2, 1.23e6], [None, 9.9e5], [None, 12.0], [8.0, None]]
    assert (made.rows[0].values[3].main, made.rows[0].values[3].rest) == ("97.2", " [95.8, 98.6]")
    assert (made.families, made.kinds_of_data) == (["ctc", "rnn"], ["raw", "distilled"])
    assert [column.title for column in made.of_family("rnn").header] == ["Cell", "Family", "Trained on", "N"]
    assert [row.values[0].text for row in made.rows] == ["a", "b", "c (distilled)", "d"]
    assert made.of_family("imputer") is None


def test_the_same_records_give_the_same_page(folder):
    before = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == before


@pytest.mark.parametrize("verb", ["report", "plot", "table"])
def test_no_torch_is_needed(verb, tmp_path):
    folder = write_results(tmp_path / "results")
    code = (
        "import sys; sys.modules.update(torch=None, safetensors=None, sentencepiece=None)\n"
        f"from bench.cli import main; sys.exit(main([{verb!r}, {str(folder)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_without_records_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 3
    assert "no records.csv here" in capsys.readouterr().err
    write_results(tmp_path / "results")
    (tmp_path / "results" / "curves.csv").write_text("nonsense\n")
    assert main(["report", str(tmp_path / "results")]) == 3
    assert "not a table of learning curves" in capsys.readouterr().err
