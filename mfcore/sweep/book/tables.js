// Tables: a click on a column's head sorts by it, columns of numbers stand to the right, and a
// cell's width follows the length of its words, which may be broken where they are long.
"use strict";

// A cell's number, without commas and with a true minus sign; NaN where the cell has none.
const numberOf = (words) => parseFloat(words.replace(/[,<]/g, "").replace("−", "-"));
const isNumber = (words) => /^(<?[-+−]?\d[\d,.]*(e-?\d+)?[^A-Za-z]*(\(.*\))?|–?)$/.test(words);
const wordsOf = (row, column) =>
  (row.cells[column]?.textContent ?? "").trim().replace(/\s+/g, " ");

// Numbers by value, then other words, then cells without anything; ``sign`` turns the first two.
function compare(a, b, sign) {
  const rank = (words) => (words === "" || words === "–" ? 2 : isNaN(numberOf(words)) ? 1 : 0);
  if (rank(a) !== rank(b) || rank(a) === 2) return rank(a) - rank(b);
  return sign * (rank(a) ? a.localeCompare(b) : numberOf(a) - numberOf(b));
}

function sort(table, head, column) {
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => compare(wordsOf(a, column), wordsOf(b, column), sign));
  table.tBodies[0].append(...rows);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".bd-article table")) {
    if (table.tHead?.rows.length !== 1 || table.tBodies.length !== 1) continue;
    const rows = [...table.tBodies[0].rows];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const words = rows.map((row) => wordsOf(row, column));
      const cells = [head, ...rows.map((row) => row.cells[column])];
      if (words.every(isNumber)) cells.forEach((cell) => cell?.classList.add("number"));
      words.forEach((cell, i) => {
        const n = /\S{30}/.test(cell) ? Math.max(cell.length, 41) : cell.length;
        const size = n > 120 ? "longest" : n > 40 ? "long" : n > 20 ? "some" : "short";
        cells[i + 1]?.classList.add(size);
      });
      if (rows.length < 3 || !head.textContent.trim()) return;
      const button = document.createElement("button");
      button.append(...head.childNodes);
      button.title = "Sort by this column";
      button.addEventListener("click", () => sort(table, head, column));
      head.append(button);
    });
  }
});
