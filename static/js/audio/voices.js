/**
 * Two ways to sound, behind one interface: a media element, which can play a file of any length at once, and
 * samples in memory, which loop without a gap and play while they are still being made.
 */

import { nextPiece, positionAt } from './schedule.js';

/**
 * @typedef {import('./pcm.js').Pcm} Pcm
 * @typedef {import('./schedule.js').Piece} Piece
 * @typedef {import('./schedule.js').Span} Span
 *
 * @typedef {object} Voice
 * @property {number} time seconds
 * @property {boolean} waiting playing, but there is nothing to play yet
 * @property {(gain: number, overS: number) => void} setGain
 * @property {(at: number) => Promise<void>} play resolves once it sounds, or at once when it waits for sound
 * @property {() => void} pause
 * @property {(at: number) => void} seek
 * @property {(loop: {start: number, end: number} | null) => void} setLoop seconds
 * @property {() => void} dispose
 *
 * @typedef {{changed: () => void, ended: () => void, failed: (problem: Error) => void}} Told
 */

const AHEAD_S = 0.35;
const PIECE_S = 0.25;
const TICK_MS = 80;
/** A stream that ran dry goes on once this much has gathered, or it would stutter at every piece. */
const REFILL_S = 0.6;
const FADE_S = 0.05;

/** @param {Float32Array} samples @param {number} frames of the end that fade */
function fadeOut(samples, frames) {
  const fade = Math.min(frames, samples.length);
  for (let index = 0; index < fade; index += 1) {
    const at = samples.length - 1 - index;
    samples[at] = /** @type {number} */ (samples[at]) * (index / fade);
  }
}

/** @implements {Voice} */
export class ElementVoice {
  /**
   * @param {AudioContext} context
   * @param {string} url
   * @param {Told} told
   */
  constructor(context, url, told) {
    this.context = context;
    this.told = told;
    this.media = new Audio();
    this.media.preload = 'auto';
    this.media.src = url;
    this.output = context.createGain();
    context.createMediaElementSource(this.media).connect(this.output).connect(context.destination);
    /** @type {{start: number, end: number} | null} */
    this.loop = null;
    this.frame = 0;
    this.wanted = false;
    this.ending = new AbortController();
    const { signal } = this.ending;
    for (const name of ['waiting', 'playing', 'seeked']) this.media.addEventListener(name, told.changed, { signal });
    this.media.addEventListener('ended', () => this.finished(), { signal });
    this.media.addEventListener('error', () => told.failed(new Error(this.media.error?.message || 'unreadable')), { signal });
  }

  get time() {
    return this.media.currentTime;
  }

  get waiting() {
    return !this.media.paused && this.media.readyState < 3;
  }

  /** @param {number} gain @param {number} overS */
  setGain(gain, overS) {
    this.output.gain.setTargetAtTime(gain, this.context.currentTime, overS / 3);
  }

  finished() {
    if (!this.loop) {
      this.told.ended();
      return;
    }
    this.media.currentTime = this.loop.start;
    void this.media.play();
  }

  /** @param {number} at */
  async play(at) {
    this.wanted = true;
    if (this.context.state !== 'running') await this.context.resume();
    if (!this.wanted) return;
    if (Math.abs(this.media.currentTime - at) > 0.02) this.media.currentTime = at;
    await this.media.play();
    this.watchLoop();
  }

  pause() {
    this.wanted = false;
    cancelAnimationFrame(this.frame);
    this.media.pause();
  }

  /** @param {number} at */
  seek(at) {
    this.media.currentTime = at;
  }

  /** @param {{start: number, end: number} | null} loop */
  setLoop(loop) {
    this.loop = loop;
    if (!this.media.paused) this.watchLoop();
  }

  /** Good to a painted frame; the player changes to samples in memory as soon as it has them. */
  watchLoop() {
    cancelAnimationFrame(this.frame);
    if (!this.loop) return;
    const { start, end } = this.loop;
    let before = this.media.currentTime;
    const check = () => {
      const now = this.media.currentTime;
      if (before < end && now >= end) this.media.currentTime = start;
      before = now;
      this.frame = requestAnimationFrame(check);
    };
    this.frame = requestAnimationFrame(check);
  }

  dispose() {
    this.ending.abort();
    this.pause();
    this.media.removeAttribute('src');
    this.media.load();
    this.output.disconnect();
  }
}

/** @implements {Voice} */
export class SampleVoice {
  /**
   * @param {AudioContext} context running at the clip's own rate: pieces then meet to the frame
   * @param {Pcm} pcm
   * @param {Told} told
   */
  constructor(context, pcm, told) {
    this.context = context;
    this.pcm = pcm;
    this.told = told;
    this.output = context.createGain();
    this.output.connect(context.destination);
    this.playing = false;
    this.waiting = false;
    /** Frame of the clip that is scheduled next, and where on the clock. */
    this.next = 0;
    this.clock = 0;
    this.rest = 0;
    /** @type {Span | null} */
    this.loop = null;
    /** @type {Piece[]} */
    this.pieces = [];
    /** @type {Set<AudioBufferSourceNode>} */
    this.nodes = new Set();
    this.timer = 0;
    /** Frames that are still to be heard before it ends by itself. */
    this.left = Infinity;
    this.stopGrow = pcm.onGrow(() => this.tick());
  }

  get now() {
    return this.context.currentTime * this.pcm.sampleRateHz;
  }

  get time() {
    const frame = this.playing ? positionAt(this.pieces, this.now, this.rest) : this.rest;
    return frame / this.pcm.sampleRateHz;
  }

  /** @param {number} gain @param {number} overS */
  setGain(gain, overS) {
    this.output.gain.setTargetAtTime(gain, this.context.currentTime, overS / 3);
  }

  /** @param {number} at @param {number} [forS] end by itself after so long */
  async play(at, forS = Infinity) {
    this.stopNodes();
    this.left = Math.round(forS * this.pcm.sampleRateHz);
    this.rest = this.next = this.frame(at);
    this.playing = true;
    if (this.context.state !== 'running') await this.context.resume();
    if (!this.playing) return;
    clearInterval(this.timer);
    this.timer = window.setInterval(() => this.tick(), TICK_MS);
    this.tick();
  }

  pause() {
    this.rest = this.frame(this.time);
    this.playing = false;
    this.waiting = false;
    this.stopNodes();
  }

  /** @param {number} at */
  seek(at) {
    if (this.playing) void this.play(at);
    else this.rest = this.frame(at);
  }

  /** @param {{start: number, end: number} | null} loop */
  setLoop(loop) {
    const rate = this.pcm.sampleRateHz;
    // A decoder may give a frame less than the length says: the loop turns where the sound ends.
    const most = this.pcm.ended ? this.pcm.frames : Infinity;
    this.loop = loop ? { start: Math.round(loop.start * rate), end: Math.min(most, Math.round(loop.end * rate)) } : null;
    // What is scheduled already may run past the new end: schedule again from here.
    if (this.playing) void this.play(this.time);
  }

  /** @param {number} seconds */
  frame(seconds) {
    return Math.min(this.pcm.frames, Math.max(0, Math.round(seconds * this.pcm.sampleRateHz)));
  }

  tick() {
    if (!this.playing || this.context.state !== 'running') return;
    const rate = this.pcm.sampleRateHz;
    const idle = this.pieces.length === 0 || this.clock <= this.now;
    if (idle && !this.refilled()) return;
    if (idle) this.clock = Math.ceil(this.now + 0.02 * rate);
    while (this.clock < this.now + AHEAD_S * rate) {
      const piece = nextPiece(this.next, this.pcm.frames, this.loop, Math.min(this.left, Math.round(PIECE_S * rate)));
      if (!piece) break;
      this.left -= piece.frames;
      this.schedule(piece.from, piece.frames);
      this.next = piece.next;
    }
    this.pieces = this.pieces.filter((piece, index) => index >= this.pieces.length - 1 || piece.at + piece.frames > this.now);
  }

  /** @returns {boolean} there is something to go on with; otherwise it waits, or has ended */
  refilled() {
    const left = this.pcm.frames - this.next;
    if (this.left > 0 && left > 0 && (this.pcm.ended || this.loop || left >= REFILL_S * this.pcm.sampleRateHz)) {
      if (this.waiting) {
        this.waiting = false;
        this.told.changed();
      }
      return true;
    }
    if (this.pcm.ended || this.left <= 0) {
      this.pause();
      this.told.ended();
    } else if (!this.waiting) {
      this.waiting = true;
      this.told.changed();
    }
    return false;
  }

  /** @param {number} from @param {number} frames */
  schedule(from, frames) {
    const { sampleRateHz, channels } = this.pcm;
    const buffer = this.context.createBuffer(channels, frames, sampleRateHz);
    for (let channel = 0; channel < channels; channel += 1) {
      const samples = this.pcm.slice(channel, from, from + frames);
      // It ends by itself in the middle of the music: not with a click.
      if (this.left <= 0) fadeOut(samples, Math.round(FADE_S * sampleRateHz));
      buffer.copyToChannel(samples, channel);
    }
    const node = this.context.createBufferSource();
    node.buffer = buffer;
    node.connect(this.output);
    node.start(this.clock / sampleRateHz);
    this.nodes.add(node);
    node.onended = () => {
      this.nodes.delete(node);
      node.disconnect();
    };
    this.pieces.push({ at: this.clock, from, frames });
    this.clock += frames;
  }

  stopNodes() {
    clearInterval(this.timer);
    for (const node of this.nodes) {
      node.onended = null;
      node.stop();
      node.disconnect();
    }
    this.nodes.clear();
    this.pieces = [];
    this.clock = 0;
  }

  dispose() {
    this.stopGrow();
    this.playing = false;
    this.stopNodes();
    this.output.disconnect();
  }
}
