/** Starts the page: state, sound, connection, views; and mounts the views again when the language changes. */

import * as api from './api.js';
import * as prefs from './prefs.js';
import { Actions } from './actions.js';
import { Player } from './audio/player.js';
import { command } from './keys.js';
import { empty } from './models/library.js';
import { isFinal } from './models/jobs.js';
import { Live } from './live.js';
import { Store } from './store.js';
import { announce } from './announce.js';
import { isTyping } from './ui/dom.js';
import { loadWords } from './i18n.js';
import { mountBanner } from './views/banner.js';
import { mountBar } from './views/bar.js';
import { mountCard } from './views/card.js';
import { mountChat } from './views/chat.js';
import { mountComposer } from './views/composer.js';
import { mountDrop } from './views/drop.js';
import { mixerView } from './views/mixer.js';
import { mountSettings } from './views/settings.js';
import { readFacts, styleNonce } from './contract.js';
import { showLibrary } from './views/library.js';
import { showModels } from './views/models.js';
import { toaster } from './ui/toast.js';
import { wayBack } from './back.js';
import * as questions from './views/questions.js';
import { io } from '../vendor/socket.io.esm.min.js';

/** @typedef {import('./app.js').App} App */

/** A connection that comes back within this is not worth a word. */
const LOST_AFTER_MS = 1500;
const HEALTH_EVERY_MS = 2000;
/** Where the card slides over the chat; layout.css has the same. */
const NARROW = '(max-width: 899.98px)';

/** Where a command's key is a control's own. @type {Readonly<Record<string, string>>} */
const OWN_KEYS = { play: 'button, a, summary, label', seek: '[type="range"]' };

/** @param {string} id */
const place = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

async function start() {
  const facts = readFacts(document);
  const storage = prefs.browserStorage();
  const kept = prefs.restore(storage, facts.parameters, navigator.languages);
  const store = new Store({
    connection: 'connecting',
    outdated: false,
    health: null,
    models: [],
    jobs: {},
    tracks: {},
    library: empty(),
    active: null,
    attachments: { audioPrompt: null, base: null },
    chat: kept.chat,
    values: kept.values,
    presets: kept.presets,
    prompt: kept.prompt,
    prefs: kept.prefs,
  });
  const words = await loadWords(kept.prefs.language);
  const player = new Player();
  player.setVolume(kept.prefs.volume);
  const toast = toaster(place('toasts'));
  /** @type {App} */
  const app = {
    store,
    player,
    facts,
    words,
    nonce: styleNonce(document),
    commands: new EventTarget(),
    tell: (text, options = {}) => toast(text, { ...options, close: app.words.t('action.close') }),
    actions: new Actions(store, player, facts, (problem, retry) => report(app, problem, retry)),
    live: new Live(store, player, (clientId) => app.actions.asked.has(clientId)),
    toPrompt: () => {
      if (matchMedia(NARROW).matches) store.dispatch({ type: 'open', name: null });
      place('prompt').focus();
    },
    dialogs: {
      models: () => showModels(app),
      library: (pick) => showLibrary(app, pick),
      clear: () => void questions.askClear(app),
      keys: () => questions.showKeys(app),
      dropped: (file) => void questions.askDropped(app, file),
      extend: (track) => void questions.askExtend(app, track),
      remove: (track) => void questions.askRemove(app, track),
      download: (track) => void questions.askDownload(app, track),
      split: (track) => void questions.askSplit(app, track),
      upload: (file) => questions.sendFile(app, file),
    },
  };
  prefs.keep(storage, store, () => app.tell(app.words.t('storage.full'), { error: true }));
  follow(app);
  shortcuts(app);
  mount(app);
  connect(app);
}

/** @param {App} app @param {unknown} problem @param {() => void} [retry] */
function report(app, problem, retry) {
  const { t } = app.words;
  const { code, message } = api.asError(problem);
  const known = app.words.has(`error.${code}`) ? `${t(`error.${code}`)} ` : '';
  app.tell(`${known}${message}`, { error: true, ...(retry ? { action: { label: t('action.retry'), press: retry } } : {}) });
}

/** @param {App} app */
function mount(app) {
  let undo = mountAll(app);
  app.store.watch((state) => state.prefs.language, async (language) => {
    if (language === app.words.language) return;
    const focused = document.activeElement?.id;
    let words;
    try {
      words = await loadWords(language);
    } catch (problem) {
      report(app, problem);
      app.store.dispatch({ type: 'prefs', prefs: { language: app.words.language } });
      return;
    }
    // Changed back meanwhile.
    if (app.store.state.prefs.language !== language) return;
    app.words = words;
    undo();
    undo = mountAll(app);
    if (focused) document.getElementById(focused)?.focus();
  });
}

/** @param {App} app */
function mountAll(app) {
  const { t, language } = app.words;
  document.documentElement.lang = language;
  document.title = t('bar.title');
  place('skip').textContent = t('bar.skip');
  const undo = [
    mountBar(place('bar'), app),
    mountBanner(place('banner'), app),
    mountChat(place('scroll'), app),
    mountComposer(place('composer'), app),
    mountSettings(place('settings'), app),
    mountCard(place('card'), app, mixerView),
    mountDrop(document, app),
    announce(place('announcer'), app),
  ];
  return () => {
    for (const one of undo.reverse()) one();
  };
}

/** Keep the document, the sound and the library in step with the state. @param {App} app */
function follow(app) {
  const { store, player, actions } = app;
  const light = matchMedia('(prefers-color-scheme: light)');
  const theme = () => {
    const { theme: chosen } = store.state.prefs;
    document.documentElement.dataset.theme = chosen === 'auto' ? (light.matches ? 'light' : 'dark') : chosen;
  };
  const compact = () => document.body.classList.toggle('compact', store.state.prefs.compact);
  const card = () => document.body.classList.toggle('with-card', store.state.active !== null);
  theme();
  compact();
  light.addEventListener('change', theme);
  store.watch((state) => state.prefs.theme, theme);
  store.watch((state) => state.prefs.compact, compact);
  store.watch((state) => state.active, card);
  store.watch((state) => state.prefs.volume, (volume) => player.setVolume(volume));
  // What sounds stops when its track goes.
  store.watch((state) => state.tracks, (now, before) => {
    const name = player.key?.startsWith('track:') ? player.key.slice('track:'.length) : null;
    if (name !== null && before[name] && !now[name]) player.unload();
  });
  store.watch((state) => state.jobs, (now, before) => {
    const over = Object.values(now).filter((job) => {
      const known = before[job.id];
      return isFinal(job) && !(known && isFinal(known));
    });
    for (const job of over) finished(app, job);
  });
  const narrow = matchMedia(NARROW);
  const covered = () => narrow.matches && store.state.active !== null;
  const settle = wayBack(window, covered, () => store.dispatch({ type: 'open', name: null }));
  const cover = () => {
    for (const id of ['chat', 'bar']) place(id).inert = covered();
    settle();
  };
  narrow.addEventListener('change', cover);
  store.watch((state) => state.active, cover);
  // What is asked for in the card is answered in the chat.
  store.watch((state) => state.chat.at(-1), (last, before) => {
    if (narrow.matches && last?.state === 'sending' && last.id !== before?.id) store.dispatch({ type: 'open', name: null });
  });
  /** @type {Error | null} */
  let told = null;
  player.addEventListener('change', () => {
    const { problem } = player;
    const name = player.key?.replace(/^\w+:/, '') ?? '';
    if (problem && problem !== told) app.tell(app.words.t('player.failed', { file: store.state.tracks[name]?.file ?? name }), { error: true });
    told = problem;
  });
  setInterval(() => {
    const { health, connection } = store.state;
    const settled = health !== null && ['ready', 'failed'].includes(health.stack) && health.model_state !== 'loading';
    if (connection === 'online' && (!settled || actions.waiting())) void actions.health();
  }, HEALTH_EVERY_MS);
}

/**
 * @param {App} app
 * @param {import('./contract.js').Job} job
 */
async function finished(app, job) {
  const { actions, player, live } = app;
  void actions.health();
  if (job.kind === 'load') {
    await loaded(app, job);
    return;
  }
  const name = job.tracks[0] ?? job.track;
  if (!name || !actions.asked.has(job.client_id)) return;
  // Its sound may have become the track's already.
  const heard = player.key === `job:${job.id}` || player.key === `track:${name}`;
  // The card must not cover the chat of a small screen, nor take the place of another track that is being heard.
  if (!matchMedia(NARROW).matches && (heard || !player.busy)) await actions.open(name);
  live.settle(job);
  live.catchUp(job);
}

/**
 * A model that was fetched from here is the one that answers from now on.
 * @param {App} app
 * @param {import('./contract.js').Job} job
 */
async function loaded({ actions, store, words, tell }, job) {
  await actions.refreshModels();
  const model = store.state.models.find((item) => item.id === job.request.model);
  if (!actions.asked.has(job.client_id) || !model) return;
  if (job.status === 'done' && model.state === 'ready') {
    if (store.state.values.model !== model.id) tell(words.t('models.nowAnswers', { name: words.name(model) }));
    actions.choose(model.id);
  } else if (job.status === 'failed') {
    actions.report(new api.ApiError(job.error ?? { code: 'internal', message: '' }, 0), () => void actions.fetchModel(model.id));
  }
}

/** @param {App} app */
function connect(app) {
  const { store, actions, facts } = app;
  let lost = 0;
  const socket = api.listen(() => io({ transports: ['websocket', 'polling'], reconnectionDelayMax: 3000 }), facts.protocol, {
    connection: (connected) => {
      clearTimeout(lost);
      if (connected) store.dispatch({ type: 'connection', connection: 'online' });
      else lost = window.setTimeout(() => store.dispatch({ type: 'connection', connection: 'lost' }), LOST_AFTER_MS);
    },
    hello: (hello) => {
      store.dispatch({ type: 'models', models: hello.models });
      actions.chooseModel();
      store.dispatch({ type: 'jobs', jobs: hello.jobs });
      void actions.findLost(hello.jobs);
      void actions.health();
      void actions.list().then(() => actions.checkTracks());
    },
    job: (job) => store.dispatch({ type: 'job', job }),
    library: (change) => store.dispatch({ type: 'library', change }),
    outdated: () => store.dispatch({ type: 'outdated' }),
  });
  window.addEventListener('pagehide', () => socket.close());
  // Back from the browser's own cache, the page is as it was left: without a connection.
  window.addEventListener('pageshow', (event) => {
    if (event.persisted) socket.connect();
  });
}

/** @param {App} app */
function shortcuts(app) {
  const { player, store, commands, dialogs } = app;
  document.addEventListener('keydown', (event) => {
    const { target } = event;
    if (document.querySelector('dialog[open], :popover-open')) return;
    if (event.key === 'Escape' && store.state.active !== null && (matchMedia(NARROW).matches || !isTyping(target))) {
      store.dispatch({ type: 'open', name: null });
      return;
    }
    if (isTyping(target)) return;
    const wanted = command(event);
    if (!wanted) return;
    if (target instanceof Element && target.closest(OWN_KEYS[wanted.name] ?? ':not(*)')) return;
    event.preventDefault();
    // A view that sounds by itself, as the mixer does, may take what moves the sound.
    const detail = wanted.name === 'seek' ? wanted.seconds : wanted.name === 'solo' ? wanted.stem : null;
    if (!commands.dispatchEvent(new CustomEvent(wanted.name, { cancelable: true, detail }))) return;
    switch (wanted.name) {
      case 'play':
        if (player.sound) void player.toggle();
        break;
      case 'seek':
        player.seek(player.time + wanted.seconds);
        break;
      case 'loop':
        /** @type {HTMLElement | null} */ (document.querySelector('[data-command="loop"]'))?.click();
        break;
      case 'prompt':
        app.toPrompt();
        break;
      case 'help':
        dialogs.keys();
        break;
    }
  });
}

void start();
