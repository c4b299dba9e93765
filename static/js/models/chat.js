/**
 * The chat: one entry a request, with what came of it. Lives in localStorage; everything read from there or from a
 * file is validated, because a person may have edited it or been given it.
 */

import { isFinal } from './jobs.js';

/**
 * @typedef {import('../contract.js').Body} Body
 * @typedef {import('../contract.js').Job} Job
 * @typedef {import('../contract.js').Track} Track
 * @typedef {import('../contract.js').StudioError} StudioError
 * @typedef {{name: string, file: string, duration_s: number, take: number, seed: number | null}} TrackRef
 *
 * @typedef {object} Entry
 * @property {string} id the request's client_id
 * @property {number} at milliseconds since 1970
 * @property {Body} request
 * @property {Readonly<Record<string, string>>} labels names of the clips the request refers to
 * @property {'sending' | 'sent' | 'refused' | Job['status']} state
 * @property {TrackRef[]} tracks
 * @property {string[]} removed names among `tracks` that were deleted since
 * @property {string[]} unknown words of the prompt that the model did not read
 * @property {StudioError | null} error
 * @property {number} again when to try again what was refused, milliseconds since 1970; 0 when nothing says so
 */

export const MAX_ENTRIES = 500;
const MAX_TEXT = 4000;
const STATES = new Set(['sending', 'sent', 'refused', 'queued', 'running', 'done', 'failed', 'cancelled', 'interrupted']);

/**
 * @param {string} id
 * @param {Body} body
 * @param {Record<string, string>} labels
 * @param {number} at
 * @returns {Entry}
 */
export function entry(id, body, labels, at) {
  return { id, at, request: body, labels, state: 'sending', tracks: [], removed: [], unknown: [], error: null, again: 0 };
}

/**
 * @param {readonly Entry[]} chat
 * @param {Entry} added
 * @returns {Entry[]}
 */
export function add(chat, added) {
  return [...chat.filter((known) => known.id !== added.id), added].slice(-MAX_ENTRIES);
}

/**
 * @param {readonly Entry[]} chat
 * @param {string} id
 * @param {Partial<Entry>} news
 * @returns {readonly Entry[]} the same array when there is no such entry
 */
export function change(chat, id, news) {
  if (!chat.some((known) => known.id === id)) return chat;
  return chat.map((known) => (known.id === id ? { ...known, ...news } : known));
}

/**
 * Keep in the chat what a job's snapshot says that outlives the job.
 * @param {readonly Entry[]} chat
 * @param {Job} job
 * @param {Readonly<Record<string, Track>>} tracks
 * @returns {readonly Entry[]}
 */
export function takeJob(chat, job, tracks) {
  const known = chat.find((item) => item.id === job.client_id);
  if (!known) return chat;
  // Interrupted may be the page's own guess; how a job ended is said by the server alone, and stays.
  const ended = isFinal({ status: known.state }) && known.state !== 'interrupted';
  if (ended && known.state !== job.status) return chat;
  const names = job.tracks.length > 0 ? job.tracks : job.track && job.kind === 'generate' ? [job.track] : [];
  if (known.state === job.status && names.length === known.tracks.length && known.error?.message === job.error?.message) {
    return chat;
  }
  const refs = names.map((name, index) => {
    const track = tracks[name];
    return track ? ref(track) : (known.tracks[index] ?? { name, file: name, duration_s: 0, take: index + 1, seed: null });
  });
  return change(chat, known.id, { state: job.status, tracks: refs, unknown: job.unknown_words, error: job.error ?? null });
}

/** @param {Track} track @returns {TrackRef} */
function ref(track) {
  return { name: track.name, file: track.file, duration_s: track.duration_s, take: track.take, seed: track.seed };
}

/**
 * Fill in what a track's JSON says, where the job was known before the track.
 * @param {readonly Entry[]} chat
 * @param {readonly Track[]} tracks
 * @returns {readonly Entry[]}
 */
export function takeTracks(chat, tracks) {
  const found = new Map(tracks.map((track) => [track.name, track]));
  if (!chat.some((item) => item.tracks.some((known) => found.has(known.name)))) return chat;
  return chat.map((item) => {
    if (!item.tracks.some((known) => found.has(known.name))) return item;
    return {
      ...item,
      removed: item.removed.filter((name) => !found.has(name)),
      tracks: item.tracks.map((known) => {
        const track = found.get(known.name);
        return track ? ref(track) : known;
      }),
    };
  });
}

/**
 * @param {readonly Entry[]} chat
 * @param {readonly string[]} names
 * @returns {readonly Entry[]}
 */
export function tracksRemoved(chat, names) {
  const gone = new Set(names);
  if (!chat.some((item) => item.tracks.some((track) => gone.has(track.name) && !item.removed.includes(track.name)))) {
    return chat;
  }
  return chat.map((item) => {
    const lost = item.tracks.map((track) => track.name).filter((name) => gone.has(name) && !item.removed.includes(name));
    return lost.length > 0 ? { ...item, removed: [...item.removed, ...lost] } : item;
  });
}

/**
 * Validate a chat read from storage or from a file.
 * @param {unknown} raw
 * @returns {Entry[]} what could be understood
 * @throws {TypeError} it is not a chat at all
 */
export function read(raw) {
  const list = Array.isArray(raw) ? raw : /** @type {any} */ (raw)?.chat;
  if (!Array.isArray(list)) throw new TypeError('not a chat');
  return list.map(readEntry).filter((item) => item !== null).slice(-MAX_ENTRIES);
}

/** @param {any} raw @returns {Entry | null} */
function readEntry(raw) {
  if (!raw || typeof raw !== 'object' || typeof raw.id !== 'string' || !/^[\w-]{1,64}$/.test(raw.id)) return null;
  const body = readBody(raw.request);
  if (!body || !STATES.has(raw.state)) return null;
  const tracks = list(raw.tracks).map(readRef).filter((track) => track !== null);
  const names = new Set(tracks.map((track) => track.name));
  return {
    id: raw.id,
    at: time(raw.at),
    request: body,
    labels: readLabels(raw.labels),
    // Whoever was sending it is gone: the server's next list says whether it arrived.
    state: raw.state === 'sending' ? 'sent' : raw.state,
    tracks,
    removed: list(raw.removed).filter((name) => names.has(name)),
    unknown: list(raw.unknown).map((word) => text(word)).filter((word) => word !== ''),
    error: readError(raw.error),
    again: time(raw.again),
  };
}

/** @param {unknown} raw */
const time = (raw) => (typeof raw === 'number' && Number.isFinite(raw) ? raw : 0);

/** @param {unknown} raw @returns {any[]} */
const list = (raw) => (Array.isArray(raw) ? raw.slice(0, 64) : []);

/** @param {unknown} raw @param {number} [most] */
const text = (raw, most = 200) => (typeof raw === 'string' ? raw.slice(0, most) : '');

/** @param {any} raw @returns {Body | null} */
function readBody(raw) {
  if (!raw || typeof raw !== 'object') return null;
  if (raw.kind === 'split') {
    const track = text(raw.track) || null;
    const upload = text(raw.upload) || null;
    return track || upload ? { kind: 'split', track, upload, stems: text(raw.stems) || 'all', separator: text(raw.separator) || 'auto' } : null;
  }
  if (raw.kind !== 'generate' || typeof raw.prompt !== 'string') return null;
  /** @type {Record<string, unknown>} */
  const plain = {};
  for (const [name, value] of Object.entries(raw).slice(0, 32)) {
    if (typeof value === 'string') plain[name] = value.slice(0, name === 'prompt' ? MAX_TEXT : 200);
    if (typeof value === 'boolean' || (typeof value === 'number' && Number.isFinite(value))) plain[name] = value;
  }
  const body = { ...plain, audio_prompt: readAudioRef(raw.audio_prompt), continuation: readContinuation(raw.continuation) };
  return /** @type {Body} */ (/** @type {unknown} */ (body));
}

/** @param {any} raw */
function readAudioRef(raw) {
  if (raw && typeof raw.track === 'string') return { track: text(raw.track) };
  return raw && typeof raw.upload === 'string' ? { upload: text(raw.upload, 64) } : null;
}

/** @param {any} raw */
function readContinuation(raw) {
  const source = readAudioRef(raw);
  if (!source) return null;
  const from = typeof raw.from === 'number' && Number.isFinite(raw.from) ? raw.from : null;
  return { ...source, mode: raw.mode === 'append' ? 'append' : 'continue', from };
}

/** @param {any} raw @returns {TrackRef | null} */
function readRef(raw) {
  if (!raw || typeof raw.name !== 'string' || !raw.name) return null;
  return {
    name: text(raw.name),
    file: text(raw.file) || text(raw.name),
    duration_s: Number.isFinite(raw.duration_s) ? raw.duration_s : 0,
    take: Number.isInteger(raw.take) ? raw.take : 1,
    seed: Number.isInteger(raw.seed) ? raw.seed : null,
  };
}

/** @param {any} raw @returns {Record<string, string>} */
function readLabels(raw) {
  if (!raw || typeof raw !== 'object') return {};
  return Object.fromEntries(
    ['audio_prompt', 'continuation', 'source'].filter((key) => text(raw[key])).map((key) => [key, text(raw[key])]),
  );
}

/** @param {any} raw @returns {StudioError | null} */
function readError(raw) {
  if (!raw || typeof raw.code !== 'string' || typeof raw.message !== 'string') return null;
  const fits = list(raw.details?.fits).filter((fit) => typeof fit?.model === 'string' && typeof fit.precision === 'string');
  const details = fits.length > 0 ? { details: { fits: fits.map((fit) => ({ model: text(fit.model), precision: text(fit.precision, 20) })) } } : {};
  return { code: text(raw.code, 60), message: text(raw.message, 1000), ...details };
}

/** The server was given it, and has not said how it ended. @param {Entry} item */
const isGoing = (item) => ['sent', 'queued', 'running'].includes(item.state);

/**
 * @param {readonly Entry[]} chat
 * @param {readonly Job[]} listed
 * @returns {string[]} ids of the requests that should be going on and are not in the list
 */
export function missing(chat, listed) {
  const known = new Set(listed.map((job) => job.client_id));
  return chat.filter((item) => isGoing(item) && !known.has(item.id)).map((item) => item.id);
}

/**
 * @param {readonly Entry[]} chat
 * @param {readonly string[]} ids requests that the server no longer knows
 * @returns {readonly Entry[]} with those of them that were going on interrupted; the same array when none was
 */
export function interrupt(chat, ids) {
  const isLost = (/** @type {Entry} */ item) => isGoing(item) && ids.includes(item.id);
  return chat.some(isLost) ? chat.map((item) => (isLost(item) ? { ...item, state: 'interrupted' } : item)) : chat;
}

/**
 * @param {readonly Entry[]} chat
 * @param {readonly Entry[]} added
 * @returns {Entry[]} both, in order of time, each entry once
 */
export function merge(chat, added) {
  const all = new Map([...added, ...chat].map((item) => [item.id, item]));
  return [...all.values()].sort((one, other) => one.at - other.at).slice(-MAX_ENTRIES);
}

/** @param {readonly Entry[]} chat @returns {string} the .json export */
export function toJson(chat) {
  return `${JSON.stringify({ format: 'audiocraft-webui chat', version: 1, chat }, null, 2)}\n`;
}

/**
 * @param {readonly Entry[]} chat
 * @param {(at: number) => string} when
 * @param {(item: Entry) => string} describe what came of it, in words
 * @returns {string} the .txt export
 */
export function toText(chat, when, describe) {
  return chat
    .map((item) => {
      const asked = item.request.kind === 'generate' ? item.request.prompt : (item.labels.source ?? item.request.track ?? '');
      return `[${when(item.at)}]\n> ${asked}\n${describe(item)}\n`;
    })
    .join('\n');
}
