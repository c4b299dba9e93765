/**
 * The worker behind a mixdown. It keeps the rendered pieces as blobs, which the browser may put on the disk, until
 * the loudest sample of all is known: only then is it clear by how much the whole must be turned down.
 */

import { safeGain } from './law.js';
import { wavHeader, writeSamples } from './wav.js';

/** @type {Blob[]} */
const parts = [];
let peak = 0;
let frames = 0;

/** @param {readonly [Float32Array, Float32Array]} sides */
function add([left, right]) {
  const both = new Float32Array(left.length * 2);
  for (let frame = 0; frame < left.length; frame += 1) {
    const [l, r] = [left[frame] ?? 0, right[frame] ?? 0];
    both[2 * frame] = l;
    both[2 * frame + 1] = r;
    peak = Math.max(peak, Math.abs(l), Math.abs(r));
  }
  frames += left.length;
  parts.push(new Blob([both.buffer]));
}

/** @param {number} sampleRateHz @param {'float' | 'int24'} format */
async function finish(sampleRateHz, format) {
  const gain = safeGain(peak);
  /** @type {(ArrayBuffer | Blob)[]} */
  const file = [wavHeader(sampleRateHz, frames, format)];
  for (const part of parts) file.push(new Blob([writeSamples(new Float32Array(await part.arrayBuffer()), format, gain)]));
  return { blob: new Blob(file, { type: 'audio/wav' }), gain, peak, frames };
}

let working = Promise.resolve();
globalThis.addEventListener('message', ({ data }) => {
  working = working
    .then(async () => {
      if (data.type === 'add') add(data.sides);
      else globalThis.postMessage(await finish(data.sampleRateHz, data.format));
    })
    .catch((problem) => globalThis.postMessage({ problem: String(problem) }));
});
