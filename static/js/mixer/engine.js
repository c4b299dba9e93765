/**
 * Plays stems together: one clock, one start. A piece of the music is laid on the context's clock when it is there for
 * every stem, as one node that sounds them all, so they cannot drift apart.
 */

import { nextPiece, positionAt } from '../audio/schedule.js';
import { Graph, RAMP_S } from './graph.js';
import { StemSource } from './source.js';

/**
 * @typedef {import('../audio/schedule.js').Piece} Piece
 * @typedef {import('../audio/schedule.js').Span} Span
 * @typedef {import('./law.js').Strips} Strips
 * @typedef {import('./source.js').Stereo} Stereo
 * @typedef {import('./wav.js').Layout} Layout
 *
 * @typedef {object} Run one stretch of playing, from a start to a pause or a seek
 * @property {GainNode} fade all channels of all stems
 * @property {Set<AudioBufferSourceNode>} nodes
 * @property {Piece[]} pieces in order of time
 * @property {number} next frame of the music that is laid down next
 * @property {number} clock frame of the clock where it goes; -1 before the first piece
 */

const TICK_MS = 150;
const AHEAD_S = 1.2;
/** From laying the first piece to hearing it. */
const LEAD_S = 0.03;
const METER_SIZE = 1024;

/** Emits 'change' when its state does; time and levels are read, not told. */
export class MixEngine extends EventTarget {
  /**
   * @param {BaseAudioContext} context at the stems' own rate
   * @param {ReadonlyMap<string, StemSource>} sources
   * @param {Layout} layout what the stems have in common
   * @param {Strips} strips
   */
  constructor(context, sources, layout, strips) {
    super();
    this.context = context;
    this.sources = sources;
    this.frames = layout.frames;
    this.rate = layout.sampleRateHz;
    this.pieceFrames = StemSource.pieceFrames(layout);
    this.graph = new Graph(context, [...sources.keys()]);
    this.graph.set(strips, { ramp: false });
    this.meters = new Map([...this.graph.channels].map(([name, { pan }]) => [name, this.meter(pan)]));
    this.master = this.meter(this.graph.bus);
    this.playing = false;
    this.waiting = false;
    /** @type {Error | null} */
    this.problem = null;
    /** @type {Span | null} in frames */
    this.loop = null;
    this.rest = 0;
    /** @type {Run | null} */
    this.run = null;
    /** @type {Promise<void> | null} */
    this.pumping = null;
    this.timer = 0;
    this.ending = new AbortController();
  }

  /** @param {AudioNode} node */
  meter(node) {
    const meter = this.context.createAnalyser();
    meter.fftSize = METER_SIZE;
    node.connect(meter);
    return { meter, samples: new Float32Array(METER_SIZE) };
  }

  get now() {
    return this.context.currentTime * this.rate;
  }

  /** Frame of the music that is heard now. */
  get position() {
    return this.run ? Math.min(this.frames, positionAt(this.run.pieces, this.now, this.rest)) : this.rest;
  }

  get time() {
    return this.position / this.rate;
  }

  get seconds() {
    return this.frames / this.rate;
  }

  tell() {
    this.dispatchEvent(new Event('change'));
  }

  // -------------------------------------------------------------------------------------------- transport
  async play() {
    if (this.playing) return;
    if (this.rest >= this.frames - 1) this.rest = 0;
    this.playing = true;
    this.problem = null;
    this.tell();
    if (this.context instanceof AudioContext) {
      if (this.context.state !== 'running') await this.context.resume();
      if (!this.playing || this.timer !== 0) return;
      this.timer = window.setInterval(() => void this.pump(), TICK_MS);
    }
    this.begin();
    await this.pump();
  }

  pause() {
    if (!this.playing) return;
    this.rest = Math.round(this.position);
    this.halt();
    this.tell();
  }

  halt() {
    this.playing = false;
    this.waiting = false;
    clearInterval(this.timer);
    this.timer = 0;
    this.stopRun();
  }

  /** @param {number} seconds */
  seek(seconds) {
    this.rest = this.frameAt(seconds);
    if (this.playing) this.restart();
    this.tell();
  }

  /** @param {{start: number, end: number} | null} span in seconds */
  setLoop(span) {
    this.loop = span ? { start: this.frameAt(span.start), end: this.frameAt(span.end) } : null;
    if (this.playing) {
      // What is laid down already may run past the new end.
      this.rest = Math.round(this.position);
      this.restart();
    }
    this.tell();
  }

  /** @param {number} seconds */
  frameAt(seconds) {
    return Math.min(this.frames, Math.max(0, Math.round(seconds * this.rate)));
  }

  /** @param {Strips} strips */
  setStrips(strips) {
    this.graph.set(strips, { ramp: true });
  }

  /** @param {number} gain */
  setVolume(gain) {
    this.graph.move(this.graph.bus.gain, gain, true);
  }

  restart() {
    this.stopRun();
    this.begin();
    void this.pump();
  }

  begin() {
    const fade = this.context.createGain();
    fade.channelInterpretation = 'discrete';
    fade.connect(this.graph.input);
    this.run = { fade, nodes: new Set(), pieces: [], next: this.rest, clock: -1 };
  }

  /** The old stretch fades while the new one is laid down: no click at a seek. */
  stopRun() {
    const old = this.run;
    this.run = null;
    if (!old) return;
    const { currentTime } = this.context;
    old.fade.gain.setTargetAtTime(0, currentTime, RAMP_S / 2);
    for (const node of old.nodes) node.stop(currentTime + 4 * RAMP_S);
    if (old.nodes.size === 0) old.fade.disconnect();
  }

  // ------------------------------------------------------------------------------------------- scheduling
  /** Lay down what must sound soon. Called by the clock; one at a time. @returns {Promise<void>} when that is done */
  pump() {
    this.pumping ??= this.fill().finally(() => {
      this.pumping = null;
    });
    return this.pumping;
  }

  async fill() {
    try {
      while (this.playing && this.run && (await this.step(this.run)));
    } catch (problem) {
      if (!this.ending.signal.aborted) this.fail(problem);
    }
  }

  /**
   * @param {Run} run
   * @returns {Promise<boolean>} there is more to lay down now
   */
  async step(run) {
    if (run.clock > this.now + AHEAD_S * this.rate) return false;
    const most = this.pieceFrames - (run.next % this.pieceFrames);
    const piece = nextPiece(run.next, this.frames, this.loop, most);
    if (!piece) {
      if (this.now >= run.clock) this.ended();
      return false;
    }
    const index = Math.floor(piece.from / this.pieceFrames);
    const stems = await this.fetched(index, run);
    if (run !== this.run || !this.playing) return true; // another run began meanwhile: its turn
    this.wait(false);
    if (run.clock < this.now) this.startLate(run);
    this.lay(run, stems, piece);
    run.pieces = [...run.pieces.filter((one) => one.at + one.frames > this.now), { at: run.clock, ...piece }];
    run.clock += piece.frames;
    run.next = piece.next;
    this.prefetch(run.next);
    return true;
  }

  /**
   * @param {number} index
   * @param {Run} run
   * @returns {Promise<Map<string, Stereo>>}
   */
  async fetched(index, run) {
    const all = [...this.sources].map(async ([name, source]) => /** @type {const} */ ([name, await source.piece(index, this.ending.signal)]));
    const late = setTimeout(() => this.wait(run === this.run && this.playing && run.clock < this.now), 250);
    try {
      return new Map(await Promise.all(all));
    } finally {
      clearTimeout(late);
    }
  }

  /** The first piece, or one that came too late: it starts here, faded in. @param {Run} run */
  startLate(run) {
    run.clock = Math.ceil(this.now + LEAD_S * this.rate);
    const at = run.clock / this.rate;
    const { gain } = run.fade;
    gain.setValueAtTime(0, 0);
    gain.setValueAtTime(0, at);
    gain.linearRampToValueAtTime(1, at + RAMP_S);
  }

  /**
   * @param {Run} run
   * @param {ReadonlyMap<string, Stereo>} stems
   * @param {{from: number, frames: number}} piece
   */
  lay(run, stems, piece) {
    const node = this.graph.sound(run.fade, stems, piece.from % this.pieceFrames, piece.frames, run.clock);
    run.nodes.add(node);
    node.onended = () => {
      node.disconnect();
      run.nodes.delete(node);
      if (run !== this.run && run.nodes.size === 0) run.fade.disconnect();
    };
  }

  /** @param {number} next */
  prefetch(next) {
    if (next >= this.frames) return;
    const index = Math.floor(next / this.pieceFrames);
    // A failure shows when the piece is needed.
    for (const source of this.sources.values()) source.piece(index, this.ending.signal).catch(() => {});
  }

  /** @param {boolean} waiting */
  wait(waiting) {
    if (waiting === this.waiting) return;
    this.waiting = waiting;
    this.tell();
  }

  ended() {
    this.rest = 0;
    this.halt();
    this.tell();
  }

  /** @param {unknown} problem */
  fail(problem) {
    this.rest = Math.round(this.position);
    this.problem = problem instanceof Error ? problem : new Error(String(problem));
    this.halt();
    this.tell();
  }

  // ----------------------------------------------------------------------------------------------- levels
  /** @param {string} [name] a stem; the whole mix without one @returns {number} peak, linear */
  level(name) {
    const found = name === undefined ? this.master : this.meters.get(name);
    if (!found || !this.playing) return 0;
    found.meter.getFloatTimeDomainData(found.samples);
    let peak = 0;
    for (const sample of found.samples) peak = Math.max(peak, Math.abs(sample));
    return peak;
  }

  dispose() {
    this.halt();
    this.ending.abort();
    for (const source of this.sources.values()) source.forget();
    // The last fade is still sounding.
    setTimeout(() => this.graph.dispose(), 100);
  }
}
