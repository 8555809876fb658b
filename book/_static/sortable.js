// Tables of runs sort by the column whose head is clicked, or chosen by keyboard.
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const value = (row, i) => row.cells[i].textContent.trim();
  const sort = (i) => {
    const down = heads[i].getAttribute("aria-sort") === "ascending";
    const order = (a, b) => {
      const [x, y] = [value(a, i), value(b, i)];
      const both = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
      return both ? x - y : x.localeCompare(y, undefined, { numeric: true });
    };
    body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[i].setAttribute("aria-sort", down ? "descending" : "ascending");
  };
  heads.forEach((head, i) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(i));
    head.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort(i);
    });
  });
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.dataframe")) {
    const rows = table.tHead ? [...table.tBodies[0].rows] : [];
    const width = rows.length && table.tHead.rows[0].cells.length;
    if (rows.length > 3 && rows.every((row) => row.cells.length === width)) {
      table.classList.add("sortable");
      sortable(table);
    }
  }
});
