/**
 * The one active card: a track's waveform, player, actions and parameters.
 *
 * Stems have their place in it. A stems view is a function that fills a host element for one track:
 *
 * @typedef {(host: HTMLElement, track: import('../contract.js').Track, app: import('../app.js').App) => StemsPart} StemsView
 * @typedef {object} StemsPart
 * @property {(track: import('../contract.js').Track) => void} update the same track changed (stems were added or removed)
 * @property {() => void} dispose end listeners and sound
 *
 * main.js gives it to mountCard. The host is empty and hidden while there is no such view. The page sounds one thing
 * at a time: pause `app.player` before sounding, and stop when it emits 'change' with `playing` true. Keyboard
 * commands come as events of `app.commands`: 'solo' (detail 1..9) and 'mute'.
 */

import * as api from '../api.js';
import { Disposer, breakable, button, el, icon, setAttrs } from '../ui/dom.js';
import { waveform } from '../ui/waveform.js';
import { trackSound } from '../audio/player.js';
import { clock } from '../format.js';
import { parameterTable } from './parameters.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Track} Track
 */

const BINS = 1200;
const WAVE_HEIGHT = 112;
const SEAM_S = 2;

/**
 * @param {HTMLElement} host
 * @param {App} app
 * @param {StemsView | null} stems
 * @returns {() => void}
 */
export function mountCard(host, app, stems) {
  const { store, words, player } = app;
  const view = new Disposer();
  let parts = new Disposer();
  /** @type {((track: Track) => void) | null} */
  let update = null;
  /** @type {string | null} */
  let shown = null;
  host.setAttribute('aria-label', words.t('card.title'));
  const show = () => {
    const { active, tracks } = store.state;
    const track = active ? tracks[active] : undefined;
    if (track && track.name === shown) {
      update?.(track);
      return;
    }
    parts.dispose();
    parts = new Disposer();
    shown = track?.name ?? null;
    host.classList.toggle('open', Boolean(track));
    if (!track) {
      update = null;
      host.replaceChildren(el('p', { class: 'card-empty', text: words.t('card.empty') }));
      return;
    }
    // Another track in the card is another sound in the player, unless that one is sounding or being compared.
    if (!player.playing && player.key !== `track:${track.name}`) void player.load(trackSound(track, api.audioUrl(track.name)));
    update = card(host, track, app, parts, stems);
  };
  show();
  view.add(store.watch((state) => state.active, show));
  view.add(store.watch((state) => state.tracks, show));
  view.add(() => parts.dispose());
  return () => view.dispose();
}

/**
 * @param {HTMLElement} host
 * @param {Track} first
 * @param {App} app
 * @param {Disposer} parts
 * @param {StemsView | null} stems
 * @returns {(track: Track) => void} shows what changed in the same track
 */
function card(host, first, app, parts, stems) {
  const { t } = app.words;
  let track = first;
  const now = () => track;
  const head = header(now, app);
  const stemsHost = el('section', { class: 'stems', attrs: { 'aria-label': t('card.stems'), hidden: true } });
  const acts = el('div', { class: 'card-actions' });
  const table = el('section', { class: 'parameters', attrs: { 'aria-label': t('card.parameters') } });
  host.replaceChildren(head.element, el('p', { class: 'card-prompt', text: track.prompt }), playerPart(now, app, parts), acts, stemsHost, table);
  host.scrollTop = 0;
  const part = stems?.(stemsHost, track, app);
  if (part) {
    stemsHost.hidden = false;
    parts.add(() => part.dispose());
  }
  const draw = (/** @type {Track} */ next) => {
    track = next;
    head.update();
    acts.replaceChildren(...actionButtons(track, app));
    table.replaceChildren(...parameterTable(track, app));
  };
  draw(track);
  return (next) => {
    if (next === track) return;
    draw(next);
    part?.update(next);
  };
}

/** @param {() => Track} track @param {App} app */
function header(track, { words, actions, store }) {
  const { t } = words;
  const favourite = button({ label: t('action.favourite'), icon: 'star', iconOnly: true, kind: 'quiet', pressed: false, press: () => void actions.mark(track(), { favourite: !track().favourite }) });
  const lock = button({ label: t('action.lock'), icon: 'unlock', iconOnly: true, kind: 'quiet', pressed: false, press: () => void actions.mark(track(), { locked: !track().locked }) });
  const close = button({ label: t('card.close'), icon: 'back', iconOnly: true, kind: 'quiet', class: 'card-back', press: () => store.dispatch({ type: 'open', name: null }) });
  close.append(icon('close'));
  const element = el(
    'header',
    { class: 'card-head' },
    close,
    el('h2', { class: 'card-title', attrs: { title: track().file } }, ...breakable(track().file)),
    favourite,
    lock,
  );
  const update = () => {
    const { favourite: starred, locked } = track();
    favourite.replaceChildren(icon(starred ? 'star-on' : 'star'));
    setAttrs(favourite, { 'aria-pressed': String(starred) });
    lock.replaceChildren(icon(locked ? 'lock' : 'unlock'));
    setAttrs(lock, { 'aria-pressed': String(locked) });
  };
  return { element, update };
}

/** @param {Track} track @param {App} app */
function actionButtons(track, { words, actions, dialogs, toPrompt }) {
  const { t } = words;
  const made = track.asked.kind === undefined || track.asked.kind === 'generate';
  return [
    made ? button({ label: t('action.rerun'), icon: 'redo', press: () => void actions.rerunTrack(track) }) : null,
    made ? button({ label: t('action.reuse'), icon: 'edit', press: () => {
      actions.reuseTrack(track);
      toPrompt();
    } }) : null,
    button({ label: t('action.extend'), icon: 'extend', press: () => dialogs.extend(track) }),
    button({ label: t('action.split'), icon: 'split', press: () => dialogs.split(track) }),
    button({ label: t('action.downloadAs'), icon: 'download', press: () => dialogs.download(track) }),
    button({ label: t('action.delete'), icon: 'trash', kind: 'danger', disabled: track.locked, press: () => dialogs.remove(track), attrs: { title: track.locked ? t('card.lockedHint') : null } }),
  ].filter((item) => item !== null);
}

/**
 * Waveform and transport.
 * @param {() => Track} track
 * @param {App} app
 * @param {Disposer} parts
 */
function playerPart(track, app, parts) {
  const { player, words, store, actions } = app;
  const { t } = words;
  const key = `track:${track().name}`;
  const seconds = track().duration_s;
  const wave = el('div', { class: 'wave' });
  const mine = () => player.key === key;
  const sound = (/** @type {number} */ at, /** @type {boolean} */ play) => player.load(trackSound(track(), api.audioUrl(track().name)), { at, play });
  const seek = (/** @type {number} */ at) => {
    if (mine()) player.seek(at);
    else void sound(at, player.playing);
  };
  const play = button({ label: t('player.play'), icon: 'play', iconOnly: true, class: 'round big', press: () => void actions.toggle(track()) });
  const loop = button({
    label: t('player.loop'),
    icon: 'loop',
    iconOnly: true,
    kind: 'quiet',
    pressed: false,
    press: async () => {
      if (!mine()) await sound(0, false);
      player.setLoop(player.loop ? null : { start: 0, end: seconds });
    },
  });
  loop.dataset.command = 'loop';
  const seam = button({
    label: t('seam.hear'),
    icon: 'loop',
    pressed: false,
    press: async () => {
      if (mine() && player.seamOnly) {
        player.pause();
        return;
      }
      if (!mine()) await sound(0, false);
      await player.hearSeam(SEAM_S);
    },
    attrs: { title: t('seam.hint', { n: SEAM_S }) },
  });
  const position = el('span', { class: 'time', text: `0:00 / ${clock(seconds)}` });
  const volume = el('input', { class: 'slider volume', attrs: { type: 'range', min: 0, max: 1, step: 0.01, 'aria-label': t('player.volume') } });
  volume.addEventListener('input', () => store.dispatch({ type: 'prefs', prefs: { volume: Number(volume.value) } }));
  const mute = button({ label: t('player.mute'), icon: 'volume', iconOnly: true, kind: 'quiet', press: () => store.dispatch({ type: 'prefs', prefs: { volume: player.volume > 0 ? 0 : 1 } }) });
  const download = el('a', { class: 'button quiet icon-only', attrs: { href: api.audioUrl(track().name), download: track().file, 'aria-label': t('player.download'), title: t('player.download') } }, icon('download'));

  /** @type {ReturnType<typeof waveform> | null} */
  let drawn = null;
  const show = () => {
    const on = player.isPlaying(key);
    play.replaceChildren(icon(on ? 'pause' : 'play'));
    setAttrs(play, { 'aria-label': t(on ? 'player.pause' : 'player.play'), title: t(on ? 'player.pause' : 'player.play') });
    loop.setAttribute('aria-pressed', String(mine() && player.loop !== null));
    seam.setAttribute('aria-pressed', String(mine() && player.seamOnly));
    drawn?.showLoop(mine() ? player.loop : null);
    volume.value = String(player.volume);
    volume.style.setProperty('--share', `${player.volume * 100}%`);
    mute.replaceChildren(icon(player.volume > 0 ? 'volume' : 'muted'));
  };
  const load = async () => {
    wave.replaceChildren(el('span', { class: 'wave-note', text: t('card.loadingWave') }));
    try {
      const peaks = await api.peaks(track().name, BINS, parts.signal);
      wave.replaceChildren();
      drawn = waveform({ host: wave, nonce: app.nonce, peaks, seconds, height: WAVE_HEIGHT, seek, loop: (span) => player.setLoop(span) });
      show();
    } catch (problem) {
      if (parts.signal.aborted) return;
      wave.replaceChildren(
        el('span', { class: 'wave-note', text: `${t('card.noWave')} ${api.asError(problem).message}` }),
        button({ label: t('action.retry'), kind: 'quiet', press: () => void load() }),
      );
    }
  };
  show();
  void load();
  player.addEventListener('change', show, { signal: parts.signal });
  let told = '';
  parts.everyFrame(() => {
    const at = mine() ? player.time : 0;
    drawn?.show(Math.min(at, seconds));
    const text = `${clock(at)} / ${clock(seconds)}`;
    if (text !== told) position.textContent = told = text;
  });
  parts.add(() => drawn?.dispose());
  const themes = new MutationObserver(() => drawn?.repaint());
  themes.observe(document.documentElement, { attributeFilter: ['data-theme'] });
  parts.add(() => themes.disconnect());
  return el(
    'section',
    { class: 'player', attrs: { 'aria-label': t('player.title') } },
    wave,
    el('div', { class: 'transport' }, play, position, loop, el('span', { class: 'push' }), mute, volume, download),
    track().loop ? el('div', { class: 'transport' }, seam) : null,
  );
}
