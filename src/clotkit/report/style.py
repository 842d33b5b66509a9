"""The style sheet and the script of report.html, as text: the page stands alone, and so does the kernel's bundle."""

# p0 to p9: a tile's probability in tenths, from blue (0) by pale (0.5) to brown (1); told apart without red and green.
COLOURS = (
    "#0b3c8c", "#2f6fc4", "#5fa3e0", "#9cc9ee", "#d9e8f2", "#fbe3b9", "#f6b968", "#e88a1a", "#b85c00", "#6b3200",
)  # fmt: skip

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f6f7f8; --line: #d9dde1; --ink: #1c2126; --soft: #566069;
  --link: #005a9c; --bar: #2f6fc4; --other: #6b7580; --busy: #b85c00;
  --good: #006a4a; --partly: #7a5500; --bad: #a83a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1d2226; --line: #343b41; --ink: #e8ebed; --soft: #a4aeb6;
    --link: #7cbcf0; --bar: #5fa3e0; --other: #9aa5ae; --busy: #f6b968;
    --good: #35b98a; --partly: #e0b04a; --bad: #f08a45;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 90rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
footer { padding-top: 2rem; padding-bottom: 2rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
h1, h3, td, th, li, p, dd { overflow-wrap: anywhere; }
p { max-width: 48rem; margin: .35rem 0; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.soft { color: var(--soft); }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: .5rem; background: var(--page); padding: .4rem .8rem; }
nav ul, .legend, .switches { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: .7rem 0;
  padding: 0; }
.verdict { font-size: 1.15rem; font-weight: 600; }
.good { color: var(--good); } .partly { color: var(--partly); } .bad { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 12rem), 1fr)); gap: .75rem;
  margin: 1rem 0; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.figures dt { color: var(--soft); font-size: .875rem; }
.figures dd { margin: 0; font-variant-numeric: tabular-nums; }
.figures .value { font-size: 1.4rem; font-weight: 650; line-height: 1.25; }
.figures .more { font-size: .8125rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .9375rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { text-align: left; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; font-size: .8125rem; vertical-align: bottom; }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: .35rem 0; min-height: 1.75rem;
  text-align: left; cursor: pointer; text-decoration: underline dotted; }
th[aria-sort="ascending"] button::after { content: " \\25B2"; }
th[aria-sort="descending"] button::after { content: " \\25BC"; }
tbody th { font-weight: 600; }
.number { font-variant-numeric: tabular-nums; }
.why { min-width: 12rem; max-width: 24rem; }
.picture { position: relative; width: min(10rem, 13rem * var(--wide)); line-height: 0; }
.picture img { width: 100%; height: auto; border-radius: .2rem; background: #ffffff; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.outline { fill: none; stroke: #004d1a; stroke-width: 1.2px; vector-effect: non-scaling-stroke; }
.tiles rect { fill-opacity: .3; stroke-width: 1.5px; vector-effect: non-scaling-stroke; }
.no-tiles .tiles, .no-outline .outline { display: none; }
.swatch { display: inline-block; width: 1rem; height: 1rem; vertical-align: -.15rem; margin-right: .3rem;
  border: 1px solid var(--other); }
.line-swatch { display: inline-block; width: 1.2rem; height: 0; vertical-align: .3rem; margin-right: .3rem;
  border-top: 3px solid #004d1a; }
@media (prefers-color-scheme: dark) { .line-swatch { border-color: #35b98a; } }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
figcaption { font-size: .875rem; color: var(--soft); }
.plot { width: 100%; height: auto; display: block; background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; }
.plot text { fill: var(--soft); font-size: 11px; }
.plot .run { fill: var(--bar); }
.plot .known { fill: none; stroke: var(--ink); stroke-width: 1.6px; }
.plot .axis { stroke: var(--other); stroke-width: 1px; }
.plot .slide { fill: var(--bar); stroke: var(--card); stroke-width: .5px; }
.plot .slide.partial { fill: var(--partly); } .plot .slide.fallback { fill: var(--bad); }
.plot .busy { fill: var(--busy); }
.wide { min-width: 44rem; }
.hash { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .8125rem; }
@media (max-width: 48rem) {
  .cards, .cards tbody, .cards tr, .cards td, .cards tbody th, .cards caption { display: block; width: 100%; }
  .cards thead tr { display: flex; flex-wrap: wrap; gap: 0 1rem; }
  .cards thead th { border: 0; padding: 0; }
  .cards:not(.sortable) thead, .cards thead th:not(:has(button)) { display: none; }
  .cards tbody tr { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem;
    margin-bottom: .75rem; }
  .cards td, .cards tbody th { border: 0; padding: .15rem 0; max-width: none; }
  .cards td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); }
  .cards td:empty { display: none; }
  .picture { width: min(100%, 20rem, 24rem * var(--wide)); }
}
@media print { nav, .skip, .switches { display: none; } tr, figure { break-inside: avoid; } }
""" + "".join(f".p{i} {{ fill: {c}; stroke: {c}; background: {c}; }}\n" for i, c in enumerate(COLOURS))

# Without it the tables are plain ones. A heading that sorts becomes a button; empty cells stay at the end.
SCRIPT = """
(function () {
  var said = document.getElementById("said");
  function sort(table, heads, index) {
    var head = heads[index], up = head.getAttribute("aria-sort") !== "ascending";
    var number = head.dataset.sort === "n", body = table.tBodies[0];
    function value(row) {
      var text = row.cells[index].dataset.v;
      return number ? (text === "" ? null : parseFloat(text)) : text;
    }
    var rows = Array.prototype.map.call(body.rows, function (row) { return [value(row), row]; });
    rows.sort(function (a, b) {
      if (a[0] === null || b[0] === null) { return (a[0] === null) - (b[0] === null); }
      var order = a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0;
      return up ? order : -order;
    });
    heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.forEach(function (pair) { body.appendChild(pair[1]); });
    said.textContent = "Sorted by " + head.textContent + (up ? ", ascending" : ", descending");
  }
  function keepRoles(table) {  // a narrow page draws rows as blocks, which may cost a table its meaning
    var roles = { THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TD: "cell" };
    table.setAttribute("role", "table");
    table.querySelectorAll("thead, tbody, tr, td, th").forEach(function (part) {
      part.setAttribute("role", roles[part.tagName] || (part.scope === "row" ? "rowheader" : "columnheader"));
    });
  }
  document.querySelectorAll("table[data-sortable]").forEach(function (table) {
    var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
    table.classList.add("sortable");
    keepRoles(table);
    heads.forEach(function (head, index) {
      if (!head.dataset.sort) { return; }
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", function () { sort(table, heads, index); });
      head.textContent = "";
      head.appendChild(button);
    });
  });
  document.querySelectorAll("[data-switch]").forEach(function (box) {
    box.parentNode.hidden = false;
    box.addEventListener("change", function () {
      document.body.classList.toggle(box.dataset.switch, !box.checked);
    });
  });
})();
"""
