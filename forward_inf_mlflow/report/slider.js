// Says what to expect of the first so many rows. Without scripts the table of depths stands alone.
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
