/** The library: every track on the disk, in a drawer; also where a clip is picked from. */

import { Disposer, breakable, button, el, icon, select, setAttrs } from '../ui/dom.js';
import { open } from '../ui/dialog.js';
import { SORTS, isFiltered } from '../models/library.js';
import { clock } from '../format.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Track} Track
 */

const SEARCH_AFTER_MS = 200;

/**
 * @param {App} app
 * @param {(track: Track) => void} [pick] choose one instead of opening it
 */
export function showLibrary(app, pick) {
  const { store, words, actions } = app;
  const { t } = words;
  const view = new Disposer();
  const count = el('p', { class: 'count', attrs: { role: 'status' } });
  const list = el('ul', { class: 'tracks' });
  const foot = el('div', { class: 'list-foot' });
  const shown = open({
    title: pick ? t('library.pick') : t('library.title'),
    closeLabel: t('action.close'),
    class: 'drawer',
    body: [filters(app), count, list, foot],
  });
  /** @type {Map<string, Row & {track: Track}>} */
  const rows = new Map();
  const take = (/** @type {Track} */ track) => {
    shown.dialog.close('');
    if (pick) pick(track);
    else store.dispatch({ type: 'open', name: track.name });
  };
  const show = () => {
    const { library, tracks, active } = store.state;
    const listed = library.names.map((name) => tracks[name]).filter((track) => track !== undefined);
    count.textContent = library.loading && listed.length === 0 ? t('library.loading') : t('library.count', { n: library.total });
    const elements = listed.map((track) => {
      const known = rows.get(track.name);
      if (known && known.track === track) return known.element;
      const made = row(track, app, take, pick !== undefined);
      rows.set(track.name, { ...made, track });
      return made.element;
    });
    if (elements.length !== list.children.length || elements.some((element, index) => list.children[index] !== element)) keepFocus(list, () => list.replaceChildren(...elements));
    for (const [name, { element }] of rows) element.classList.toggle('active', name === active);
    foot.replaceChildren(...footer(app, listed.length));
  };
  const refresh = () => {
    if (store.state.library.stale && !store.state.library.loading) void actions.list();
  };
  let timer = 0;
  view.add(store.watch((state) => state.library, show));
  view.add(store.watch((state) => state.tracks, show));
  view.add(store.watch((state) => state.library.filters, () => {
    clearTimeout(timer);
    timer = window.setTimeout(refresh, SEARCH_AFTER_MS);
  }));
  view.add(store.watch((state) => state.library.stale && !state.library.loading, refresh));
  const playing = () => {
    for (const { show: draw } of rows.values()) draw();
  };
  app.player.addEventListener('change', playing, { signal: view.signal });
  show();
  refresh();
  void shown.closed.then(() => {
    clearTimeout(timer);
    view.dispose();
  });
}

/**
 * The focus stays on the same control of the same row, or of the one that took its place.
 * @param {HTMLElement} list of rows that say in data-name which they are
 * @param {() => void} change
 */
function keepFocus(list, change) {
  const held = document.activeElement;
  const before = [...list.children];
  const place = before.findIndex((item) => item.contains(held));
  const control = [...(before[place]?.querySelectorAll('button') ?? [])].findIndex((item) => item === held);
  change();
  if (place < 0) return;
  const name = before[place]?.getAttribute('data-name');
  const now = [...list.children].find((item) => item.getAttribute('data-name') === name) ?? list.children[Math.min(place, list.children.length - 1)];
  now?.querySelectorAll('button')[control]?.focus();
}

/** @param {App} app @param {number} listed */
function footer({ store, words, actions }, listed) {
  const { t } = words;
  const { library } = store.state;
  if (library.error) {
    return [
      el('p', { class: 'trouble-text', attrs: { role: 'alert' }, text: `${t('library.failed')} ${library.error.message}` }),
      button({ label: t('action.retry'), icon: 'redo', press: () => void actions.list() }),
    ];
  }
  if (listed === 0 && !library.loading) return [el('p', { class: 'empty', text: t(isFiltered(library.filters) ? 'library.none' : 'library.empty') })];
  if (library.cursor) return [button({ label: t('library.more'), disabled: library.loading, press: () => void actions.list(true) })];
  return [];
}

/** @param {App} app */
function filters({ store, words }) {
  const { t } = words;
  const { filters: now } = store.state.library;
  const set = (/** @type {Partial<typeof now>} */ change) => store.dispatch({ type: 'library/filters', filters: change });
  const search = el('input', { class: 'text search', attrs: { type: 'search', placeholder: t('library.search'), 'aria-label': t('library.search'), maxlength: 200 } });
  search.value = now.q;
  search.addEventListener('input', () => set({ q: search.value }));
  const models = [{ value: '', label: t('library.anyModel') }, ...store.state.models.map((model) => ({ value: model.id, label: words.name(model) }))];
  const formats = [{ value: '', label: t('library.anyFormat') }, ...['wav', 'flac', 'mp3'].map((value) => ({ value, label: value.toUpperCase() }))];
  const sorts = SORTS.map((value) => ({ value, label: t(`library.sort.${value}`) }));
  const flag = (/** @type {'favourite' | 'locked' | 'stems'} */ name, /** @type {string} */ picture) => {
    const made = button({ label: t(`library.${name}`), icon: picture, kind: 'quiet', class: 'filter', pressed: now[name], press: () => {
      const on = !store.state.library.filters[name];
      made.setAttribute('aria-pressed', String(on));
      set({ [name]: on });
    } });
    return made;
  };
  return el(
    'div',
    { class: 'filters', attrs: { role: 'search', 'aria-label': t('library.search') } },
    search,
    el(
      'div',
      { class: 'filter-row' },
      select(sorts, now.sort, (sort) => set({ sort }), { 'aria-label': t('library.sort') }),
      select(models, now.model, (model) => set({ model }), { 'aria-label': t('library.model') }),
      select(formats, now.format, (format) => set({ format }), { 'aria-label': t('library.format') }),
    ),
    el('div', { class: 'filter-row' }, flag('favourite', 'star'), flag('locked', 'lock'), flag('stems', 'split')),
  );
}

/**
 * @typedef {{element: HTMLElement, show: () => void}} Row `show` draws whether it is playing
 *
 * @param {Track} track
 * @param {App} app
 * @param {(track: Track) => void} take
 * @param {boolean} picking
 * @returns {Row}
 */
function row(track, app, take, picking) {
  const { words, actions, dialogs, player } = app;
  const { t } = words;
  const play = button({ label: t('take.play', { name: track.file }), icon: 'play', iconOnly: true, class: 'round', press: () => void actions.toggle(track) });
  const marks = el('span', { class: 'marks' });
  if (track.locked) marks.append(icon('lock'), el('span', { class: 'unseen', text: t('library.locked') }));
  if (Object.keys(track.stems).length > 0) marks.append(icon('split'), el('span', { class: 'unseen', text: t('library.stems') }));
  const element = el(
    'li',
    { class: 'track-row', attrs: { 'data-name': track.name } },
    play,
    el(
      'button',
      { class: 'track-open', attrs: { type: 'button' }, on: { click: () => take(track) } },
      el('span', { class: 'track-file' }, ...breakable(track.file)),
      el('span', { class: 'track-prompt', text: track.prompt }),
      el('span', { class: 'track-facts' }, el('span', { class: 'time', text: clock(track.duration_s) }), el('span', { text: words.when(Date.parse(track.created_at)) }), marks),
    ),
    picking ? null : button({ label: t('action.favourite'), icon: track.favourite ? 'star-on' : 'star', iconOnly: true, kind: 'quiet', pressed: track.favourite, press: () => void actions.mark(track, { favourite: !track.favourite }) }),
    picking ? null : button({ label: t('action.deleteThis', { name: track.file }), icon: 'trash', iconOnly: true, kind: 'quiet', disabled: track.locked, press: () => dialogs.remove(track) }),
  );
  /** @type {boolean | null} */
  let shown = null;
  const show = () => {
    const on = player.isPlaying(`track:${track.name}`);
    if (on === shown) return;
    shown = on;
    const label = t(on ? 'take.pause' : 'take.play', { name: track.file });
    element.classList.toggle('playing', on);
    play.replaceChildren(icon(on ? 'pause' : 'play'));
    setAttrs(play, { 'aria-label': label, title: label });
  };
  show();
  return { element, show };
}
