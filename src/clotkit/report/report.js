// Makes tables sortable: a heading becomes a button, and empty cells stay at the end. Tables work without it.
(function () {
  var status = document.getElementById("status");
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
    status.textContent = "Sorted by " + head.textContent + (up ? ", ascending" : ", descending");
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
