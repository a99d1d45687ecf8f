// A click on a column's head sorts by it, largest first; another click turns the order round.
for (const head of document.querySelectorAll("thead th")) {
  const sort = () => {
    const body = head.closest("table").tBodies[0], place = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[place].dataset.value;
    const text = row => row.cells[place].textContent;
    const order = (a, b) => key(a) !== undefined && key(b) !== undefined ? key(b) - key(a)
      : key(a) !== undefined ? -1 : key(b) !== undefined ? 1 : text(a).localeCompare(text(b));
    const rows = [...body.rows].sort(order);
    body.append(...(down ? rows : rows.reverse()));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}
