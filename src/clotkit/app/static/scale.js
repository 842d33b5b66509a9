/* A scale bar: a round length of at most WIDEST_PX on the screen. */

const WIDEST_PX = 140;
const STEPS = [1, 2, 5];

/* The length and its name, for `unit` units per pixel of the screen. */
export function barOf(perPx, isMicrons) {
  const most = perPx * WIDEST_PX;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = Math.max(...STEPS.map((step) => step * power).filter((one) => one <= most));
  return { widthPx: length / perPx, text: isMicrons ? micrometres(length) : `${length.toLocaleString("en")} px` };
}

function micrometres(length) {
  if (length >= 1000) return `${(length / 1000).toLocaleString("en")} mm`;
  return length >= 1 ? `${length.toLocaleString("en")} \u00b5m` : `${Math.round(length * 1000)} nm`;
}
