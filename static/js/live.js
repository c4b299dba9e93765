/** Jobs heard while they are made: one stream a job, its samples and its growing peaks. */

import * as api from './api.js';
import { isFinal } from './models/jobs.js';
import { follow } from './audio/pcm.js';
import { trackSound } from './audio/player.js';

/**
 * @typedef {import('./audio/pcm.js').Pcm} Pcm
 * @typedef {import('./contract.js').Job} Job
 * @typedef {import('./store.js').Store} Store
 * @typedef {import('./audio/player.js').Player} Player
 *
 * @typedef {object} Stream
 * @property {Pcm | null} pcm
 * @property {[number, number][]} peaks one a BIN_S of sound
 * @property {boolean} ended nothing more comes
 */

export const BIN_S = 0.05;
/** Streams of jobs that are over are kept for as long as they may be playing; older ones go. */
const KEPT = 3;

/** Emits 'change' with the job's id as detail when a stream grows. */
export class Live extends EventTarget {
  /**
   * @param {Store} store
   * @param {Player} player
   * @param {(clientId: string) => boolean} mine whether this page asked for the job
   */
  constructor(store, player, mine) {
    super();
    this.store = store;
    this.player = player;
    this.mine = mine;
    /** @type {Map<string, Stream>} by job id */
    this.streams = new Map();
    this.stop = store.watch((state) => state.jobs, (jobs) => this.look(Object.values(jobs)));
  }

  /** @param {Job[]} jobs */
  look(jobs) {
    for (const job of jobs) {
      // What was asked for elsewhere has no bubble here to be heard in.
      const shown = () => this.store.state.chat.some((entry) => entry.id === job.client_id);
      if (job.live && job.status === 'running' && !this.streams.has(job.id) && shown()) void this.open(job);
      if (isFinal(job) && this.streams.has(job.id)) this.settle(job);
    }
  }

  /** @param {Job} job */
  async open(job) {
    /** @type {Stream} */
    const stream = { pcm: null, peaks: [], ended: false };
    this.streams.set(job.id, stream);
    for (const id of [...this.streams.keys()].slice(0, -KEPT)) {
      if (this.player.key !== `job:${id}`) this.streams.delete(id);
    }
    try {
      await follow(api.liveAudioUrl(job.id), AbortSignal.timeout(24 * 3600 * 1000), (pcm) => {
        stream.pcm = pcm;
        pcm.onGrow(() => this.grow(job.id, stream));
        this.begin(job, pcm);
      });
    } catch {
      // The job goes on without being heard; its bubble says how it ends.
    }
    stream.ended = true;
    stream.pcm?.end();
    this.tell(job.id);
  }

  /** @param {Job} job @param {Pcm} pcm */
  begin(job, pcm) {
    const { live } = this.store.state.prefs;
    if (!live || this.player.busy || !this.mine(job.client_id)) return;
    void this.player.load(this.sound(job.id, pcm), { play: true });
  }

  /** @param {string} id @param {Pcm} pcm */
  sound(id, pcm) {
    return { key: `job:${id}`, pcm, seconds: 0, sampleRateHz: pcm.sampleRateHz };
  }

  /** @param {string} id */
  toggle(id) {
    const pcm = this.streams.get(id)?.pcm;
    if (!pcm) return;
    if (this.player.key === `job:${id}`) void this.player.toggle();
    else void this.player.load(this.sound(id, pcm), { play: true });
  }

  /** @param {string} id @param {number} seconds */
  seek(id, seconds) {
    const pcm = this.streams.get(id)?.pcm;
    if (!pcm) return;
    if (this.player.key === `job:${id}`) this.player.seek(Math.min(seconds, pcm.seconds));
    else void this.player.load(this.sound(id, pcm), { play: true, at: Math.min(seconds, pcm.seconds) });
  }

  /** @param {string} id @param {Stream} stream */
  grow(id, stream) {
    const pcm = /** @type {Pcm} */ (stream.pcm);
    const bin = Math.round(BIN_S * pcm.sampleRateHz);
    stream.peaks.push(...pcm.peaks(stream.peaks.length * bin, bin));
    this.tell(id);
  }

  /** @param {string} id */
  tell(id) {
    this.dispatchEvent(new CustomEvent('change', { detail: id }));
  }

  /**
   * A loop is a stretch of what was heard: the place in the music stays, and from here on it goes round.
   * @param {import('./contract.js').Track} track
   * @param {number} startS where in what was heard the loop begins
   */
  turnRound(track, startS) {
    const { player } = this;
    const at = player.time - startS;
    const seconds = track.duration_s;
    void player.load(trackSound(track, api.audioUrl(track.name)), { at: ((at % seconds) + seconds) % seconds, play: player.playing });
  }

  /** Music that was made before the page saw its job run sounds now, as the track it has become. @param {Job} job */
  catchUp(job) {
    const track = this.store.state.tracks[job.tracks[0] ?? ''];
    if (job.kind !== 'generate' || job.status !== 'done' || !track || this.streams.get(job.id)?.pcm) return;
    if (!this.store.state.prefs.live || this.player.busy) return;
    void this.player.load(trackSound(track, api.audioUrl(track.name)), { play: true });
  }

  /** What is heard of a finished job goes on under its track's name. @param {Job} job */
  settle(job) {
    if (this.player.key !== `job:${job.id}`) return;
    const name = job.tracks[0] ?? job.track;
    const track = name ? this.store.state.tracks[name] : undefined;
    if (track?.loop) this.turnRound(track, track.loop.start_s);
    else if (track) this.player.becomes(`job:${job.id}`, trackSound(track, api.audioUrl(track.name)));
    else if (!name) this.player.pause();
  }
}
