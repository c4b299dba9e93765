/**
 * What is heard, as a file: rendered piece by piece by the browser's own audio thread and encoded in a worker, so
 * that the page stays quick and ten minutes need no more memory than ten seconds.
 */

import { Graph } from './graph.js';
import { isHeard } from './law.js';
import { StemSource } from './source.js';

/**
 * @typedef {import('./law.js').Strips} Strips
 * @typedef {import('./wav.js').Layout} Layout
 * @typedef {'float' | 'int24'} Format
 * @typedef {{blob: Blob, gain: number, peak: number, frames: number}} Rendered `gain` below 1: it was turned down
 */

/**
 * @param {object} asked
 * @param {ReadonlyMap<string, StemSource>} asked.sources
 * @param {Layout} asked.layout
 * @param {Strips} asked.strips
 * @param {{start: number, end: number} | null} asked.span frames; null is all
 * @param {Format} asked.format
 * @param {AbortSignal} asked.signal
 * @param {(share: number) => void} asked.progress
 * @returns {Promise<Rendered>}
 */
export async function render({ sources, layout, strips, span, format, signal, progress }) {
  const { start, end } = span ?? { start: 0, end: layout.frames };
  const encoder = new Encoder();
  signal.addEventListener('abort', () => encoder.dispose());
  try {
    const heard = [...sources].filter(([name]) => isHeard(strips, name));
    const piece = StemSource.pieceFrames(layout);
    for (let from = start; from < end; ) {
      signal.throwIfAborted();
      const frames = Math.min(end - from, piece - (from % piece));
      encoder.add(await renderPiece(heard, layout, strips, from, frames, signal));
      from += frames;
      progress((from - start) / (end - start));
    }
    signal.throwIfAborted();
    return await encoder.finish(layout.sampleRateHz, format);
  } finally {
    encoder.dispose();
  }
}

/**
 * Gain and pan have no memory, so pieces rendered apart and joined are the whole.
 * @param {readonly [string, StemSource][]} heard
 * @param {Layout} layout
 * @param {Strips} strips
 * @param {number} from
 * @param {number} frames at most to the end of a source's piece
 * @param {AbortSignal} signal
 * @returns {Promise<AudioBuffer>}
 */
async function renderPiece(heard, layout, strips, from, frames, signal) {
  const context = new OfflineAudioContext(2, frames, layout.sampleRateHz);
  if (heard.length === 0) return context.startRendering(); // silence
  const graph = new Graph(context, heard.map(([name]) => name));
  graph.set(strips, { ramp: false });
  const piece = StemSource.pieceFrames(layout);
  const index = Math.floor(from / piece);
  const stems = await Promise.all(heard.map(async ([name, source]) => /** @type {const} */ ([name, await source.piece(index, signal)])));
  graph.sound(graph.input, new Map(stems), from % piece, frames, 0);
  return context.startRendering();
}

/** The worker that encodes. */
class Encoder {
  constructor() {
    this.worker = new Worker(new URL('./encoder.js', import.meta.url), { type: 'module' });
    /** @type {Promise<Rendered>} */
    this.done = new Promise((resolve, reject) => {
      this.reject = reject;
      this.worker.addEventListener('message', ({ data }) => (data.problem ? reject(new Error(data.problem)) : resolve(data)));
      this.worker.addEventListener('error', (event) => reject(new Error(event.message || 'the encoder stopped')));
    });
    // Whoever waits hears of a failure; nobody may be waiting yet.
    this.done.catch(() => {});
  }

  /** @param {AudioBuffer} rendered */
  add(rendered) {
    const sides = [0, 1].map((channel) => rendered.getChannelData(channel).slice());
    this.worker.postMessage({ type: 'add', sides }, sides.map((side) => side.buffer));
  }

  /** @param {number} sampleRateHz @param {Format} format */
  finish(sampleRateHz, format) {
    this.worker.postMessage({ type: 'finish', sampleRateHz, format });
    return this.done;
  }

  dispose() {
    this.worker.terminate();
    this.reject?.(new DOMException('cancelled', 'AbortError'));
  }
}
