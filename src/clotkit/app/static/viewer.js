/* The viewer page: one slide, or two that move together. */

import { Overlay } from "./overlay.js";
import { barOf } from "./scale.js";

const POLL_MS = 700; // between two looks at how much of a slide was read
const LOST_MS = 5000; // the same while there is no answer
const TRIES = 3; // that fail before a pane says so
const AGAIN_MS = 20000; // between two looks, while tiles come, at whether a sharp slide has another process
const NEWS = 0.15; // share of a slide that must have been read before its blurred levels are fetched again
const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;

/* JSON from the server; an Error with one line for people if there is none. */
async function ask(path) {
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new Error("the server does not answer; start clotkit app again");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(body.error || `error ${response.status}`), { code: body.code });
  return body;
}

class Pane {
  constructor(section) {
    this.section = section;
    this.path = `/slides/${section.dataset.id}`;
    this.generation = 0;
  }

  find(selector) {
    return this.section.querySelector(selector);
  }

  fail(error) {
    const line = this.find(".error");
    line.textContent = error.message;
    line.dataset.code = error.code || "";
    line.hidden = false;
  }

  async open() {
    try {
      this.info = await ask(`${this.path}/info.json`);
    } catch (error) {
      this.fail(error);
      return;
    }
    this.viewer = OpenSeadragon({
      element: this.find(".picture"),
      drawer: "canvas",
      tileSources: this.source(),
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "TOP_RIGHT",
      navigatorAutoFade: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      maxZoomPixelRatio: 4,
      animationTime: calm ? 0 : 0.5,
      blendTime: 0,
      timeout: 60000,
    });
    this.overlay = new Overlay(this.viewer, () => this.viewer.world.getItemAt(0));
    this.prepare();
    await new Promise((resolve) => this.viewer.addOnceHandler("open", resolve));
    this.viewer.addHandler("tile-load-failed", (event) => this.explain(event.tile));
    this.viewer.addHandler("tile-loaded", () => {
      this.recheck(); // not returned: the tile would wait for it
    });
    this.showScale();
    this.watch();
    this.fetchOverlay();
  }

  /* Where tiles come from; levels that are or were blurred get another address each time, so that they are fetched again. */
  source() {
    const { info, generation, path, reopened } = this;
    return {
      width: info.width_px,
      height: info.height_px,
      tileSize: info.tile_px,
      minLevel: info.first_level,
      maxLevel: info.last_level,
      getTileUrl(level, x, y) {
        const isBlurred = (!info.sharp || reopened) && info.blurred_level !== null && level <= info.blurred_level;
        return `${path}/tiles/${level}/${x}_${y}.jpg?v=${info.version}${isBlurred ? `.${generation}` : ""}`;
      },
    };
  }

  prepare() {
    const { viewer } = this;
    const name = this.section.dataset.name;
    const zoom = (factor) => viewer.viewport.zoomBy(factor).applyConstraints();
    viewer.canvas.setAttribute("role", "application");
    viewer.canvas.setAttribute("aria-label", `${name}: arrows move, plus and minus zoom, 0 shows the whole slide`);
    viewer.navigator.element.setAttribute("aria-hidden", "true");
    for (const one of viewer.navigator.element.querySelectorAll("[tabindex]")) one.tabIndex = -1;
    viewer.addHandler("canvas-key", (event) => {
      const { key, code } = event.originalEvent;
      if ("rRfF".includes(key)) event.preventDefaultAction = true; // turning and mirroring
      if ("+-".includes(key) && code !== "Equal" && code !== "Minus") zoom(key === "+" ? 1.5 : 1 / 1.5); // other keyboards
    });
    viewer.addHandler("viewport-change", () => this.showScale());
    viewer.addHandler("animation-start", () => {
      this.section.dataset.still = "0";
    });
    viewer.addHandler("animation-finish", () => {
      this.section.dataset.still = "1";
      this.showValue(viewer.viewport.getCenter());
    });
    viewer.canvas.addEventListener("pointermove", (event) => {
      const box = viewer.canvas.getBoundingClientRect();
      const place = new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top);
      this.showValue(viewer.viewport.viewerElementToViewportCoordinates(place));
    });
    this.find("[name=in]").addEventListener("click", () => zoom(2));
    this.find("[name=out]").addEventListener("click", () => zoom(0.5));
    this.find("[name=home]").addEventListener("click", () => viewer.viewport.goHome());
    this.find("[name=full]").addEventListener("click", () => {
      if (document.fullscreenElement) document.exitFullscreen();
      else this.section.requestFullscreen();
    });
  }

  /* Follows how much of the slide was read, and shows it. */
  async watch() {
    let shown = this.info.read_share, failed = 0;
    this.section.dataset.sharp = "0";
    while (!this.info.sharp) {
      this.find(".progress").textContent = `sharpening: ${Math.floor(this.info.read_share * 100)} % read`;
      await new Promise((resolve) => setTimeout(resolve, failed < TRIES ? POLL_MS : LOST_MS));
      try {
        this.info = await ask(`${this.path}/info.json`);
        if (failed >= TRIES) this.find(".error").hidden = true;
        failed = 0;
      } catch (error) {
        failed += 1;
        if (failed === TRIES) this.fail(error);
        continue;
      }
      if (this.info.sharp || this.info.read_share >= shown + NEWS) {
        shown = this.info.read_share;
        await this.replace();
      }
    }
    const { damaged_blocks: damaged } = this.info;
    this.find(".progress").textContent = damaged ? `damaged: ${damaged} part(s) cannot be read` : "";
    this.section.dataset.sharp = "1";
    if (shown < 1 || this.generation) this.fetchOverlay();
  }

  /* Looks now and then whether the slide is read by another process than before, whose first tiles may be blurred: the
     one before ends when nobody asks for long. */
  async recheck() {
    if (this.section.dataset.sharp !== "1" || this.info.blurred_level === null) return;
    if (Date.now() < (this.checked || 0) + AGAIN_MS) return;
    this.checked = Date.now();
    try {
      const info = await ask(`${this.path}/info.json`);
      if (info.opening === this.info.opening || this.section.dataset.sharp !== "1") return;
      this.info = info;
      this.reopened = true;
      if (info.sharp) await this.replace();
      else this.watch();
    } catch {
      this.checked = 0; // the next tile asks once more
    }
  }

  /* Loads the slide's tiles anew behind the shown ones, then shows them. */
  replace() {
    this.generation += 1;
    this.section.dataset.generation = this.generation;
    const old = this.viewer.world.getItemAt(0);
    return new Promise((resolve) => {
      const done = (item) => {
        item.setOpacity(1);
        this.viewer.world.removeItem(old);
        resolve();
      };
      this.viewer.addTiledImage({
        tileSource: this.source(),
        opacity: 0,
        preload: true,
        success: ({ item }) => {
          if (item.getFullyLoaded()) done(item);
          else item.addOnceHandler("fully-loaded-change", () => done(item));
        },
        error: resolve,
      });
    });
  }

  async fetchOverlay() {
    const { run, image } = this.section.dataset;
    const query = run && image ? `?${new URLSearchParams({ run, image })}` : "";
    try {
      const facts = await ask(`${this.path}/overlay.json${query}`);
      const size = facts.slide_px;
      if (size && (size[0] !== this.info.width_px || size[1] !== this.info.height_px)) {
        throw new Error("the run is of another file: its slide has another size");
      }
      this.overlay.take(facts);
      if (facts.missing) this.fail(Object.assign(new Error(facts.missing.error), { code: facts.missing.code }));
    } catch (error) {
      this.fail(error);
    }
    this.section.dispatchEvent(new CustomEvent("overlay"));
  }

  showScale() {
    const image = this.viewer.world.getItemAt(0);
    if (!image) return;
    const px = 1 / image.viewportToImageZoom(this.viewer.viewport.getZoom(true)); // of the slide, a pixel of the screen
    const { widthPx, text } = barOf(px * (this.info.mpp || 1), Boolean(this.info.mpp));
    this.find(".scale-bar").hidden = false;
    this.find(".bar").style.width = `${widthPx}px`;
    this.find(".length").textContent = text;
  }

  showValue(place) {
    const image = this.viewer.world.getItemAt(0);
    if (!image || !this.overlay.legend) return;
    const { x, y } = image.viewportToImageCoordinates(place);
    const found = this.overlay.at(x, y);
    const attention = found && found.attention !== null ? `, attention ${found.attention.toFixed(4)}` : "";
    this.find(".value").textContent = found ? `${this.overlay.legend.name} ${found.p.toFixed(3)}${attention}` : "";
  }

  /* Asks for a tile that did not come once more, for the reason. */
  async explain(tile) {
    const now = Date.now();
    if (now < (this.explained || 0) + 5000) return;
    this.explained = now;
    await ask(tile.getUrl()).catch((error) => this.fail(error));
  }
}

const LEADING = ["pointerdown", "wheel", "keydown", "focusin"]; // what moves a pane, or is about to; pointing at it is not

/* Lets two panes show the same part: in micrometres where both are known, else in parts of the slides' widths. */
function link(panes, isOn) {
  let leader = null;
  const width = ({ info }) => info.width_px * info.mpp; // micrometres
  const middle = ({ info }) => new OpenSeadragon.Point(0.5, info.height_px / info.width_px / 2);
  /* Puts a pane where the other one is, or where that one is gliding to. */
  const follow = (pane, other, isNow) => {
    const [from, to] = [other.viewer.viewport, pane.viewer.viewport];
    const ratio = pane.info.mpp && other.info.mpp ? width(pane) / width(other) : 1;
    const offset = from.getCenter(isNow).minus(middle(other)).divide(ratio);
    to.zoomTo(from.getZoom(isNow) * ratio, null, true);
    to.panTo(middle(pane).plus(offset), true);
  };
  panes.forEach((pane, number) => {
    const other = panes[1 - number];
    const lead = () => {
      if (leader === other && isOn() && other.section.dataset.still === "0") follow(pane, other, false);
      leader = pane;
    };
    for (const kind of LEADING) pane.section.addEventListener(kind, lead, { capture: true });
    pane.viewer.addHandler("viewport-change", () => {
      if (isOn() && leader === pane) follow(other, pane, true);
    });
  });
}

function control(name) {
  return document.querySelector(`.viewer-tools [name=${name}]`);
}

function prepareControls(panes) {
  const apply = () => {
    for (const { overlay } of panes.filter((pane) => pane.overlay)) {
      overlay.look = {
        tissue: control("tissue").checked,
        tiles: control("tiles").checked,
        colour: control("colour").value,
        opacity: Number(control("opacity").value),
      };
      overlay.draw();
    }
    describe(panes);
  };
  for (const name of ["tissue", "tiles", "colour", "opacity"]) control(name).addEventListener("input", apply);
  for (const pane of panes) pane.section.addEventListener("overlay", apply);
}

/* Shows what the colours mean, once a run's tiles are there. */
function describe(panes) {
  const overlay = panes.map((pane) => pane.overlay).find((one) => one && one.legend && one.groups.length);
  document.querySelector(".of-tiles").hidden = !overlay;
  if (!overlay) return;
  const { ramp, text, top } = overlay.legend;
  const isAttention = control("colour").value === "attention";
  control("colour").querySelector("[value=attention]").disabled = !overlay.hasAttention;
  const stops = ramp.map(([at, ...colour]) => `rgb(${colour.join(" ")}) ${at * 100}%`);
  document.querySelector(".ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  document.querySelector(".high").textContent = isAttention ? "most" : String(top);
  document.querySelector(".meaning").textContent = isAttention ? "attention, as a share of the slide's most" : text;
}

async function main() {
  const panes = [...document.querySelectorAll(".pane")].map((section) => new Pane(section));
  if (!panes.length) return;
  prepareControls(panes);
  await Promise.all(panes.map((pane) => pane.open()));
  if (panes.length === 2 && panes.every((pane) => pane.viewer)) link(panes, () => control("linked").checked);
}

main();
