// What a page can do beyond being read: filter and search the rows, copy them, move the slider.
// Nothing here writes markup: texts go through textContent and value alone.

// Some sandboxes let a link lead nowhere, not even inside its page.
for (const link of document.querySelectorAll('a[href^="#"]')) {
  const target = document.getElementById(link.hash.slice(1));
  link.addEventListener("click", (event) => {
    event.preventDefault();
    target.scrollIntoView();
    target.focus({ preventScroll: true });
  });
}

// The first so many rows. Without scripts the table of depths stands alone.
for (const box of document.querySelectorAll("[data-depths]")) {
  const depths = JSON.parse(box.dataset.depths);
  const slider = box.querySelector("input");
  const said = box.querySelector("output");
  const number = (value) => Math.round(value).toLocaleString("en");
  const show = () => {
    const [rows, about, surely] = depths[slider.value];
    const guess = about === null ? "" : `about ${number(rows - about)}, `;
    const most = number(rows - surely);
    said.textContent = `Of the first ${number(rows)} rows ${guess}at most ${most} are innocent.`;
  };
  slider.max = depths.length - 1;
  slider.addEventListener("input", show);
  box.hidden = false;
  show();
}

// The work list. Without scripts all rows stand there.
for (const bar of document.querySelectorAll("[data-filters]")) {
  const table = document.querySelector("[data-header]");
  const rows = [...table.tBodies[0].rows].filter((row) => row.dataset.cells);
  const texts = new Map();
  const source = bar.querySelector("[data-source]");
  const search = bar.querySelector("[data-search]");
  const said = bar.querySelector("[data-said]");
  const area = bar.querySelector("[data-table]");
  const nothing = document.querySelector("[data-nothing]");

  const text = (row) => {
    if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
    return texts.get(row);
  };
  const shown = () => rows.filter((row) => !row.hidden);
  const filter = () => {
    const kind = bar.querySelector("[name=kind]:checked").value;
    const from = source ? source.value : "";
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      row.hidden = !(
        (!kind || row.dataset.kinds.split(" ").includes(kind)) &&
        (!from || row.dataset.source === from) &&
        words.every((word) => text(row).includes(word))
      );
    }
    const count = shown().length;
    said.textContent = count < rows.length ? `${count} of ${rows.length} rows` : "";
    nothing.hidden = count > 0;
    area.hidden = true;
  };
  // A page in a sandbox has no clipboard of its own: the table is written out and selected, and
  // the reader's own Ctrl+C works where the browser does not let the button copy.
  const copy = () => {
    const some = shown();
    const lines = [table.dataset.header, ...some.map((row) => row.dataset.cells)];
    area.value = lines.map((cells) => JSON.parse(cells).join("\t")).join("\n");
    area.hidden = false;
    area.focus();
    area.select();
    requestAnimationFrame(() => area.scrollTo(0, 0)); // its beginning is seen
    let copied = false;
    try {
      copied = document.execCommand("copy");
    } catch {
      // Not allowed here.
    }
    const what = `${some.length} ${some.length === 1 ? "row" : "rows"}`;
    said.textContent = copied
      ? `${what} copied: paste them into a spreadsheet.`
      : `${what} selected: press Ctrl+C (on a Mac ⌘C).`;
  };

  for (const event of ["input", "change"]) bar.addEventListener(event, filter);
  bar.querySelector("[data-copy]").addEventListener("click", copy);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input[type=search], textarea, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && event.target === search) {
      search.value = "";
      filter();
    }
  });
  bar.hidden = false;
  filter();
}
