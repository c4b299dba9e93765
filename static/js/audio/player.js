/**
 * The page's one player: one thing sounds at a time, whether a track, a take or a job that is still being made.
 * Views read its state and draw; none of them owns a sound.
 */

import { decodeWhole } from './pcm.js';
import { ElementVoice, SampleVoice } from './voices.js';

/**
 * @typedef {import('./pcm.js').Pcm} Pcm
 * @typedef {import('./voices.js').Voice} Voice
 *
 * @typedef {object} Sound
 * @property {string} key 'track:NAME' or 'job:ID'
 * @property {string} [url] a file
 * @property {Pcm} [pcm] or samples
 * @property {number} seconds 0 while it is not known
 * @property {number} sampleRateHz
 * @property {number} [gainDb] to match another's loudness
 * @property {boolean} [loops] its end leads into its start: it plays round and round unless it is told not to
 */

const FADE_S = 0.02;
/** Longest clip that is held in memory for a gapless loop. */
const LOOP_IN_MEMORY_S = 600;

/** Emits 'change' when its state does; the time is read, not told. */
export class Player extends EventTarget {
  constructor() {
    super();
    /** @type {Sound | null} */
    this.sound = null;
    /** @type {Voice | null} */
    this.voice = null;
    this.playing = false;
    /** Another part of the page sounds by itself, as the mixer does. */
    this.aside = false;
    /** @type {{start: number, end: number} | null} */
    this.loop = null;
    this.volume = 1;
    /** @type {Error | null} */
    this.problem = null;
    this.rest = 0;
    /** Only the seam is heard: the sound's end, then its start. */
    this.seamOnly = false;
    /** @type {AbortController | null} */
    this.fetching = null;
    /** @type {Promise<Pcm> | null} what is being fetched */
    this.coming = null;
    /** @type {Map<number, AudioContext>} one a sample rate; 0 is the device's own */
    this.contexts = new Map();
    /** Which load is the latest: an older one that arrives late is dropped. */
    this.turn = 0;
  }

  get key() {
    return this.sound?.key ?? null;
  }

  get time() {
    return this.voice ? this.voice.time : this.rest;
  }

  get seconds() {
    return this.sound?.pcm ? Math.max(this.sound.seconds, this.sound.pcm.seconds) : (this.sound?.seconds ?? 0);
  }

  get waiting() {
    return this.playing && (this.voice ? this.voice.waiting : this.fetching !== null);
  }

  /** Somebody listens to something: nothing may sound, or take its place, by itself. */
  get busy() {
    return this.playing || this.aside;
  }

  /** @param {boolean} sounds */
  setAside(sounds) {
    if (sounds === this.aside) return;
    this.aside = sounds;
    this.tell();
  }

  /** @param {string} key */
  isPlaying(key) {
    return this.playing && this.key === key;
  }

  tell() {
    this.dispatchEvent(new Event('change'));
  }

  /**
   * Make this the sound. The one before sounds on until the new one does, so a change of take has no hole in it.
   * @param {Sound} sound
   * @param {{at?: number, play?: boolean}} [options]
   */
  async load(sound, { at = 0, play = false } = {}) {
    this.turn += 1;
    this.fetching?.abort();
    this.fetching = null;
    const before = this.voice;
    this.voice = null;
    this.sound = sound;
    this.loop = sound.loops ? { start: 0, end: sound.seconds } : null;
    this.seamOnly = false;
    this.problem = null;
    this.rest = at;
    this.playing = play;
    try {
      if (play) await this.start(at);
    } finally {
      this.retire(before);
    }
    this.tell();
  }

  /** @param {Voice | null} voice */
  retire(voice) {
    if (!voice) return;
    voice.setGain(0, FADE_S);
    setTimeout(() => voice.dispose(), FADE_S * 2000);
  }

  /** @param {number} at */
  async start(at) {
    const { turn } = this;
    this.rest = at;
    this.playing = true;
    this.tell();
    if (this.sound?.loops && !this.voice) {
      // From a media element the first time round would have a gap.
      await this.fetchSamples();
      if (turn !== this.turn || !this.playing) return;
    }
    const voice = this.voice ?? this.makeVoice();
    this.voice = voice;
    voice.setGain(this.gain(), 0);
    voice.setLoop(this.loop);
    try {
      await voice.play(this.rest);
    } catch (problem) {
      // A play that a pause or another load overtook is no failure.
      if (turn === this.turn && !(problem instanceof DOMException && problem.name === 'AbortError')) this.fail(problem);
    }
  }

  /** @param {unknown} problem */
  fail(problem) {
    this.playing = false;
    // A voice that failed stays silent: the next press makes another.
    this.rest = this.time;
    this.retire(this.voice);
    this.voice = null;
    this.problem = problem instanceof Error ? problem : new Error(String(problem));
    this.tell();
  }

  /** @returns {Voice} */
  makeVoice() {
    const sound = /** @type {Sound} */ (this.sound);
    if (sound.pcm) return new SampleVoice(this.context(sound.pcm.sampleRateHz), sound.pcm, this.told());
    return new ElementVoice(this.context(0), sound.url ?? '', this.told());
  }

  /** @returns {import('./voices.js').Told} */
  told() {
    const { turn } = this;
    // A voice that fades out under the next one has no more say.
    const mine = (/** @type {() => void} */ act) => () => turn === this.turn && act();
    return { changed: () => this.tell(), ended: mine(() => this.ended()), failed: (problem) => mine(() => this.fail(problem))() };
  }

  /** @param {number} rate */
  context(rate) {
    const known = this.contexts.get(rate);
    if (known) return known;
    const made = rate > 0 ? new AudioContext({ sampleRate: rate }) : new AudioContext();
    this.contexts.set(rate, made);
    return made;
  }

  gain() {
    // Loudness is heard in decibels: the square is a fader that feels even.
    return this.volume ** 2 * 10 ** ((this.sound?.gainDb ?? 0) / 20);
  }

  ended() {
    this.playing = false;
    this.seamOnly = false;
    this.rest = 0;
    this.voice?.seek(0);
    this.tell();
    this.dispatchEvent(new Event('ended'));
  }

  async play() {
    if (!this.sound || this.playing) return;
    const end = this.seconds;
    const at = this.time >= end - 0.05 && end > 0 && !this.growing ? 0 : this.time;
    await this.start(at);
  }

  get growing() {
    return this.sound?.pcm ? !this.sound.pcm.ended : false;
  }

  pause() {
    if (!this.playing) return;
    this.voice?.pause();
    this.playing = false;
    this.seamOnly = false;
    this.tell();
  }

  async toggle() {
    if (this.playing) this.pause();
    else await this.play();
  }

  /** @param {number} seconds */
  seek(seconds) {
    const at = Math.min(Math.max(0, seconds), this.seconds);
    this.rest = at;
    if (this.seamOnly) this.voice?.setLoop(this.loop);
    this.seamOnly = false;
    this.voice?.seek(at);
    this.tell();
  }

  /** @param {number} volume 0 to 1 */
  setVolume(volume) {
    this.volume = volume;
    this.voice?.setGain(this.gain(), FADE_S);
    this.tell();
  }

  /** @param {{start: number, end: number} | null} loop */
  setLoop(loop) {
    this.loop = loop;
    this.seamOnly = false;
    this.voice?.setLoop(loop);
    this.tell();
    if (loop) void this.toMemory();
  }

  /** @returns {Promise<boolean>} the sound's samples are in memory; no when they cannot be, or another sound came */
  async fetchSamples() {
    const { sound, turn } = this;
    if (sound?.pcm) return true;
    if (!sound?.url || sound.seconds > LOOP_IN_MEMORY_S) return false;
    if (!this.fetching || !this.coming) {
      this.fetching = new AbortController();
      this.coming = decodeWhole(sound.url, sound.sampleRateHz, this.fetching.signal);
    }
    try {
      const pcm = await this.coming;
      if (turn !== this.turn || !this.sound) return false;
      this.sound = { ...this.sound, pcm };
      return true;
    } catch {
      return false;
    } finally {
      if (turn === this.turn) this.fetching = this.coming = null;
    }
  }

  /** Change from the media element to samples in memory, for loops without a gap. */
  async toMemory() {
    const { sound, turn } = this;
    // A sound that is there already, or that somebody waits for, is theirs. Where it cannot be had the element goes
    // on looping, a painted frame's worth less exactly.
    if (sound?.pcm || this.fetching || !(await this.fetchSamples()) || turn !== this.turn) return;
    const [at, before] = [this.time, this.voice];
    this.voice = null;
    this.rest = at;
    if (this.playing) await this.start(before ? before.time : at);
    this.retire(before);
  }

  /**
   * How the end leads into the start: the last seconds, then the first, without a gap; then silence.
   * @param {number} spanS on each side
   */
  async hearSeam(spanS) {
    const { sound } = this;
    if (!sound) return;
    this.turn += 1;
    const { turn } = this;
    const span = Math.min(spanS, sound.seconds / 2);
    this.retire(this.voice);
    this.voice = null;
    this.problem = null;
    this.rest = sound.seconds - span;
    this.playing = this.seamOnly = true;
    this.tell();
    const there = await this.fetchSamples();
    if (turn !== this.turn || !this.playing) return;
    const pcm = this.sound?.pcm;
    if (!there || !pcm) {
      this.seamOnly = false;
      this.fail(new Error('no samples'));
      return;
    }
    const voice = new SampleVoice(this.context(pcm.sampleRateHz), pcm, this.told());
    this.voice = voice;
    voice.setGain(this.gain(), 0);
    voice.setLoop({ start: 0, end: sound.seconds });
    await voice.play(this.rest, 2 * span);
  }

  /**
   * The job that is heard has become a track: the same samples sound on under the track's name.
   * @param {string} from
   * @param {Sound} track
   */
  becomes(from, track) {
    if (this.key !== from) return;
    const pcm = this.sound?.pcm;
    this.sound = pcm ? { ...track, pcm } : track;
    this.tell();
  }

  /** Silence, and nothing loaded. */
  unload() {
    this.turn += 1;
    this.fetching?.abort();
    this.fetching = null;
    this.retire(this.voice);
    this.voice = null;
    this.sound = null;
    this.playing = false;
    this.loop = null;
    this.rest = 0;
    this.tell();
  }
}

/**
 * @param {import('../contract.js').Track} track
 * @param {string} url
 * @param {number} [gainDb]
 * @returns {Sound}
 */
export function trackSound(track, url, gainDb = 0) {
  return { key: `track:${track.name}`, url, seconds: track.duration_s, sampleRateHz: track.sample_rate_hz, gainDb, loops: Boolean(track.loop) };
}

/**
 * How much to turn each take down so that all are as loud as the quietest.
 * @param {readonly (number | null | undefined)[]} lufs
 * @returns {number[]} decibels, none above 0
 */
export function matchLoudness(lufs) {
  const known = lufs.filter((value) => typeof value === 'number');
  if (known.length < 2) return lufs.map(() => 0);
  const target = Math.min(...known);
  return lufs.map((value) => (typeof value === 'number' ? target - value : 0));
}
