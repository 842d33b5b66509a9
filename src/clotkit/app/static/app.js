"use strict";
// The switch of the theme, uploads with progress, and parts of a page that follow work on the server.

const EVERY_MS = 400; // between two looks at work that goes on
const LOST_MS = 2000; // the same while the server does not answer
const ANSWER_MS = 15000; // for an answer of a busy machine
const TRIES = 3; // that fail before a page says so
const GONE = [400, 404]; // the work is no longer kept: the page that says so takes the place of this one
const LIKE = ["id", "class", "role", "name", "action", "aria-label"]; // that two elements have in common to be one
const OWN = ["open", "tabindex"]; // that the visitor or this script gives to an element

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

function isLike(one, other) {
  if (one.nodeName !== other.nodeName) return false;
  return one.nodeType !== Node.ELEMENT_NODE || LIKE.every((name) => one.getAttribute(name) === other.getAttribute(name));
}

function updateAttributes(old, newer) {
  for (const { name, value } of newer.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of old.getAttributeNames())
    if (!newer.hasAttribute(name) && !OWN.includes(name)) old.removeAttribute(name);
}

// Makes what is in `old` the same as in `newer`, and keeps each element that is in both: with it stay the focus and the
// scroll position, and a screen reader says what changed in a status.
function update(old, newer) {
  let at = old.firstChild;
  for (const wanted of [...newer.childNodes]) {
    const isElement = wanted.nodeType === Node.ELEMENT_NODE;
    let like = at;
    while (like && !isLike(like, wanted)) like = isElement ? like.nextSibling : null;
    if (!like) {
      old.insertBefore(wanted, at);
      continue;
    }
    while (at !== like) at = without(at);
    at = like.nextSibling;
    if (!isElement) {
      if (like.data !== wanted.data) like.data = wanted.data;
    } else if (like.nodeName !== "NOSCRIPT") { // its content is text here, and elements in a page that is only parsed
      updateAttributes(like, wanted);
      update(like, wanted);
    }
  }
  while (at) at = without(at);
}

function without(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

function updatePart(part, newer) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  update(part, newer);
  part.dataset.live = newer.dataset.live;
  if (focused && !focused.isConnected) { // its button is gone with the work: the next Tab goes on from here
    const next = part.querySelector("[role=status], [role=alert]") || part;
    next.tabIndex = -1;
    next.focus({ preventScroll: true });
  }
}

// A part of this page as it is on the server now, null if it is there no longer. Throws what to show in its place.
async function asked(id) {
  let response, text;
  try {
    response = await fetch(location.href, { signal: AbortSignal.timeout(ANSWER_MS) });
    text = await response.text();
  } catch {
    throw NO_ANSWER;
  }
  if (response.ok) return new DOMParser().parseFromString(text, "text/html").getElementById(id);
  if (GONE.includes(response.status)) return null;
  throw refusal(response.status, text);
}

// A part with data-live="running" is asked for again, with its page, until the server no longer says so.
async function follow(part) {
  let failed = 0, line = null;
  while (part.dataset.live === "running") {
    await new Promise((resolve) => setTimeout(resolve, line ? LOST_MS : EVERY_MS));
    try {
      const newer = await asked(part.id);
      if (!newer) {
        location.reload();
        return;
      }
      line?.remove();
      [failed, line] = [0, null];
      updatePart(part, newer);
      if (newer.dataset.to) location.replace(newer.dataset.to);
    } catch (error) {
      if (!error.sentence) throw error;
      failed += 1;
      if (failed < TRIES || line?.dataset.code === error.code) continue;
      line?.remove();
      line = note(error);
      line.setAttribute("role", "alert");
      part.before(line);
    }
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

// Files go to what a list shows, also before its button is pressed; the samples on the page are of what it showed first.
function shows(list) {
  list.addEventListener("change", () => {
    for (const one of document.querySelectorAll(`input[type=hidden][name="${list.name}"]`)) one.value = list.value;
    for (const one of document.querySelectorAll("fieldset[data-of]")) one.disabled = list.value !== one.dataset.of;
  });
}

root.dataset.theme = localStorage.getItem("theme") || "";  // before the page is drawn
document.addEventListener("DOMContentLoaded", () => {
  followTheme();
  document.querySelectorAll("form[data-upload]").forEach(uploads);
  document.querySelectorAll("form[data-shows] select").forEach(shows);
  document.querySelectorAll("[data-live]").forEach(follow);
});
