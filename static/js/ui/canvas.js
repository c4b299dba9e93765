/** What every picture on a canvas begins with. */

/** @param {Element} host @param {string} name @returns {string} the theme's value */
export const token = (host, name) => getComputedStyle(host).getPropertyValue(name).trim();

/**
 * Give a canvas the pixels its place on the screen has.
 * @param {HTMLCanvasElement} canvas
 * @returns {{pen: CanvasRenderingContext2D, width: number, height: number} | null} null while it has no size
 */
export function prepare(canvas) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const pen = canvas.getContext('2d');
  if (width === 0 || height === 0 || !pen) return null;
  const ratio = Math.min(2, devicePixelRatio || 1);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  pen.scale(ratio, ratio);
  return { pen, width, height };
}

/**
 * The least and the greatest value, 0 included, of one of `count` equal stretches of the peaks.
 * @param {readonly (readonly [number, number])[]} peaks
 * @param {number} index
 * @param {number} count
 * @returns {[low: number, high: number]}
 */
export function extremes(peaks, index, count) {
  const from = Math.floor((index * peaks.length) / count);
  const to = Math.max(from + 1, Math.floor(((index + 1) * peaks.length) / count));
  let [low, high] = [0, 0];
  for (const [down, up] of peaks.slice(from, to)) {
    low = Math.min(low, down);
    high = Math.max(high, up);
  }
  return [low, high];
}
