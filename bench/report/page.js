"use strict";

// Sorting: a click on a heading sorts by that column, a second one the other way round. Rows without a number stay last.
function sortBy(table, column, heading) {
  const rising = heading.getAttribute("aria-sort") === "ascending" ||
    (heading.getAttribute("aria-sort") === null && heading.dataset.first === "falling") ? -1 : 1;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => {
    const cell = row.cells[column];
    const number = cell.dataset.key === undefined ? null : Number(cell.dataset.key);
    return { row, number, text: cell.textContent.trim() };
  });
  const numeric = rows.some((entry) => entry.number !== null);
  rows.sort((a, b) => {
    if (!numeric) return rising * a.text.localeCompare(b.text, undefined, { numeric: true });
    if (a.number === null || b.number === null) return (a.number === null) - (b.number === null);
    return rising * (a.number - b.number);
  });
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", rising > 0 ? "ascending" : "descending");
  body.append(...rows.map((entry) => entry.row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sortBy(table, column, heading));
  });
}

// Filtering: a row is shown if it has every word that was typed, and the family and the data that were chosen.
for (const form of document.querySelectorAll("form.filters")) {
  const rows = Array.from(document.getElementById(form.dataset.table).tBodies[0].rows);
  let texts = null; // looked at when something is typed: thousands of rows take their time
  const shown = form.querySelector("output");
  const filter = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const { family, data } = form.elements;
    if (words.length && !texts) texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    let count = 0;
    for (const row of rows) {
      const fits = words.every((word) => texts.get(row).includes(word)) &&
        (!family.value || row.dataset.family === family.value) && (!data.value || row.dataset.data === data.value);
      row.hidden = !fits;
      count += fits;
    }
    shown.value = `${count} of ${rows.length} rows`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  shown.value = `${rows.length} of ${rows.length} rows`;
}

// A link to something inside a folded part unfolds it.
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", unfold);
if (location.hash) unfold();
