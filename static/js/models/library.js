/** The list of tracks: what is asked of the server, and how its answers and changes are taken in. */

/**
 * @typedef {import('../contract.js').Track} Track
 * @typedef {import('../contract.js').LibraryChange} LibraryChange
 *
 * @typedef {object} Filters
 * @property {string} q
 * @property {string} model
 * @property {string} format
 * @property {boolean} favourite
 * @property {boolean} locked
 * @property {boolean} stems
 * @property {string} sort
 *
 * @typedef {object} Library
 * @property {Filters} filters
 * @property {readonly string[]} names what is listed, in order
 * @property {string} cursor where the next page starts; '' at the end
 * @property {number} total
 * @property {boolean} loading
 * @property {boolean} stale the list may have changed in a way only the server can order
 * @property {import('../contract.js').StudioError | null} error
 */

export const SORTS = ['newest', 'oldest', 'name', 'duration'];

/** @returns {Library} */
export function empty() {
  return {
    filters: { q: '', model: '', format: '', favourite: false, locked: false, stems: false, sort: 'newest' },
    names: [],
    cursor: '',
    total: 0,
    loading: false,
    stale: true,
    error: null,
  };
}

/** @param {Filters} filters */
export function isFiltered({ q, model, format, favourite, locked, stems }) {
  return Boolean(q || model || format || favourite || locked || stems);
}

/**
 * The query string of a page of the list; what is not asked is left out.
 * @param {Filters} filters
 * @param {string} cursor
 * @param {number} limit
 */
export function query(filters, cursor, limit) {
  const asked = new URLSearchParams();
  for (const name of /** @type {const} */ (['q', 'model', 'format'])) {
    if (filters[name]) asked.set(name, filters[name]);
  }
  for (const name of /** @type {const} */ (['favourite', 'locked', 'stems'])) {
    if (filters[name]) asked.set(name, 'true');
  }
  asked.set('sort', filters.sort);
  if (cursor) asked.set('cursor', cursor);
  asked.set('limit', String(limit));
  return asked.toString();
}

/**
 * An answer. One to other filters than the list has by now only ends the waiting, and one that a change overtook may
 * be older than it: in both cases the list stays stale and is asked for again.
 * @param {Library} library
 * @param {Filters} filters what was asked for
 * @param {Track[]} tracks
 * @param {string} cursor
 * @param {number} total
 * @param {boolean} fresh the first page, which replaces the list
 * @returns {Library}
 */
export function takePage(library, filters, tracks, cursor, total, fresh) {
  if (filters !== library.filters) return { ...library, loading: false, stale: true };
  const known = fresh ? [] : library.names;
  const names = [...new Set([...known, ...tracks.map((track) => track.name)])];
  return { ...library, names, cursor, total, loading: false, error: null };
}

/**
 * @param {Library} library
 * @param {LibraryChange} news
 * @returns {Library}
 */
export function takeChange(library, { added = [], removed = [] }) {
  if (added.length === 0 && removed.length === 0) return library;
  const gone = new Set(removed);
  const names = library.names.filter((name) => !gone.has(name));
  const lost = library.names.length - names.length;
  const total = Math.max(0, library.total - lost);
  // What was not listed here may be news of what went already, or stand on a page that was not read yet.
  const unseen = removed.length > lost && library.cursor !== '';
  const stale = library.stale || library.loading || unseen;
  if (library.filters.sort !== 'newest' || isFiltered(library.filters)) return { ...library, names, total, stale: stale || added.length > 0 };
  const fresh = added.map((track) => track.name).filter((name) => !names.includes(name));
  return { ...library, names: [...fresh.reverse(), ...names], total: total + fresh.length, stale };
}
