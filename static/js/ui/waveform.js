/** A track's waveform: wavesurfer draws the server's peaks; the sound itself is the player's. */

import WaveSurfer from '../../vendor/wavesurfer.esm.js';
import RegionsPlugin from '../../vendor/regions.esm.js';
import { extremes, prepare, token } from './canvas.js';

/**
 * @typedef {object} Options
 * @property {HTMLElement} host
 * @property {string} nonce for wavesurfer's one <style>, under the page's policy
 * @property {[number, number][]} peaks
 * @property {number} seconds
 * @property {number} height
 * @property {(seconds: number) => void} seek
 * @property {(loop: {start: number, end: number}) => void} [loop] a region was dragged
 */

/** @param {HTMLElement} host */
function colours(host) {
  return {
    waveColor: token(host, '--wave'),
    progressColor: token(host, '--wave-played'),
    cursorColor: token(host, '--text'),
  };
}

/**
 * @param {Options} options
 */
export function waveform({ host, nonce, peaks, seconds, height, seek, loop }) {
  const regions = RegionsPlugin.create();
  const drawn = WaveSurfer.create({
    container: host,
    height,
    cspNonce: nonce,
    peaks: [peaks.map(([, high]) => high), peaks.map(([low]) => Math.abs(low))],
    duration: Math.max(0.01, seconds),
    cursorWidth: 2,
    barWidth: 2,
    barGap: 1,
    barRadius: 1,
    normalize: true,
    dragToSeek: { debounceTime: 0 },
    plugins: [regions],
    ...colours(host),
  });
  drawn.on('interaction', seek);
  if (loop) regions.on('region-updated', (region) => loop({ start: region.start, end: region.end }));
  let before = -1;
  /** @type {{start: number, end: number} | null} */
  let looped = null;
  let ready = false;
  const showLoop = () => {
    const known = regions.getRegions()[0];
    if (looped && known) known.setOptions(looped);
    else if (looped) regions.addRegion({ ...looped, color: token(host, '--loop'), minLength: 0.1 });
    else regions.clearRegions();
  };
  // A region that is added earlier is lost.
  drawn.once('ready', () => {
    ready = true;
    showLoop();
  });
  return {
    /** @param {number} time seconds */
    show(time) {
      if (Math.abs(time - before) < 0.004) return;
      before = time;
      drawn.setTime(time);
    },
    /** @param {{start: number, end: number} | null} span */
    showLoop(span) {
      looped = span;
      if (ready) showLoop();
    },
    /** After a change of theme. */
    repaint() {
      drawn.setOptions(colours(host));
    },
    dispose() {
      drawn.destroy();
    },
  };
}

/**
 * Draw peaks on a canvas of our own: growing ones, and small ones that need no library.
 * @param {HTMLCanvasElement} canvas
 * @param {readonly (readonly [number, number])[]} peaks
 * @param {{share: number, played: number}} extent how much of the width the peaks fill, and how much was played
 */
export function drawPeaks(canvas, peaks, { share, played }) {
  const ready = prepare(canvas);
  if (!ready) return;
  const { pen, width, height } = ready;
  const bar = 3;
  const count = Math.max(1, Math.floor((width * share) / bar));
  const [quiet, loud] = [token(canvas, '--wave'), token(canvas, '--wave-played')];
  const loudest = peaks.reduce((most, [low, high]) => Math.max(most, high, -low), 0.05);
  for (let index = 0; index < count && peaks.length > 0; index += 1) {
    const [low, high] = extremes(peaks, index, count);
    const middle = height / 2;
    const scale = (middle - 1) / loudest;
    pen.fillStyle = (index * bar) / width < played ? loud : quiet;
    pen.fillRect(index * bar, middle - Math.max(0.5, high * scale), 2, Math.max(1, (high - low) * scale));
  }
}
