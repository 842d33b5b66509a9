/* Draws what a run or the tissue finder says of a slide over it, and finds the tile at a place. */

const CELL_PX = 4096; // side of the squares, in pixels of the slide, by which tiles are looked up
const TISSUE_COLOUR = "#006e28";

export class Overlay {
  constructor(viewer, imageOf) {
    this.viewer = viewer;
    this.imageOf = imageOf; // gives the picture of the slide within the viewer
    this.canvas = document.createElement("canvas");
    this.canvas.className = "overlay";
    viewer.canvas.append(this.canvas);
    this.groups = [];
    this.cells = new Map();
    this.look = { tissue: true, tiles: true, colour: "p", opacity: 0.5 };
    viewer.addHandler("update-viewport", () => this.draw());
    viewer.addHandler("resize", () => this.draw());
  }

  take(facts) {
    this.legend = facts.legend;
    this.groups = facts.tiles;
    this.outline = facts.tissue && facts.tissue.outline ? new Path2D(facts.tissue.outline) : null;
    this.origin = facts.tissue ? facts.tissue.origin_px : [0, 0];
    this.cells.clear();
    for (const group of this.groups) {
      group.most = (group.attention || []).reduce((most, one) => Math.max(most, one), 0) || 1;
      group.xy.forEach((_, index) => this.remember(group, index));
    }
    this.draw();
  }

  remember(group, index) {
    const [x, y] = group.xy[index];
    for (let column = Math.floor(x / CELL_PX); column * CELL_PX < x + group.size_px[0]; column += 1) {
      for (let row = Math.floor(y / CELL_PX); row * CELL_PX < y + group.size_px[1]; row += 1) {
        const key = `${column} ${row}`;
        if (!this.cells.has(key)) this.cells.set(key, []);
        this.cells.get(key).push({ group, index });
      }
    }
  }

  /* The tile at a place of the slide: its numbers, or null. */
  at(x, y) {
    const near = this.cells.get(`${Math.floor(x / CELL_PX)} ${Math.floor(y / CELL_PX)}`) || [];
    const found = near.findLast(({ group, index }) => {
      const [left, top] = group.xy[index];
      return x >= left && x < left + group.size_px[0] && y >= top && y < top + group.size_px[1];
    });
    if (!found) return null;
    const { group, index } = found;
    return { p: group.p[index] * this.legend.top, attention: group.attention ? group.attention[index] : null };
  }

  get hasAttention() {
    return this.groups.some((group) => group.attention);
  }

  colourOf(share) {
    const { ramp } = this.legend;
    const after = Math.max(1, ramp.findIndex(([at]) => at >= share));
    const [low, high] = [ramp[after - 1], ramp[after]];
    const part = (share - low[0]) / (high[0] - low[0]);
    return `rgb(${[1, 2, 3].map((i) => Math.round(low[i] + (high[i] - low[i]) * part)).join(" ")})`;
  }

  draw() {
    const image = this.imageOf();
    if (!image) return;
    const ratio = window.devicePixelRatio || 1;
    const size = this.viewer.viewport.getContainerSize();
    const [width, height] = [Math.round(size.x * ratio), Math.round(size.y * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    const zoom = image.viewportToImageZoom(this.viewer.viewport.getZoom(true));
    const origin = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const seen = [-origin.x / zoom, -origin.y / zoom, (size.x - origin.x) / zoom, (size.y - origin.y) / zoom];
    const scale = ratio * zoom;
    pen.setTransform(scale, 0, 0, scale, ratio * origin.x, ratio * origin.y);
    if (this.look.tiles) this.drawTiles(pen, seen);
    if (this.look.tissue && this.outline) {
      pen.translate(...this.origin);
      pen.lineWidth = 2 / zoom;
      pen.strokeStyle = TISSUE_COLOUR;
      pen.stroke(this.outline);
    }
  }

  drawTiles(pen, [left, top, right, bottom]) {
    pen.globalAlpha = this.look.opacity;
    for (const group of this.groups) {
      const byAttention = this.look.colour === "attention" && group.attention;
      const [width, height] = group.size_px;
      group.xy.forEach(([x, y], index) => {
        if (x > right || y > bottom || x + width < left || y + height < top) return;
        pen.fillStyle = this.colourOf(byAttention ? group.attention[index] / group.most : group.p[index]);
        pen.fillRect(x, y, width, height);
      });
    }
    pen.globalAlpha = 1;
  }
}
