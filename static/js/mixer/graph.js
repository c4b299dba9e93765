/**
 * The nodes of a mix, the same for listening and for rendering: each stem through its gain and pan into one bus.
 */

import { NEUTRAL, heardGain } from './law.js';

/**
 * @typedef {import('./law.js').Strips} Strips
 * @typedef {import('./source.js').Stereo} Stereo
 * @typedef {{input: GainNode, pan: StereoPannerNode}} Channel
 */

/** Time constant of every change that is heard: three of them pass before the ear could hear a click. */
export const RAMP_S = 0.008;

export class Graph {
  /**
   * @param {BaseAudioContext} context
   * @param {readonly string[]} names
   */
  constructor(context, names) {
    this.context = context;
    this.bus = context.createGain();
    this.bus.connect(context.destination);
    /** @type {Map<string, Channel>} */
    this.channels = new Map(names.map((name) => [name, this.channel()]));
  }

  /** @returns {Channel} */
  channel() {
    const input = this.context.createGain();
    const pan = this.context.createStereoPanner();
    input.connect(pan).connect(this.bus);
    return { input, pan };
  }

  /**
   * @param {Strips} strips
   * @param {{ramp: boolean}} how at once before anything sounds, ramped while it does
   */
  set(strips, { ramp }) {
    for (const [name, { input, pan }] of this.channels) {
      this.move(input.gain, heardGain(strips, name), ramp);
      this.move(pan.pan, (strips[name] ?? NEUTRAL).pan, ramp);
    }
  }

  /** @param {AudioParam} param @param {number} value @param {boolean} ramp */
  move(param, value, ramp) {
    if (ramp) param.setTargetAtTime(value, this.context.currentTime, RAMP_S);
    else param.value = value;
  }

  /**
   * Sound a stretch of a stem, to the frame: its samples go into a buffer of exactly that length.
   * @param {AudioNode} into
   * @param {Stereo} samples
   * @param {number} from first frame of `samples`
   * @param {number} frames
   * @param {number} at frame of the context's clock
   * @returns {AudioBufferSourceNode}
   */
  sound(into, samples, from, frames, at) {
    const buffer = this.context.createBuffer(2, frames, this.context.sampleRate);
    samples.forEach((side, index) => buffer.copyToChannel(side.subarray(from, from + frames), index));
    const node = this.context.createBufferSource();
    node.buffer = buffer;
    node.connect(into);
    node.start(at / this.context.sampleRate);
    return node;
  }

  dispose() {
    for (const { input, pan } of this.channels.values()) {
      input.disconnect();
      pan.disconnect();
    }
    this.bus.disconnect();
  }
}
