"use strict";
// The switch of the theme, uploads with progress, and parts of a page that follow work on the server.

const EVERY_MS = 400;
const root = document.documentElement;

function setTheme(name) {
  root.dataset.theme = name;
  localStorage.setItem("theme", name);
  for (const button of document.querySelectorAll("[data-theme-switch]"))
    button.textContent = `Theme: ${name || "as the system"}`;
}

function followTheme() {
  setTheme(localStorage.getItem("theme") || "");
  const next = { "": "dark", dark: "light", light: "" };
  for (const button of document.querySelectorAll("[data-theme-switch]"))
    button.addEventListener("click", () => setTheme(next[localStorage.getItem("theme") || ""]));
}

// What the server says in place of an answer; `text` is one line of JSON, unless the answer is of something else.
function refusal(status, text) {
  try {
    const { code, error } = JSON.parse(text);
    if (error) return { code, sentence: error };
  } catch { /* not of this application */ }
  return { code: "failed", sentence: `The server answered with error ${status}; try again.` };
}

const NO_ANSWER = { code: "no_answer", sentence: "The server does not answer. Start clotkit app again if it has ended." };

function note({ code, sentence }) {
  const line = document.createElement("p");
  line.className = "note bad";
  line.dataset.code = code;
  line.textContent = sentence;
  return line;
}

// A part with data-live="running" is fetched again, with its page, until the server no longer says so.
async function follow(part) {
  while (part.dataset.live === "running") {
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    try {
      const answer = await fetch(location.href);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const newer = page.getElementById(part.id);
      if (!newer) {  // the work is no longer kept: the page that says so takes the place of this one
        location.reload();
        return;
      }
      if (newer.innerHTML !== part.innerHTML) part.replaceChildren(...newer.childNodes);
      part.dataset.live = newer.dataset.live;
      if (newer.dataset.to) location.replace(newer.dataset.to);
    } catch { /* the server is busy or gone: asked again */ }
  }
}

function uploads(form) {
  const button = form.querySelector("button[type=submit]"), status = form.querySelector("[role=status]");
  let isBusy = false;
  const setBusy = (busy) => { // a button that is disabled would lose the focus
    isBusy = busy;
    button.setAttribute("aria-disabled", String(busy));
  };
  const fail = (why) => {
    status.replaceChildren(note(why));
    setBusy(false);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (isBusy) return;
    const request = new XMLHttpRequest(), bar = document.createElement("progress");
    setBusy(true);
    bar.setAttribute("aria-label", "Uploaded");
    request.upload.addEventListener("progress", (step) => { bar.max = step.total; bar.value = step.loaded; });
    request.addEventListener("load", () => {
      if (request.status < 300) location.assign(request.responseURL);
      else fail(refusal(request.status, request.responseText));
    });
    request.addEventListener("error", () => fail(NO_ANSWER));
    request.open("POST", form.action);
    request.send(new FormData(form));
    status.replaceChildren("Uploading … ", bar);
  });
}

root.dataset.theme = localStorage.getItem("theme") || "";  // before the page is drawn
document.addEventListener("DOMContentLoaded", () => {
  followTheme();
  document.querySelectorAll("form[data-upload]").forEach(uploads);
  for (const one of document.querySelectorAll("select[data-go]"))
    one.addEventListener("change", () => one.form.requestSubmit());
  document.querySelectorAll("[data-live]").forEach(follow);
});
