/**
 * A stem's samples, fetched piece by piece as they are needed and forgotten soon after: a stem of ten minutes is
 * 212 MB as samples, and a tab that held four of them would be near a gigabyte.
 */

import { HEADER_BYTES, byteRange, readLayout, readStereo } from './wav.js';

/**
 * @typedef {import('./wav.js').Layout} Layout
 * @typedef {[Float32Array<ArrayBuffer>, Float32Array<ArrayBuffer>]} Stereo
 */

export const PIECE_S = 4;
/** Pieces a stem keeps: the one that sounds, the next ones, and some for a loop that turns back. */
export const PIECES_KEPT = 6;

export class StemSource {
  /**
   * @param {string} url
   * @param {(url: string, init: RequestInit) => Promise<Response>} [get]
   */
  constructor(url, get = (address, init) => fetch(address, init)) {
    this.url = url;
    this.get = get;
    /** @type {Promise<Layout> | null} */
    this.opening = null;
    /** Pieces by number, the longest unused first. @type {Map<number, Promise<Stereo>>} */
    this.pieces = new Map();
  }

  /** @param {AbortSignal} signal @returns {Promise<Layout>} */
  layout(signal) {
    this.opening ??= this.bytes(0, HEADER_BYTES - 1, signal).then(readLayout);
    this.opening.catch(() => {
      this.opening = null; // the next try asks again
    });
    return this.opening;
  }

  /** @param {Layout} layout */
  static pieceFrames(layout) {
    return Math.round(PIECE_S * layout.sampleRateHz);
  }

  /**
   * @param {number} index
   * @param {AbortSignal} signal
   * @returns {Promise<Stereo>} frames [index * pieceFrames, …), fewer in the last piece
   */
  piece(index, signal) {
    const known = this.pieces.get(index);
    if (known) {
      this.pieces.delete(index);
      this.pieces.set(index, known);
      return known;
    }
    const made = this.load(index, signal);
    this.pieces.set(index, made);
    made.catch(() => this.pieces.delete(index));
    for (const old of this.pieces.keys()) {
      if (this.pieces.size <= PIECES_KEPT) break;
      this.pieces.delete(old);
    }
    return made;
  }

  /** @param {number} index @param {AbortSignal} signal @returns {Promise<Stereo>} */
  async load(index, signal) {
    const layout = await this.layout(signal);
    const from = index * StemSource.pieceFrames(layout);
    const to = Math.min(layout.frames, from + StemSource.pieceFrames(layout));
    if (to <= from) return [new Float32Array(0), new Float32Array(0)];
    const { first, last } = byteRange(layout, from, to);
    return readStereo(await this.bytes(first, last, signal), layout);
  }

  /** @param {number} first @param {number} last @param {AbortSignal} signal */
  async bytes(first, last, signal) {
    const answer = await this.get(this.url, { headers: { Range: `bytes=${first}-${last}` }, signal });
    if (answer.status !== 206) throw new Error(`the stem answered ${answer.status}`);
    return answer.arrayBuffer();
  }

  forget() {
    this.pieces.clear();
  }
}
