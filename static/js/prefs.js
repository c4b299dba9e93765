/** What the browser keeps: the chat, the preferences, the last settings. Everything read back is validated. */

import * as chat from './models/chat.js';
import * as settings from './models/settings.js';
import { LANGUAGES, preferred } from './i18n.js';

/**
 * @typedef {import('./store.js').State} State
 * @typedef {import('./store.js').Prefs} Prefs
 * @typedef {import('./contract.js').Parameter} Parameter
 */

const KEYS = { chat: 'studio.chat', prefs: 'studio.prefs', values: 'studio.values', presets: 'studio.presets', draft: 'studio.draft' };

/** What the browser lets the page keep; where it lets nothing, a place that lasts as long as the page. @returns {Storage} */
export function browserStorage() {
  try {
    return localStorage;
  } catch {
    return /** @type {Storage} */ (/** @type {unknown} */ ({ getItem: () => null, setItem: () => {} }));
  }
}

/**
 * @param {Storage} storage
 * @param {string} key
 * @returns {unknown} null for what is not there or is not JSON
 */
function read(storage, key) {
  try {
    return JSON.parse(storage.getItem(key) ?? 'null');
  } catch {
    return null;
  }
}

/**
 * @param {Storage} storage
 * @param {readonly Parameter[]} parameters
 * @param {readonly string[]} languages the browser's
 */
export function restore(storage, parameters, languages) {
  const draft = read(storage, KEYS.draft);
  return {
    prefs: readPrefs(read(storage, KEYS.prefs), languages),
    values: settings.complete(parameters, read(storage, KEYS.values)),
    presets: settings.readPresets(parameters, read(storage, KEYS.presets)),
    chat: readChat(read(storage, KEYS.chat)),
    prompt: typeof draft === 'string' ? draft : '',
  };
}

/** @param {unknown} raw */
function readChat(raw) {
  try {
    return chat.read(raw);
  } catch {
    return [];
  }
}

/**
 * @param {any} raw
 * @param {readonly string[]} languages
 * @returns {Prefs}
 */
function readPrefs(raw, languages) {
  const given = raw && typeof raw === 'object' ? raw : {};
  return {
    language: LANGUAGES.includes(given.language) ? given.language : preferred(languages),
    theme: ['auto', 'dark', 'light'].includes(given.theme) ? given.theme : 'auto',
    compact: given.compact === true,
    live: given.live !== false,
    panel: given.panel === true,
    volume: typeof given.volume === 'number' && given.volume >= 0 && given.volume <= 1 ? given.volume : 1,
  };
}

/**
 * Write each part back when it changes; many changes in a row are one write.
 * @param {Storage} storage
 * @param {import('./store.js').Store} store
 * @param {() => void} full called when the browser refuses to keep more
 * @returns {() => void} writes what is due and stops
 */
export function keep(storage, store, full) {
  /** @type {Map<string, unknown>} */
  const due = new Map();
  let timer = 0;
  let refused = false;
  const write = () => {
    clearTimeout(timer);
    timer = 0;
    for (const [key, value] of due) {
      try {
        storage.setItem(key, JSON.stringify(value));
        if (key === KEYS.chat) refused = false;
      } catch {
        // Said once, not at every change.
        if (!refused) full();
        refused = true;
      }
    }
    due.clear();
  };
  const later = (/** @type {string} */ key) => (/** @type {unknown} */ value) => {
    due.set(key, value);
    if (!timer) timer = window.setTimeout(write, 200);
  };
  const stops = [
    store.watch((state) => state.chat, later(KEYS.chat)),
    store.watch((state) => state.prefs, later(KEYS.prefs)),
    store.watch((state) => state.values, later(KEYS.values)),
    store.watch((state) => state.presets, later(KEYS.presets)),
    store.watch((state) => state.prompt, later(KEYS.draft)),
  ];
  /** The chat is one for all pages of this browser. @param {StorageEvent} event */
  const elsewhere = (event) => {
    if (event.storageArea !== storage || event.key !== KEYS.chat) return;
    const theirs = readChat(read(storage, KEYS.chat));
    const known = new Set(store.state.chat.map((entry) => entry.id));
    const added = theirs.filter((entry) => !known.has(entry.id));
    if (added.length > 0) store.dispatch({ type: 'chat/import', entries: added });
    else if (theirs.length === 0 && known.size > 0) store.dispatch({ type: 'chat/clear' });
  };
  window.addEventListener('pagehide', write);
  window.addEventListener('storage', elsewhere);
  return () => {
    window.removeEventListener('pagehide', write);
    window.removeEventListener('storage', elsewhere);
    for (const stop of stops) stop();
    write();
  };
}
