/** The bar: the model and its state, the library, and the switches of the page. */

import { Disposer, button, el, icon, saveText } from '../ui/dom.js';
import * as chat from '../models/chat.js';
import { loadOf } from '../models/jobs.js';

/** @typedef {import('../app.js').App} App */

const THEMES = /** @type {const} */ (['auto', 'dark', 'light']);
const THEME_ICONS = { auto: 'auto', dark: 'moon', light: 'sun' };

/**
 * @param {HTMLElement} host
 * @param {App} app
 * @returns {() => void}
 */
export function mountBar(host, app) {
  const { store, words, dialogs } = app;
  const { t } = words;
  const view = new Disposer();
  const model = button({ label: '', icon: 'chevron', class: 'model-button', press: () => dialogs.models() });
  model.setAttribute('aria-haspopup', 'dialog');
  const actions = el(
    'div',
    { class: 'bar-actions' },
    button({ label: t('bar.library'), icon: 'library', kind: 'quiet', class: 'labelled', press: () => dialogs.library() }),
    liveSwitch(app, view),
    themeSwitch(app, view),
    languageSwitch(app),
    menu(app, view),
  );
  host.replaceChildren(
    el('h1', { class: 'brand' }, brandMark(), el('span', { text: t('bar.title') })),
    model,
    actions,
  );
  const show = () => showModel(app, model);
  show();
  for (const select of [
    (/** @type {import('../store.js').State} */ state) => state.models,
    (/** @type {import('../store.js').State} */ state) => state.values.model,
    (/** @type {import('../store.js').State} */ state) => state.health,
    (/** @type {import('../store.js').State} */ state) => state.jobs,
  ]) {
    view.add(store.watch(/** @type {(state: import('../store.js').State) => unknown} */ (select), show));
  }
  return () => view.dispose();
}

function brandMark() {
  return el('img', { class: 'brand-mark', attrs: { src: '/static/img/icon.svg', alt: '', width: 24, height: 24 } });
}

/**
 * @param {App} app
 * @param {HTMLButtonElement} shown
 */
function showModel({ store, words }, shown) {
  const { t } = words;
  const { models, values, health, jobs } = store.state;
  const id = String(values.model);
  const model = models.find((item) => item.id === id);
  const loading = loadOf(jobs, id);
  let state = '';
  if (health?.stack === 'failed') state = t('model.stackFailed');
  else if (health && health.stack !== 'ready') state = t('model.stackLoading');
  else if (loading) state = t('model.fetching');
  else if (model?.sketch) state = t('model.sketch');
  else if (model && model.state !== 'ready') state = t(`model.state.${model.state}`);
  else if (health?.model === id && health.model_state === 'loaded') state = t('model.loaded');
  const said = [
    el('span', { class: 'unseen', text: `${t('bar.model')}: ` }),
    el('span', { class: 'model-name', text: model ? words.name(model) : id }),
  ];
  if (state) said.push(el('span', { class: 'model-state', text: state }));
  shown.replaceChildren(...said, icon('chevron'));
  const where = health ? t('model.device', { device: health.device_name || health.device }) : '';
  shown.title = [model?.sketch ? t('model.sketchLong') : '', where].filter(Boolean).join(' · ');
}

/** @param {App} app @param {Disposer} view */
function liveSwitch({ store, words }, view) {
  const { t } = words;
  const made = button({
    label: t('bar.live'),
    icon: 'ear',
    kind: 'quiet',
    class: 'labelled',
    pressed: store.state.prefs.live,
    press: () => store.dispatch({ type: 'prefs', prefs: { live: !store.state.prefs.live } }),
    attrs: { title: t('bar.liveHint') },
  });
  view.add(store.watch((state) => state.prefs.live, (live) => made.setAttribute('aria-pressed', String(live))));
  return made;
}

/** @param {App} app @param {Disposer} view */
function themeSwitch({ store, words }, view) {
  const { t } = words;
  const made = button({
    label: '',
    icon: 'auto',
    iconOnly: true,
    kind: 'quiet',
    press: () => {
      const next = THEMES[(THEMES.indexOf(store.state.prefs.theme) + 1) % THEMES.length];
      if (next) store.dispatch({ type: 'prefs', prefs: { theme: next } });
    },
  });
  const show = () => {
    const { theme } = store.state.prefs;
    made.replaceChildren(icon(THEME_ICONS[theme]));
    made.setAttribute('aria-label', t('bar.theme', { theme: t(`theme.${theme}`) }));
    made.title = t('bar.theme', { theme: t(`theme.${theme}`) });
  };
  show();
  view.add(store.watch((state) => state.prefs.theme, show));
  return made;
}

/** @param {App} app */
function languageSwitch({ store, words }) {
  const other = words.language === 'ru' ? 'en' : 'ru';
  return button({
    label: other === 'ru' ? 'RU' : 'EN',
    kind: 'quiet',
    class: 'language',
    press: () => store.dispatch({ type: 'prefs', prefs: { language: other } }),
    attrs: { 'aria-label': other === 'ru' ? 'RU, Русский' : 'EN, English', lang: other, id: 'language' },
  });
}

/** @param {App} app @param {Disposer} view */
function menu(app, view) {
  const { store, words, dialogs } = app;
  const { t } = words;
  const items = el('div', { class: 'menu', attrs: { id: 'more-menu', popover: 'auto', role: 'group', 'aria-label': t('bar.more') } });
  const item = (/** @type {string} */ label, /** @type {string} */ name, /** @type {() => void} */ press) =>
    button({
      label,
      icon: name,
      kind: 'quiet',
      press: () => {
        items.hidePopover();
        press();
      },
    });
  const compact = item(t('menu.compact'), 'sliders', () =>
    store.dispatch({ type: 'prefs', prefs: { compact: !store.state.prefs.compact } }),
  );
  const showCompact = () => compact.setAttribute('aria-pressed', String(store.state.prefs.compact));
  showCompact();
  view.add(store.watch((state) => state.prefs.compact, showCompact));
  items.append(
    compact,
    item(t('menu.exportJson'), 'download', () => saveText('chat.json', 'application/json', chat.toJson(store.state.chat))),
    item(t('menu.exportText'), 'download', () => saveText('chat.txt', 'text/plain', asText(app))),
    item(t('menu.import'), 'attach', () => importer.click()),
    item(t('menu.keys'), 'keyboard', () => dialogs.keys()),
    item(t('menu.clear'), 'trash', () => dialogs.clear()),
  );
  const importer = fileInput('.json,application/json', (file) => void importChat(app, file));
  const made = button({ label: t('bar.more'), icon: 'more', iconOnly: true, kind: 'quiet', press: () => {}, attrs: { popovertarget: 'more-menu', id: 'more' } });
  items.addEventListener('toggle', () => {
    const { right, bottom } = made.getBoundingClientRect();
    items.style.setProperty('--menu-top', `${bottom + 4}px`);
    items.style.setProperty('--menu-right', `${document.documentElement.clientWidth - right}px`);
  });
  return el('div', { class: 'menu-host' }, made, items, importer);
}

/**
 * @param {string} accept
 * @param {(file: File) => void} take
 */
function fileInput(accept, take) {
  const made = el('input', { class: 'unseen', attrs: { type: 'file', accept, tabindex: -1, 'aria-hidden': 'true' } });
  made.addEventListener('change', () => {
    const [file] = made.files ?? [];
    if (file) take(file);
    made.value = '';
  });
  return made;
}

/** @param {App} app */
function asText({ store, words }) {
  const { t } = words;
  return chat.toText(
    store.state.chat,
    (at) => words.when(at),
    (entry) => {
      if (entry.error) return entry.error.message;
      return entry.tracks.length > 0 ? entry.tracks.map((track) => track.file).join(', ') : t(`status.${entry.state}`);
    },
  );
}

const MAX_IMPORT_BYTES = 5_000_000;

/** @param {App} app @param {File} file */
async function importChat({ store, words, tell, actions }, file) {
  const { t } = words;
  try {
    if (file.size > MAX_IMPORT_BYTES) throw new RangeError('too large');
    // What was going on there is not going on here.
    const read = chat.read(JSON.parse(await file.text()));
    const entries = chat.interrupt(read, chat.missing(read, Object.values(store.state.jobs)));
    store.dispatch({ type: 'chat/import', entries });
    tell(t('import.done', { n: entries.length }));
    await actions.checkTracks();
  } catch {
    tell(t('import.failed', { file: file.name }), { error: true });
  }
}
