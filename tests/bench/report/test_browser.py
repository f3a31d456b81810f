"""The report in a browser: it sorts, filters, asks for nothing, and lets no text act."""

import random
import shutil
from dataclasses import replace

import pytest

from bench.records import Record, write_records
from bench.report import write_report
from bench.report.page import gather, render
from bench.sides import Side
from tests.bench.report.reports import write_results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(write_results(tmp_path_factory.mktemp("results")))


class Tab:
    """An open page, with what it complained of and what it asked for."""

    def __init__(self, browser, file, **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def column(self, number):
        """The texts of a column of the first table, rows that are hidden left out."""
        return self.page.eval_on_selector_all(
            "#t1-table tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{number}].textContent)"
        )

    def heading(self, text):
        return self.page.locator("#t1-table thead th", has_text=text).first


@pytest.fixture
def tab(browser, report):
    opened = Tab(browser, report)
    yield opened
    opened.context.close()


def test_it_opens_in_silence_and_asks_for_nothing(tab, report):
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [report.as_uri()]
    assert tab.page.title() == "natbench: quick", "no text has acted"
    broken = tab.page.eval_on_selector_all("img", "images => images.filter(i => i.complete && !i.naturalWidth).length")
    assert broken == 0


def test_a_click_sorts_and_another_one_turns_it_round(tab):
    heading = tab.heading("Exact match")
    column = heading.evaluate("cell => cell.cellIndex")
    heading.locator("button").click()
    falling = [float(text.split()[0]) for text in tab.column(column)]
    assert heading.get_attribute("aria-sort") == "descending", "more is better, so the best come first"
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > falling[-1]
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text.split()[0]) for text in tab.column(column)] == falling[::-1]
    tab.heading("Cell").locator("button").click()
    names = tab.column(0)
    assert [name[0] for name in names] == sorted(name[0] for name in names)
    assert tab.page.locator("#t1-table th[aria-sort]").count() == 1


def test_filters_narrow_the_rows_down(tab):
    total = len(tab.column(0))
    tab.page.get_by_label("Family").select_option("ctc")
    assert set(tab.column(1)) == {"ctc"}
    tab.page.get_by_label("Trained on").select_option("distilled")
    assert set(tab.column(2)) == {"distilled"}
    tab.page.get_by_label("Rows with").fill("BEAM prefix")
    assert tab.column(0) == ["ctc (distilled) [search=prefix_beam beam=8]"]
    assert tab.page.locator("output").first.inner_text() == f"1 of {total} rows"
    tab.page.get_by_label("Rows with").fill("nowhere")
    assert tab.column(0) == []


def test_a_link_unfolds_what_it_leads_to(tab):
    tab.page.evaluate("location.hash = '#t1-table-1'")
    tab.page.wait_for_function("document.getElementById('t1-table-1').closest('details').open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_the_screen_and_can_be_read(browser, report, scheme, width):
    tab = Tab(browser, report, color_scheme=scheme, viewport={"width": width, "height": 800})
    tab.page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    names = ["body", "a", ".soft", "ins", "del", "summary", "thead th", "small"]
    colours = tab.page.evaluate(
        """names => names.map(name => {
        const element = document.querySelector("main " + name) || document.querySelector(name);
        let back = element;
        while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") back = back.parentElement;
        return [name, getComputedStyle(element).color, getComputedStyle(back).backgroundColor];
    })""",
        names,
    )
    for name, text, back in colours:
        assert contrast(text, back) >= 4.5, f"{name}: {text} on {back}"
    tab.context.close()


def contrast(first, second):
    """The contrast ratio of two colours (WCAG 2.2)."""

    def luminance(colour):
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_a_great_many_rows_open_soon(browser, tmp_path):
    base = Record(
        suite="many", task="dates", split="test", system="", family="ctc", settings="", data="raw", seed=1, metric="",
        value=None, unit="", device="cpu", dtype="float32",
    )  # fmt: skip
    rng = random.Random(1)
    records = []
    for system in range(50):
        for setting in range(40):
            cell = replace(base, system=f"system-{system}", settings=f"iterations={setting}")
            for metric in ("bleu", "chrf", "ter"):
                value = rng.uniform(10, 40)
                records.append(replace(cell, metric=metric, value=value, ci_low=value - 1, ci_high=value + 1, n=500))
            for size in (1, 8, 32):
                value = rng.uniform(50, 4000)
                bounds = {"ci_low": value - 9, "ci_high": value + 9, "n": 8, "batch_size": size}
                records.append(replace(cell, metric="tokens_per_second", value=value, **bounds))
    write_records(tmp_path / "records.csv", records)
    file = tmp_path / "report.html"
    file.write_text(render(gather(Side.read(tmp_path))), encoding="utf-8")
    assert file.stat().st_size < 10e6
    tab = Tab(browser, file)
    assert len(tab.column(0)) == 2000
    milliseconds = tab.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    # Two seconds on a quiet machine; here other tests may be running beside it.
    assert milliseconds < 6000
    tab.context.close()
