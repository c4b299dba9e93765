/** The page's one state, its pure reducer, and who is told when a part of it changes. */

import * as chat from './models/chat.js';
import * as jobs from './models/jobs.js';
import * as library from './models/library.js';

/**
 * @typedef {import('./contract.js').Job} Job
 * @typedef {import('./contract.js').Track} Track
 * @typedef {import('./contract.js').ModelInfo} ModelInfo
 * @typedef {import('./contract.js').Health} Health
 * @typedef {import('./contract.js').LibraryChange} LibraryChange
 * @typedef {import('./contract.js').StudioError} StudioError
 * @typedef {import('./models/settings.js').Values} Values
 * @typedef {import('./models/settings.js').Attachments} Attachments
 * @typedef {import('./models/settings.js').Preset} Preset
 *
 * @typedef {object} Prefs
 * @property {string} language
 * @property {'auto' | 'dark' | 'light'} theme
 * @property {boolean} compact
 * @property {boolean} live start sounding by itself
 * @property {boolean} panel settings are open
 * @property {number} volume 0 to 1
 *
 * @typedef {object} State
 * @property {'connecting' | 'online' | 'lost'} connection
 * @property {boolean} outdated the server speaks another version of the contract
 * @property {Health | null} health
 * @property {readonly ModelInfo[]} models
 * @property {jobs.Jobs} jobs
 * @property {Readonly<Record<string, Track>>} tracks
 * @property {library.Library} library
 * @property {readonly chat.Entry[]} chat
 * @property {string | null} active name of the track in the card
 * @property {Values} values
 * @property {Attachments} attachments
 * @property {string} prompt
 * @property {readonly Preset[]} presets
 * @property {Prefs} prefs
 *
 * @typedef {{type: 'connection', connection: State['connection']}
 *   | {type: 'outdated'}
 *   | {type: 'health', health: Health}
 *   | {type: 'models', models: readonly ModelInfo[]}
 *   | {type: 'jobs', jobs: Job[]}
 *   | {type: 'job', job: Job}
 *   | {type: 'library', change: LibraryChange}
 *   | {type: 'library/filters', filters: Partial<library.Filters>}
 *   | {type: 'library/loading'}
 *   | {type: 'library/page', filters: library.Filters, tracks: Track[], cursor: string, total: number, fresh: boolean}
 *   | {type: 'library/failed', error: StudioError}
 *   | {type: 'track', track: Track}
 *   | {type: 'chat/add', entry: chat.Entry}
 *   | {type: 'chat/change', id: string, change: Partial<chat.Entry>}
 *   | {type: 'chat/import', entries: readonly chat.Entry[]}
 *   | {type: 'chat/lost', ids: readonly string[]}
 *   | {type: 'chat/clear'}
 *   | {type: 'open', name: string | null}
 *   | {type: 'values', values: Values}
 *   | {type: 'attach', attachments: Partial<Attachments>}
 *   | {type: 'prompt', prompt: string}
 *   | {type: 'presets', presets: readonly Preset[]}
 *   | {type: 'prefs', prefs: Partial<Prefs>}} Action
 */

/**
 * @param {State} state
 * @param {Action} action
 * @returns {State} the same object when nothing changed
 */
export function reduce(state, action) {
  switch (action.type) {
    case 'connection':
      return state.connection === action.connection ? state : { ...state, connection: action.connection };
    case 'outdated':
      return { ...state, outdated: true };
    case 'health':
      return { ...state, health: action.health };
    case 'models':
      return { ...state, models: action.models };
    case 'jobs':
      return action.jobs.reduce(takeJob, state);
    case 'job':
      return takeJob(state, action.job);
    case 'chat/import': {
      const merged = chat.merge(state.chat, action.entries);
      // What came of them may be known here already.
      return { ...state, chat: Object.values(state.jobs).reduce((entries, job) => chat.takeJob(entries, job, state.tracks), /** @type {State['chat']} */ (merged)) };
    }
    case 'library':
      return takeLibrary(state, action.change);
    case 'library/filters': {
      const filters = { ...state.library.filters, ...action.filters };
      return { ...state, library: { ...state.library, filters, stale: true } };
    }
    case 'library/loading':
      return { ...state, library: { ...state.library, loading: true, stale: false, error: null } };
    case 'library/page': {
      const page = library.takePage(state.library, action.filters, action.tracks, action.cursor, action.total, action.fresh);
      return { ...withTracks(state, action.tracks), library: page };
    }
    case 'library/failed':
      return { ...state, library: { ...state.library, loading: false, error: action.error } };
    case 'track':
      return withTracks(state, [action.track]);
    case 'open':
      return state.active === action.name ? state : { ...state, active: action.name };
    case 'values':
      return { ...state, values: action.values };
    case 'attach':
      return { ...state, attachments: { ...state.attachments, ...action.attachments } };
    case 'prompt':
      return state.prompt === action.prompt ? state : { ...state, prompt: action.prompt };
    case 'presets':
      return { ...state, presets: action.presets };
    case 'prefs':
      return { ...state, prefs: { ...state.prefs, ...action.prefs } };
    default:
      return { ...state, chat: reduceChat(state.chat, action) };
  }
}

/**
 * @param {State['chat']} entries
 * @param {Extract<Action, {type: 'chat/add' | 'chat/change' | 'chat/lost' | 'chat/clear'}>} action
 * @returns {State['chat']}
 */
function reduceChat(entries, action) {
  switch (action.type) {
    case 'chat/add':
      return chat.add(entries, action.entry);
    case 'chat/change':
      return chat.change(entries, action.id, action.change);
    case 'chat/lost':
      return chat.interrupt(entries, action.ids);
    case 'chat/clear':
      return [];
  }
}

/**
 * @param {State} state
 * @param {Job} job
 * @returns {State}
 */
function takeJob(state, job) {
  const known = jobs.takeJob(state.jobs, job);
  // The snapshot that won, which is not always the one that came last.
  const entries = chat.takeJob(state.chat, known[job.id] ?? job, state.tracks);
  return known === state.jobs && entries === state.chat ? state : { ...state, jobs: known, chat: entries };
}

/**
 * @param {State} state
 * @param {readonly Track[]} tracks
 * @returns {State}
 */
function withTracks(state, tracks) {
  if (tracks.length === 0) return state;
  const known = { ...state.tracks, ...Object.fromEntries(tracks.map((track) => [track.name, track])) };
  return { ...state, tracks: known, chat: chat.takeTracks(state.chat, tracks) };
}

/**
 * @param {State} state
 * @param {LibraryChange} news
 * @returns {State}
 */
function takeLibrary(state, news) {
  const removed = news.removed ?? [];
  const next = withTracks(state, [...(news.added ?? []), ...(news.changed ?? [])]);
  const gone = new Set(removed);
  const left = removed.length === 0 ? next.tracks : Object.fromEntries(Object.entries(next.tracks).filter(([name]) => !gone.has(name)));
  return {
    ...next,
    tracks: left,
    chat: chat.tracksRemoved(next.chat, removed),
    library: library.takeChange(next.library, news),
    active: next.active !== null && gone.has(next.active) ? null : next.active,
  };
}

/** Holds the state; tells a listener when the part it chose is another object. */
export class Store {
  /** @param {State} initial */
  constructor(initial) {
    this.state = initial;
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  /** @param {Action} action */
  dispatch(action) {
    const next = reduce(this.state, action);
    if (next === this.state) return;
    this.state = next;
    for (const listener of [...this.listeners]) listener();
  }

  /**
   * @template T
   * @param {(state: State) => T} select
   * @param {(part: T, before: T) => void} listen called when the part changes, not at once
   * @returns {() => void} stops it
   */
  watch(select, listen) {
    let part = select(this.state);
    const check = () => {
      const now = select(this.state);
      if (Object.is(now, part)) return;
      const before = part;
      part = now;
      listen(now, before);
    };
    this.listeners.add(check);
    return () => this.listeners.delete(check);
  }
}
