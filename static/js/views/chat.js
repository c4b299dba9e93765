/** The chat: a bubble for what was asked, a bubble for what came of it. */

import { Disposer, button, el, icon } from '../ui/dom.js';
import { byClient, isFinal } from '../models/jobs.js';
import { whatFits } from './fits.js';
import { notRead, progressBubble } from './progress.js';
import { takeRow } from './takes.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../models/chat.js').Entry} Entry
 * @typedef {import('../contract.js').Job} Job
 * @typedef {import('../contract.js').Fit} Fit
 *
 * @typedef {object} Shown one entry on the page
 * @property {HTMLElement} element
 * @property {Disposer} parts what its bubbles hold
 * @property {string} drawn what it was drawn from
 * @property {((job: Job) => void) | null} progress
 */

/** Within this of the end, new bubbles scroll the chat along; a person reading further up is left alone. */
const NEAR_END_PX = 120;

/**
 * @param {HTMLElement} host the scrolling element
 * @param {App} app
 * @returns {() => void}
 */
export function mountChat(host, app) {
  const { store, words } = app;
  const view = new Disposer();
  const list = el('ol', { class: 'entries', attrs: { 'aria-label': words.t('chat.title') } });
  const hello = welcome(app);
  host.replaceChildren(hello, list);
  host.tabIndex = 0;
  host.setAttribute('role', 'region');
  host.setAttribute('aria-label', words.t('chat.title'));
  /** @type {Map<string, Shown>} */
  const shown = new Map();
  const show = () => {
    const atEnd = host.scrollHeight - host.scrollTop - host.clientHeight < NEAR_END_PX;
    const { chat } = store.state;
    hello.hidden = chat.length > 0;
    list.hidden = chat.length === 0;
    for (const id of [...shown.keys()]) {
      if (!chat.some((entry) => entry.id === id)) drop(shown, id);
    }
    let added = false;
    for (const entry of chat) {
      if (!shown.has(entry.id)) {
        shown.set(entry.id, { element: el('li', { class: 'entry' }), parts: new Disposer(), drawn: '', progress: null });
        added = true;
      }
      const item = /** @type {Shown} */ (shown.get(entry.id));
      draw(item, entry, app);
    }
    place(list, chat.map((entry) => /** @type {Shown} */ (shown.get(entry.id)).element));
    if (added || atEnd) host.scrollTop = host.scrollHeight;
  };
  show();
  host.scrollTop = host.scrollHeight;
  const order = (/** @type {readonly Entry[]} */ now, /** @type {readonly Entry[]} */ before) =>
    now.length !== before.length || now.some((entry, index) => entry.id !== before[index]?.id);
  view.add(
    store.watch((state) => state.chat, (now, before) => {
      if (order(now, before)) show();
      else update(shown, app, host);
    }),
  );
  view.add(store.watch((state) => state.jobs, () => update(shown, app, host)));
  view.add(store.watch((state) => state.models, () => update(shown, app, host)));
  view.add(store.watch((state) => state.active, () => mark(list, store.state.active)));
  view.add(() => {
    for (const id of [...shown.keys()]) drop(shown, id);
  });
  mark(list, store.state.active);
  return () => view.dispose();
}

/** In this order; what stands right already is not moved, or it would lose the focus. @param {HTMLElement} list @param {HTMLElement[]} elements */
function place(list, elements) {
  elements.forEach((element, index) => {
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
}

/** @param {Map<string, Shown>} shown @param {string} id */
function drop(shown, id) {
  const item = shown.get(id);
  item?.parts.dispose();
  item?.element.remove();
  shown.delete(id);
}

/** @param {Map<string, Shown>} shown @param {App} app @param {HTMLElement} host */
function update(shown, app, host) {
  const atEnd = host.scrollHeight - host.scrollTop - host.clientHeight < NEAR_END_PX;
  for (const entry of app.store.state.chat) {
    const item = shown.get(entry.id);
    if (item) draw(item, entry, app);
  }
  mark(host, app.store.state.active);
  if (atEnd) host.scrollTop = host.scrollHeight;
}

/** @param {HTMLElement} host @param {string | null} active */
function mark(host, active) {
  for (const link of host.querySelectorAll('[data-track]')) {
    const now = link.getAttribute('data-track') === active;
    if (now) link.setAttribute('aria-current', 'true');
    else link.removeAttribute('aria-current');
  }
}

/**
 * Draw an entry again only when something other than its progress changed.
 * @param {Shown} item
 * @param {Entry} entry
 * @param {App} app
 */
function draw(item, entry, app) {
  const job = byClient(app.store.state.jobs, entry.id);
  const live = job && !isFinal(job) ? job : undefined;
  const { state, tracks, removed, unknown, error, again } = entry;
  const drawn = JSON.stringify([state, tracks, removed, unknown, error, again, live?.id, live?.live, modelName(entry, app)]);
  if (drawn === item.drawn) {
    if (live) item.progress?.(live);
    return;
  }
  item.drawn = drawn;
  item.parts.dispose();
  item.parts = new Disposer();
  item.progress = null;
  const held = item.element.contains(document.activeElement);
  item.element.replaceChildren(asked(entry, app), reply(item, entry, live, app));
  if (held) item.element.querySelector('button')?.focus();
}

/**
 * @param {Entry} entry
 * @param {App} app
 */
function asked(entry, app) {
  const { words, actions } = app;
  const { t } = words;
  const { request, labels } = entry;
  const text = request.kind === 'generate' ? request.prompt : t('chat.split', { name: labels.source ?? request.track ?? '' });
  const notes = [words.when(entry.at), ...describe(entry, app)];
  const tools = request.kind === 'generate'
    ? [
        button({ label: t('action.rerun'), icon: 'redo', iconOnly: true, kind: 'quiet', press: () => void actions.rerun(entry) }),
        button({ label: t('action.reuse'), icon: 'edit', iconOnly: true, kind: 'quiet', press: () => {
          actions.reuse(request, labels);
          app.toPrompt();
        } }),
      ]
    : [];
  return el(
    'div',
    { class: 'bubble asked' },
    el('p', { class: 'bubble-text', text }),
    el('div', { class: 'bubble-foot' }, el('span', { class: 'notes', text: notes.filter(Boolean).join(' · ') }), el('span', { class: 'tools' }, ...tools)),
  );
}

/** Known by its id until the server's list is here. @param {Entry} entry @param {App} app */
function modelName({ request }, { words, store }) {
  if (request.kind !== 'generate') return '';
  const model = store.state.models.find((item) => item.id === request.model);
  return model ? words.name(model) : request.model;
}

/** @param {Entry} entry @param {App} app */
function describe(entry, app) {
  const { request, labels } = entry;
  const { words } = app;
  const { t } = words;
  if (request.kind !== 'generate') return [];
  return [
    modelName(entry, app),
    Number.isFinite(request.duration) ? words.duration(request.duration) : '',
    request.takes > 1 ? t('summary.takes', { n: request.takes }) : '',
    request.loop ? t('summary.loop') : '',
    labels.audio_prompt ? t('chip.audioPrompt', { name: labels.audio_prompt }) : '',
    labels.continuation ? t(`chip.${request.continuation?.mode ?? 'continue'}`, { name: labels.continuation }) : '',
  ];
}

/**
 * @param {Shown} item
 * @param {Entry} entry
 * @param {Job | undefined} job the job while it is not over
 * @param {App} app
 */
function reply(item, entry, job, app) {
  const { t } = app.words;
  if (job) {
    const made = progressBubble(job, app, item.parts);
    item.progress = made.update;
    return made.element;
  }
  if (['sending', 'sent', 'queued', 'running'].includes(entry.state)) {
    return el('div', { class: 'bubble reply quiet' }, el('span', { text: t('status.sending') }));
  }
  const made = el('div', { class: `bubble reply ${entry.state}` });
  if (entry.error || entry.state === 'interrupted') made.append(trouble(entry, app, item.parts));
  if (entry.state === 'cancelled') made.append(el('p', { class: 'said', text: t(entry.tracks.length > 0 ? 'status.kept' : 'status.cancelled') }));
  if (entry.state === 'done' && entry.request.kind === 'split') made.append(el('p', { class: 'said', text: t('chat.splitDone') }));
  if (entry.unknown.length > 0) made.append(el('p', { class: 'note', text: notRead(entry.unknown, app) }));
  if (entry.tracks.length > 0) made.append(takeRow(entry, app, item.parts));
  return made;
}

/** @param {Entry} entry @param {App} app @param {Disposer} parts */
function trouble(entry, app, parts) {
  const { words, actions, dialogs } = app;
  const { t } = words;
  const { error } = entry;
  const known = error && words.has(`error.${error.code}`);
  const said = error
    ? [el('strong', { text: known ? t(`error.${error.code}`) : t('error.internal') }), el('span', { text: error.message })]
    : [el('strong', { text: t('status.interrupted') })];
  const fits = /** @type {Fit[]} */ (error?.details?.fits ?? []);
  const { request } = entry;
  const noRoom = error?.code === 'out_of_memory' && request.kind === 'generate';
  const other = noRoom ? whatFits(app, fits, request.model, (model) => void actions.retry(entry, { model })) : [];
  const missing = error?.code === 'model_missing' || error?.code === 'unknown_model';
  return el(
    'div',
    { class: 'trouble' },
    icon('warning'),
    el('div', { class: 'trouble-text', attrs: { role: 'alert' } }, ...said),
    el(
      'div',
      { class: 'trouble-actions' },
      entry.state === 'refused' && entry.again > 0 ? countdown(entry.again, app, parts) : null,
      ...other,
      missing ? button({ label: t('action.models'), press: () => dialogs.models() }) : null,
      button({ label: t('action.retry'), icon: 'redo', press: () => void actions.retry(entry) }),
    ),
  );
}

/** How long until a place should be free, second by second; outside the alert, which is read out once. @param {number} at @param {App} app @param {Disposer} parts */
function countdown(at, { words }, parts) {
  const { t } = words;
  const said = el('span', { class: 'countdown' });
  const tell = () => {
    const left = Math.ceil((at - Date.now()) / 1000);
    said.textContent = left > 0 ? t('chat.againIn', { time: words.duration(left) }) : t('chat.againNow');
    if (left <= 0) clearInterval(timer);
  };
  const timer = setInterval(tell, 1000);
  parts.add(() => clearInterval(timer));
  tell();
  return said;
}

/** What to say before anything was said. @param {App} app */
function welcome(app) {
  const { store, words } = app;
  const { t } = words;
  const examples = ['one', 'two', 'three'].map((name) => t(`welcome.example.${name}`));
  return el(
    'div',
    { class: 'welcome' },
    el('h2', { text: t('welcome.title') }),
    el('p', { text: t('welcome.text') }),
    el('ul', { class: 'examples', attrs: { 'aria-label': t('welcome.examples') } }, ...examples.map((text) => el('li', {}, button({ label: text, press: () => {
      store.dispatch({ type: 'prompt', prompt: text });
      app.toPrompt();
    } })))),
  );
}
