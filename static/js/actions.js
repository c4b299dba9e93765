/** What a person can do, as one call each: the server, the state and the sound kept in step. Views only ask. */

import * as api from './api.js';
import * as chat from './models/chat.js';
import * as library from './models/library.js';
import * as settings from './models/settings.js';
import { isFinal } from './models/jobs.js';
import { matchLoudness, trackSound } from './audio/player.js';

/**
 * @typedef {import('./contract.js').Body} Body
 * @typedef {import('./contract.js').GenerateBody} GenerateBody
 * @typedef {import('./contract.js').Track} Track
 * @typedef {import('./contract.js').Job} Job
 * @typedef {import('./contract.js').Upload} Upload
 * @typedef {import('./models/chat.js').Entry} Entry
 */

const PAGE = 100;
const CHECKED_AT_ONCE = 4;

/** An id that needs no secure context: the page may be open over plain http on a local network. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export class Actions {
  /**
   * @param {import('./store.js').Store} store
   * @param {import('./audio/player.js').Player} player
   * @param {import('./contract.js').Facts} facts
   * @param {(problem: unknown, retry?: () => void) => void} report says what failed where no better place is
   */
  constructor(store, player, facts, report) {
    this.store = store;
    this.player = player;
    this.facts = facts;
    this.report = report;
    /** client_ids this page asked for since it was opened @type {Set<string>} */
    this.asked = new Set();
  }

  get state() {
    return this.store.state;
  }

  model() {
    return this.state.models.find((model) => model.id === this.state.values.model);
  }

  /** The request that the composer stands for now. @returns {GenerateBody} */
  draft() {
    const { prompt, values, attachments } = this.state;
    return settings.request(prompt, values, attachments, this.model());
  }

  /** Send what is in the composer. */
  async send() {
    const { prompt, attachments } = this.state;
    this.store.dispatch({ type: 'prompt', prompt: '' });
    this.store.dispatch({ type: 'attach', attachments: { audioPrompt: null, base: null } });
    // Typed before the page knew which models are here: the answer must come from one that is.
    if (this.state.models.length === 0) await this.refreshModels();
    const body = settings.request(prompt, this.state.values, attachments, this.model());
    /** @type {Record<string, string>} */
    const labels = {};
    if (body.audio_prompt && attachments.audioPrompt) labels.audio_prompt = attachments.audioPrompt.label;
    if (body.continuation && attachments.base) labels.continuation = attachments.base.label;
    return this.ask(body, labels);
  }

  /**
   * @param {Body} body
   * @param {Record<string, string>} labels
   */
  async ask(body, labels) {
    const id = newId();
    this.store.dispatch({ type: 'chat/add', entry: chat.entry(id, body, labels, Date.now()) });
    await this.deliver(id, body);
  }

  /** @param {string} id @param {Body} body */
  async deliver(id, body) {
    this.asked.add(id);
    this.store.dispatch({ type: 'chat/change', id, change: { state: 'sending', error: null, again: 0 } });
    try {
      const job = await api.submit(body, id);
      this.store.dispatch({ type: 'job', job });
    } catch (problem) {
      const error = api.asError(problem);
      const wait = Number(error.details?.retry_after_s ?? 0);
      this.store.dispatch({ type: 'chat/change', id, change: { state: 'refused', error, again: wait > 0 ? Date.now() + wait * 1000 : 0 } });
    }
  }

  /** Try again what was refused, failed or interrupted. @param {Entry} entry @param {Partial<GenerateBody>} [change] */
  retry(entry, change = {}) {
    const body = /** @type {Body} */ ({ ...entry.request, ...change });
    // The server never took a refused one: under the same id it can only become one job.
    if (entry.state === 'refused' && Object.keys(change).length === 0) return this.deliver(entry.id, body);
    return this.ask(body, { ...entry.labels });
  }

  /** The same music again. @param {Entry} entry */
  rerun(entry) {
    const seed = entry.tracks[0]?.seed;
    const body = entry.request.kind === 'generate' && typeof seed === 'number' ? { ...entry.request, seed } : entry.request;
    return this.ask(body, { ...entry.labels });
  }

  /** @param {Track} track */
  rerunTrack(track) {
    return this.ask(this.bodyOf(track, { seed: track.seed, takes: 1 }), labelsOf(track));
  }

  /**
   * @param {Track} track
   * @param {Partial<GenerateBody>} change
   * @returns {GenerateBody}
   */
  bodyOf(track, change) {
    const { asked } = track;
    const values = settings.complete(this.facts.parameters, asked);
    return /** @type {GenerateBody} */ ({
      kind: 'generate',
      prompt: track.prompt,
      ...values,
      audio_prompt: asked.audio_prompt ?? null,
      continuation: asked.continuation ?? null,
      ...change,
    });
  }

  /** Put a request back into the composer for editing. @param {Body} body @param {Readonly<Record<string, string>>} labels */
  reuse(body, labels) {
    if (body.kind !== 'generate') return;
    const { prompt, audio_prompt: audio, continuation } = body;
    this.store.dispatch({ type: 'prompt', prompt });
    this.store.dispatch({ type: 'values', values: settings.complete(this.facts.parameters, body, this.state.values) });
    this.store.dispatch({
      type: 'attach',
      attachments: {
        audioPrompt: audio ? { ref: audio, label: labels.audio_prompt ?? audio.track ?? '', seconds: 0 } : null,
        base: continuation
          ? {
              ref: continuation.track ? { track: continuation.track } : { upload: continuation.upload ?? '' },
              label: labels.continuation ?? continuation.track ?? '',
              seconds: 0,
              mode: continuation.mode,
              from: continuation.from,
            }
          : null,
      },
    });
  }

  /** @param {Track} track */
  reuseTrack(track) {
    this.reuse(this.bodyOf(track, { seed: track.seed }), labelsOf(track));
  }

  /**
   * New music that goes on from a track.
   * @param {Track} track
   * @param {{from: number | null, duration: number, prompt: string}} how
   */
  extend(track, { from, duration, prompt }) {
    const body = this.bodyOf(track, {
      prompt,
      duration,
      seed: -1,
      takes: 1,
      loop: false,
      audio_prompt: null,
      continuation: { track: track.name, mode: 'continue', from },
    });
    return this.ask(body, { continuation: track.name });
  }

  /** @param {{track: string} | {upload: string}} source @param {string} label @param {string} [stems] @param {string} [separator] */
  split(source, label, stems = 'all', separator = 'auto') {
    return this.ask({ kind: 'split', ...source, stems, separator }, { source: label });
  }

  /** @param {Job} job @param {boolean} keep */
  async cancel(job, keep) {
    try {
      this.store.dispatch({ type: 'job', job: await api.cancel(job.id, keep) });
    } catch (problem) {
      this.report(problem);
    }
  }

  /** @param {string} name */
  async open(name) {
    if (!this.state.tracks[name]) {
      try {
        this.store.dispatch({ type: 'track', track: await api.track(name) });
      } catch (problem) {
        if (problem instanceof api.ApiError && problem.status === 404) this.gone(name);
        else this.report(problem, () => void this.open(name));
        return;
      }
    }
    this.store.dispatch({ type: 'open', name });
  }

  /** @param {string} name */
  gone(name) {
    this.store.dispatch({ type: 'library', change: { removed: [name] } });
  }

  /** @param {Track} track */
  toggle(track) {
    if (this.player.key === `track:${track.name}`) return this.player.toggle();
    return this.player.load(trackSound(track, api.audioUrl(track.name)), { play: true });
  }

  /**
   * Hear one take of several, from where the other stands and no louder than it.
   * @param {readonly string[]} names the takes
   * @param {number} index the one to hear
   */
  compare(names, index) {
    const takes = names.map((name) => this.state.tracks[name]);
    const track = takes[index];
    if (!track) return Promise.resolve();
    if (this.player.key === `track:${track.name}`) return this.player.toggle();
    const other = names.some((name) => this.player.key === `track:${name}`);
    const at = other ? Math.min(this.player.time, Math.max(0, track.duration_s - 0.2)) : 0;
    const gains = matchLoudness(takes.map((take) => take?.loudness.integrated_lufs));
    return this.player.load(trackSound(track, api.audioUrl(track.name), gains[index]), { at, play: true });
  }

  /** @param {Track} track @param {{favourite?: boolean, locked?: boolean}} change */
  async mark(track, change) {
    this.store.dispatch({ type: 'track', track: { ...track, ...change } });
    try {
      this.store.dispatch({ type: 'track', track: await api.patch(track.name, change) });
    } catch (problem) {
      this.store.dispatch({ type: 'track', track });
      this.report(problem);
    }
  }

  /** @param {Track} track */
  async remove(track) {
    try {
      await api.remove(track.name);
      // The server tells every page, this one too.
      if (this.state.connection !== 'online') this.gone(track.name);
    } catch (problem) {
      if (problem instanceof api.ApiError && problem.status === 404) this.gone(track.name);
      else this.report(problem);
    }
  }

  /** @param {{tracks: boolean, chat: boolean}} what */
  async clear({ tracks, chat: messages }) {
    if (tracks) {
      await api.removeAll();
      await this.list();
      const left = new Set(this.state.library.names);
      const lost = Object.values(this.state.tracks).filter((track) => !left.has(track.name) && !track.locked);
      if (lost.length > 0) this.store.dispatch({ type: 'library', change: { removed: lost.map((track) => track.name) } });
    }
    if (messages) this.store.dispatch({ type: 'chat/clear' });
  }

  /** The list's first page, or its next. @param {boolean} [more] */
  async list(more = false) {
    const { library: known } = this.state;
    // A cursor is of use only with the filters it came with.
    const next = more && !known.stale;
    this.store.dispatch({ type: 'library/loading' });
    try {
      const page = await api.tracks(library.query(known.filters, next ? known.cursor : '', PAGE));
      const { tracks, next_cursor: cursor, total } = page;
      this.store.dispatch({ type: 'library/page', filters: known.filters, tracks, cursor: cursor ?? '', total, fresh: !next });
    } catch (problem) {
      this.store.dispatch({ type: 'library/failed', error: api.asError(problem) });
    }
  }

  /** Tracks that the page speaks of and the list does not show: are they still there? */
  async checkTracks() {
    const { chat: entries, active, library: listed } = this.state;
    const spoken = entries.flatMap((entry) => entry.tracks.map((track) => track.name).filter((name) => !entry.removed.includes(name)));
    const seen = new Set(listed.names);
    const unsure = [...new Set(active === null ? spoken : [...spoken, active])].filter((name) => !seen.has(name));
    const next = async () => {
      for (let name = unsure.pop(); name !== undefined; name = unsure.pop()) {
        try {
          this.store.dispatch({ type: 'track', track: await api.track(name) });
        } catch (problem) {
          if (problem instanceof api.ApiError && problem.status === 404) this.gone(name);
        }
      }
    };
    await Promise.all(Array.from({ length: CHECKED_AT_ONCE }, next));
  }

  /**
   * A request that the server was given once and no longer knows has been interrupted. A list may be older than the
   * answer to a request that overtook it, so only one that is asked for now can tell.
   * @param {readonly Job[]} listed what came with the connection
   */
  async findLost(listed) {
    const doubtful = chat.missing(this.state.chat, listed);
    if (doubtful.length === 0) return;
    let jobs;
    try {
      jobs = await api.jobs();
    } catch {
      return; // The next connection brings the next list.
    }
    this.store.dispatch({ type: 'jobs', jobs });
    const missing = chat.missing(this.state.chat, jobs);
    this.store.dispatch({ type: 'chat/lost', ids: doubtful.filter((id) => missing.includes(id)) });
  }

  async refreshModels() {
    try {
      this.store.dispatch({ type: 'models', models: await api.models() });
      this.chooseModel();
    } catch (problem) {
      this.report(problem, () => void this.refreshModels());
    }
  }

  /** Until the chosen model is on this machine, the best that is here answers: the catalogue lists it first. */
  chooseModel() {
    const { models, values } = this.state;
    if (models.some((model) => model.id === values.model && model.state === 'ready')) return;
    const here = models.find((model) => model.loaded) ?? models.find((model) => model.state === 'ready');
    const first = here ?? (models.some((model) => model.id === values.model) ? undefined : models[0]);
    if (first) this.choose(first.id);
  }

  /** @param {string} id */
  choose(id) {
    if (this.state.values.model !== id) this.store.dispatch({ type: 'values', values: { ...this.state.values, model: id } });
  }

  /** @param {string} id fetch what is missing and load it */
  async fetchModel(id) {
    try {
      const clientId = newId();
      this.asked.add(clientId);
      this.store.dispatch({ type: 'job', job: await api.loadModel(id, clientId) });
    } catch (problem) {
      this.report(problem, () => void this.fetchModel(id));
    }
  }

  async health() {
    try {
      this.store.dispatch({ type: 'health', health: await api.health() });
    } catch {
      // The banner speaks of the connection.
    }
  }

  /** Whether anything of this page's is still being made. */
  waiting() {
    return Object.values(this.state.jobs).some((job) => !isFinal(job) && this.asked.has(job.client_id));
  }
}

/** @param {Track} track @returns {Record<string, string>} */
function labelsOf(track) {
  return {
    ...(track.audio_prompt ? { audio_prompt: track.audio_prompt.name } : {}),
    ...(track.continuation ? { continuation: track.continuation.name } : {}),
  };
}
