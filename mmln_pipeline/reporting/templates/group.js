// Sort tables by the column whose heading is chosen; missing values stay last. Without scripts the tables just stay as they are.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (first, second) => (first - second) || String(first).localeCompare(String(second), "en", { numeric: true });
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort(([first], [second]) => (first === "") - (second === "") || sign * compare(first, second));
      body.append(...rows.map(([, row]) => row));
    });
  });
  document.documentElement.classList.add("sortable-ready");
}
