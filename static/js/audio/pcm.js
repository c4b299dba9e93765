/** Sound in memory that may still be growing, and the reading of a WAV as it arrives. */

const CHUNK_FRAMES = 32_768;

/** Samples of one clip: channels side by side, appended to while it is being made. */
export class Pcm {
  /**
   * @param {number} sampleRateHz
   * @param {number} channels
   */
  constructor(sampleRateHz, channels) {
    this.sampleRateHz = sampleRateHz;
    this.channels = channels;
    this.frames = 0;
    this.ended = false;
    /** @type {Float32Array[][]} blocks of CHUNK_FRAMES frames, each [channel][frame] */
    this.blocks = [];
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  get seconds() {
    return this.frames / this.sampleRateHz;
  }

  /** @param {readonly Float32Array[]} added [channels][frames] in [-1, 1] */
  append(added) {
    const count = added[0]?.length ?? 0;
    let read = 0;
    while (read < count) {
      const at = this.frames % CHUNK_FRAMES;
      if (at === 0) this.blocks.push(Array.from({ length: this.channels }, () => new Float32Array(CHUNK_FRAMES)));
      const block = /** @type {Float32Array[]} */ (this.blocks.at(-1));
      const taken = Math.min(count - read, CHUNK_FRAMES - at);
      block.forEach((channel, index) => channel.set(/** @type {Float32Array} */ (added[index]).subarray(read, read + taken), at));
      this.frames += taken;
      read += taken;
    }
    this.tell();
  }

  end() {
    this.ended = true;
    this.tell();
  }

  tell() {
    for (const listener of [...this.listeners]) listener();
  }

  /** @param {() => void} listener @returns {() => void} */
  onGrow(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /**
   * @param {number} channel
   * @param {number} from frame
   * @param {number} to frame, not included
   * @returns {Float32Array<ArrayBuffer>} a copy
   */
  slice(channel, from, to) {
    const out = new Float32Array(Math.max(0, to - from));
    let at = from;
    while (at < to) {
      const block = /** @type {Float32Array} */ (this.blocks[Math.floor(at / CHUNK_FRAMES)]?.[channel]);
      const start = at % CHUNK_FRAMES;
      const taken = Math.min(to - at, CHUNK_FRAMES - start);
      out.set(block.subarray(start, start + taken), at - from);
      at += taken;
    }
    return out;
  }

  /**
   * The lowest and highest sample of each stretch of `binFrames`, over all channels, from frame `from` on.
   * @param {number} from frame, a multiple of binFrames
   * @param {number} binFrames
   * @returns {[number, number][]} only full bins, unless the clip has ended
   */
  peaks(from, binFrames) {
    /** @type {[number, number][]} */
    const found = [];
    for (let at = from; at < this.frames && (at + binFrames <= this.frames || this.ended); at += binFrames) {
      const end = Math.min(this.frames, at + binFrames);
      let [low, high] = [0, 0];
      for (let channel = 0; channel < this.channels; channel += 1) {
        for (const sample of this.slice(channel, at, end)) {
          if (sample < low) low = sample;
          else if (sample > high) high = sample;
        }
      }
      found.push([low, high]);
    }
    return found;
  }
}

/**
 * Reads a 16-bit PCM WAV whose sizes are not known yet, in pieces of any length.
 */
export class WavReader {
  constructor() {
    /** @type {Uint8Array} bytes not used yet */
    this.rest = new Uint8Array(0);
    /** @type {Pcm | null} known once the header was read */
    this.pcm = null;
    this.inData = false;
  }

  /**
   * @param {Uint8Array} bytes
   * @throws {RangeError} it is not a 16-bit PCM WAV
   */
  push(bytes) {
    const joined = new Uint8Array(this.rest.length + bytes.length);
    joined.set(this.rest);
    joined.set(bytes, this.rest.length);
    this.rest = joined;
    if (!this.inData) this.readHeader();
    if (this.inData) this.readSamples();
  }

  readHeader() {
    const bytes = this.rest;
    if (bytes.length < 12) return;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const tag = (/** @type {number} */ at) => String.fromCharCode(...bytes.subarray(at, at + 4));
    if (tag(0) !== 'RIFF' || tag(8) !== 'WAVE') throw new RangeError('not a WAV');
    let at = 12;
    while (at + 8 <= bytes.length) {
      const name = tag(at);
      const size = view.getUint32(at + 4, true);
      if (name === 'data') {
        if (!this.pcm) throw new RangeError('samples before their format');
        this.rest = bytes.slice(at + 8);
        this.inData = true;
        return;
      }
      if (at + 8 + size > bytes.length) return;
      if (name === 'fmt ') this.pcm = format(view, at + 8);
      at += 8 + size + (size % 2);
    }
  }

  readSamples() {
    const pcm = /** @type {Pcm} */ (this.pcm);
    const width = 2 * pcm.channels;
    const frames = Math.floor(this.rest.length / width);
    if (frames === 0) return;
    const view = new DataView(this.rest.buffer, this.rest.byteOffset, frames * width);
    const channels = Array.from({ length: pcm.channels }, (_, channel) => {
      const samples = new Float32Array(frames);
      for (let frame = 0; frame < frames; frame += 1) {
        samples[frame] = view.getInt16(frame * width + 2 * channel, true) / 32768;
      }
      return samples;
    });
    this.rest = this.rest.slice(frames * width);
    pcm.append(channels);
  }
}

/**
 * @param {DataView} view
 * @param {number} at
 */
function format(view, at) {
  const [code, channels, rate, bits] = [view.getUint16(at, true), view.getUint16(at + 2, true), view.getUint32(at + 4, true), view.getUint16(at + 14, true)];
  if (![1, 0xfffe].includes(code) || bits !== 16) throw new RangeError(`a WAV of format ${code} with ${bits} bits cannot be played live`);
  if (channels < 1 || channels > 8 || rate < 8000 || rate > 192_000) throw new RangeError('a WAV out of range');
  return new Pcm(rate, channels);
}

/**
 * Follow a job's audio as it is made.
 * @param {string} url
 * @param {AbortSignal} signal
 * @param {(pcm: Pcm) => void} started called once the format is known
 * @returns {Promise<void>} when all has arrived; at once, without `started`, when there is nothing to hear any more
 */
export async function follow(url, signal, started) {
  const answer = await fetch(url, { signal });
  if (!answer.ok) throw new Error(`live audio answered ${answer.status}`);
  if (!answer.body) return; // The job ended before it was asked for.
  const reader = new WavReader();
  const stream = answer.body.getReader();
  let told = false;
  for (;;) {
    const { done, value } = await stream.read();
    if (value) reader.push(value);
    if (!told && reader.pcm) {
      told = true;
      started(reader.pcm);
    }
    if (done) break;
  }
  reader.pcm?.end();
}

/**
 * A whole file as samples at its own rate, so that loops can be cut to the sample.
 * @param {string} url
 * @param {number} sampleRateHz
 * @param {AbortSignal} signal
 */
export async function decodeWhole(url, sampleRateHz, signal) {
  const answer = await fetch(url, { signal });
  if (!answer.ok) throw new Error(`audio answered ${answer.status}`);
  const decoder = new OfflineAudioContext(1, 1, sampleRateHz);
  const decoded = await decoder.decodeAudioData(await answer.arrayBuffer());
  const pcm = new Pcm(decoded.sampleRate, decoded.numberOfChannels);
  pcm.append(Array.from({ length: decoded.numberOfChannels }, (_, channel) => decoded.getChannelData(channel)));
  pcm.end();
  return pcm;
}
