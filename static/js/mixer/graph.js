/**
 * The nodes of a mix, the same for listening and for rendering: each stem through its gain and pan into one bus. A
 * stretch of music is one node with the channels of every stem: however late it is started, all of them start at once.
 */

import { NEUTRAL, heardGain } from './law.js';

/**
 * @typedef {import('./law.js').Strips} Strips
 * @typedef {import('./source.js').Stereo} Stereo
 * @typedef {{gain: GainNode, pan: StereoPannerNode}} Channel
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
    /** Takes the stems' channels, two each in the order of the names. */
    this.input = context.createChannelSplitter(2 * names.length);
    /** @type {Map<string, Channel>} */
    this.channels = new Map(names.map((name, index) => [name, this.channel(index)]));
  }

  /** @param {number} index of the stem @returns {Channel} */
  channel(index) {
    const sides = this.context.createChannelMerger(2);
    this.input.connect(sides, 2 * index, 0);
    this.input.connect(sides, 2 * index + 1, 1);
    const gain = this.context.createGain();
    const pan = this.context.createStereoPanner();
    sides.connect(gain).connect(pan).connect(this.bus);
    return { gain, pan };
  }

  /**
   * @param {Strips} strips
   * @param {{ramp: boolean}} how at once before anything sounds, ramped while it does
   */
  set(strips, { ramp }) {
    for (const [name, { gain, pan }] of this.channels) {
      this.move(gain.gain, heardGain(strips, name), ramp);
      this.move(pan.pan, (strips[name] ?? NEUTRAL).pan, ramp);
    }
  }

  /** @param {AudioParam} param @param {number} value @param {boolean} ramp */
  move(param, value, ramp) {
    if (ramp) param.setTargetAtTime(value, this.context.currentTime, RAMP_S);
    else param.value = value;
  }

  /**
   * Sound a stretch of all stems, to the frame: their samples go into one buffer of exactly that length.
   * @param {AudioNode} into the graph's input, or what leads to it
   * @param {ReadonlyMap<string, Stereo>} stems
   * @param {number} from first frame of each stem's samples
   * @param {number} frames
   * @param {number} at frame of the context's clock
   * @returns {AudioBufferSourceNode}
   */
  sound(into, stems, from, frames, at) {
    const buffer = this.context.createBuffer(2 * this.channels.size, frames, this.context.sampleRate);
    [...this.channels.keys()].forEach((name, index) => {
      stems.get(name)?.forEach((side, which) => buffer.copyToChannel(side.subarray(from, from + frames), 2 * index + which));
    });
    const node = this.context.createBufferSource();
    node.buffer = buffer;
    node.connect(into);
    node.start(at / this.context.sampleRate);
    return node;
  }

  dispose() {
    this.input.disconnect();
    for (const { gain, pan } of this.channels.values()) {
      gain.disconnect();
      pan.disconnect();
    }
    this.bus.disconnect();
  }
}
