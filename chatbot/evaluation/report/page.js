// Sorts a table by a column: a click on a heading sorts, another click reverses. Rows without a number come last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), table = heading.closest("table"), body = table.tBodies[0];
    const column = heading.cellIndex;
    const ascending = heading.getAttribute("aria-sort") === "ascending" ? false
      : heading.getAttribute("aria-sort") === "descending" ? true : heading.dataset.first !== "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value;
    const rows = Array.from(body.rows);
    rows.sort((a, b) => {
      if (column === 0) return (ascending ? 1 : -1) * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
      if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
      return (ascending ? 1 : -1) * (Number(key(a)) - Number(key(b)));
    });
    body.append(...rows);
  });
}

// Paper cannot be unfolded.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
