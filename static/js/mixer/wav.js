/** WAV files by the byte: where frames lie in one, samples out of its bytes, and bytes for a new one. */

/**
 * @typedef {object} Layout
 * @property {number} sampleRateHz
 * @property {number} channels
 * @property {number} frames
 * @property {'float' | 'int'} kind
 * @property {number} bits
 * @property {number} dataAt byte where the samples begin
 */

/** A header's chunks before the samples are rarely longer than this. */
export const HEADER_BYTES = 4096;

/**
 * @param {ArrayBuffer} head the file's first bytes
 * @returns {Layout}
 * @throws {RangeError} it is no WAV that can be played in pieces
 */
export function readLayout(head) {
  const view = new DataView(head);
  const tag = (/** @type {number} */ at) => String.fromCharCode(...new Uint8Array(head, at, 4));
  if (head.byteLength < 44 || tag(0) !== 'RIFF' || tag(8) !== 'WAVE') throw new RangeError('not a WAV');
  /** @type {Omit<Layout, 'frames' | 'dataAt'> | null} */
  let format = null;
  let at = 12;
  while (at + 8 <= head.byteLength) {
    const size = view.getUint32(at + 4, true);
    const name = tag(at);
    if (name === 'data') {
      if (!format) throw new RangeError('samples before their format');
      return { ...format, dataAt: at + 8, frames: Math.floor(size / frameBytes(format)) };
    }
    if (name === 'fmt ') format = readFormat(view, at + 8, size);
    at += 8 + size + (size % 2);
  }
  throw new RangeError('a WAV whose samples begin too late');
}

/** @param {DataView} view @param {number} at @param {number} size @returns {Omit<Layout, 'frames' | 'dataAt'>} */
function readFormat(view, at, size) {
  const [code, channels, sampleRateHz, bits] = [view.getUint16(at, true), view.getUint16(at + 2, true), view.getUint32(at + 4, true), view.getUint16(at + 14, true)];
  // An extensible format keeps its code in the first two bytes of its long name.
  const real = code === 0xfffe && size >= 26 ? view.getUint16(at + 24, true) : code;
  const known = (real === 3 && bits === 32) || (real === 1 && (bits === 16 || bits === 24));
  if (!known || channels < 1 || channels > 8) throw new RangeError(`a WAV of format ${real} with ${bits} bits in ${channels} channels cannot be mixed`);
  return { sampleRateHz, channels, kind: real === 3 ? 'float' : 'int', bits };
}

/** @param {{channels: number, bits: number}} layout */
export function frameBytes({ channels, bits }) {
  return (channels * bits) / 8;
}

/**
 * The bytes of frames [from, to), the last one included as HTTP ranges have it.
 * @param {Layout} layout
 * @param {number} from
 * @param {number} to
 */
export function byteRange(layout, from, to) {
  const width = frameBytes(layout);
  return { first: layout.dataAt + from * width, last: layout.dataAt + to * width - 1 };
}

/**
 * Samples as two channels: a mono stem is heard on both sides, so that its pan has the law of a stereo one.
 * @param {ArrayBuffer} bytes whole frames
 * @param {Pick<Layout, 'channels' | 'bits' | 'kind'>} layout
 * @returns {[Float32Array<ArrayBuffer>, Float32Array<ArrayBuffer>]}
 */
export function readStereo(bytes, layout) {
  const { channels } = layout;
  const frames = Math.floor(bytes.byteLength / frameBytes(layout));
  const read = reader(bytes, layout);
  const left = new Float32Array(frames);
  const right = channels === 1 ? left : new Float32Array(frames);
  for (let frame = 0; frame < frames; frame += 1) {
    left[frame] = read(frame * channels);
    if (channels > 1) right[frame] = read(frame * channels + 1);
  }
  return [left, right];
}

/**
 * @param {ArrayBuffer} bytes
 * @param {Pick<Layout, 'bits' | 'kind'>} layout
 * @returns {(sample: number) => number}
 */
function reader(bytes, { kind, bits }) {
  const view = new DataView(bytes);
  if (kind === 'float') return (sample) => view.getFloat32(sample * 4, true);
  if (bits === 16) return (sample) => view.getInt16(sample * 2, true) / 0x8000;
  return (sample) => ((view.getInt8(sample * 3 + 2) << 16) | view.getUint16(sample * 3, true)) / 0x800000;
}

/**
 * @param {number} sampleRateHz
 * @param {number} frames of two channels
 * @param {'float' | 'int24'} format
 * @returns {ArrayBuffer}
 */
export function wavHeader(sampleRateHz, frames, format) {
  const float = format === 'float';
  const width = float ? 8 : 6;
  // A float format carries its number of frames in a chunk of its own.
  const fact = float ? 12 : 0;
  const head = new DataView(new ArrayBuffer(44 + fact));
  const text = (/** @type {number} */ at, /** @type {string} */ word) => [...word].forEach((letter, index) => head.setUint8(at + index, letter.charCodeAt(0)));
  text(0, 'RIFF');
  head.setUint32(4, 36 + fact + frames * width, true);
  text(8, 'WAVEfmt ');
  head.setUint32(16, 16, true);
  head.setUint16(20, float ? 3 : 1, true);
  head.setUint16(22, 2, true);
  head.setUint32(24, sampleRateHz, true);
  head.setUint32(28, sampleRateHz * width, true);
  head.setUint16(32, width, true);
  head.setUint16(34, width * 4, true);
  if (float) {
    text(36, 'fact');
    head.setUint32(40, 4, true);
    head.setUint32(44, frames, true);
  }
  text(36 + fact, 'data');
  head.setUint32(40 + fact, frames * width, true);
  return head.buffer;
}

/**
 * Interleaved samples of two channels as a WAV's bytes.
 * @param {Float32Array} samples
 * @param {'float' | 'int24'} format
 * @param {number} gain
 * @returns {ArrayBuffer}
 */
export function writeSamples(samples, format, gain) {
  if (format === 'float') {
    const out = new DataView(new ArrayBuffer(samples.length * 4));
    samples.forEach((sample, index) => out.setFloat32(index * 4, sample * gain, true));
    return out.buffer;
  }
  const bytes = new Uint8Array(samples.length * 3);
  for (let index = 0; index < samples.length; index += 1) {
    const scaled = Math.round((samples[index] ?? 0) * gain * 0x800000);
    const value = Math.max(-0x800000, Math.min(0x7fffff, scaled));
    bytes[index * 3] = value & 0xff;
    bytes[index * 3 + 1] = (value >> 8) & 0xff;
    bytes[index * 3 + 2] = (value >> 16) & 0xff;
  }
  return bytes.buffer;
}
