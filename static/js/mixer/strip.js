/** One stem's row: its name, mute, solo, volume, pan, waveform, level, and what can be taken from it. */

import * as api from '../api.js';
import { Disposer, busy, button, el, icon, setAttrs } from '../ui/dom.js';
import { drawNotes, drawWave, pitchName, pitchRange } from './draw.js';
import { HIGHEST_DB, LOWEST_DB, NEUTRAL, decibels, isHeard } from './law.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Track} Track
 * @typedef {import('./law.js').Strip} Strip
 * @typedef {import('./law.js').Strips} Strips
 *
 * @typedef {object} Asked
 * @property {App} app
 * @property {Track} track
 * @property {string} name the stem
 * @property {(change: Partial<Strip>) => void} change
 * @property {(wave: HTMLElement) => void} place the waveform was made: the mixer puts its playhead and seeking there
 *
 * @typedef {object} StripPart
 * @property {HTMLElement} element
 * @property {HTMLButtonElement} mute
 * @property {(strips: Strips) => void} show
 * @property {(peak: number) => void} level
 * @property {(peaks: [number, number][], loudest: number) => void} wave
 * @property {() => void} repaint
 * @property {() => void} dispose
 */

/** Above this the meter warns: -3 dBFS. */
const HOT = 0.708;
/** What of its fall a meter keeps from frame to frame. */
const FALL = 0.9;

/** @param {Asked} asked @returns {StripPart} */
export function strip({ app, track, name, change, place }) {
  const { words } = app;
  const { t } = words;
  const parts = new Disposer();
  const title = t(`stem.${name}`);
  const mute = button({ label: t('mixer.mute', { stem: title }), iconOnly: true, kind: 'letter', pressed: false, press: () => change({ mute: mute.getAttribute('aria-pressed') !== 'true' }) });
  mute.textContent = 'M';
  const solo = button({ label: t('mixer.solo', { stem: title }), iconOnly: true, kind: 'letter solo', pressed: false, press: () => change({ solo: solo.getAttribute('aria-pressed') !== 'true' }) });
  solo.textContent = 'S';
  const volume = slider(t('mixer.volume', { stem: title }), LOWEST_DB, HIGHEST_DB, 0.5, (gainDb) => change({ gainDb }));
  const pan = slider(t('mixer.pan', { stem: title }), -1, 1, 0.05, (value) => change({ pan: value }));
  const loud = el('output');
  const side = el('output');
  const canvas = el('canvas', { class: 'strip-canvas', attrs: { 'aria-hidden': 'true' } });
  const wave = el('div', { class: 'strip-wave' }, canvas);
  const bar = el('i');
  const notes = notesPart(app, track, name, title, parts);
  const file = api.stemUrl(track.name, name);
  const download = el('a', { class: 'button quiet icon-only', attrs: { href: `${file}?download`, download: '', 'aria-label': t('mixer.download', { stem: title }), title: t('mixer.download', { stem: title }) } }, icon('download'));
  const element = el(
    'div',
    { class: 'strip', attrs: { role: 'group', 'aria-label': title, 'data-stem': name } },
    el(
      'div',
      { class: 'strip-line' },
      el('span', { class: 'strip-name', text: title }),
      mute,
      solo,
      el('span', { class: 'fader' }, volume, loud),
      el('span', { class: 'fader pan' }, pan, side),
    ),
    el('div', { class: 'strip-line' }, el('div', { class: 'strip-view' }, wave, el('div', { class: 'meter', attrs: { 'aria-hidden': 'true' } }, bar)), notes.toggle, download),
    notes.panel,
  );
  place(wave);
  /** @type {[[number, number][], number] | null} */
  let drawn = null;
  let shownLevel = 0;
  const repaint = () => {
    if (drawn) drawWave(canvas, ...drawn);
    notes.repaint();
  };
  const sizes = new ResizeObserver(repaint);
  sizes.observe(wave);
  parts.add(() => sizes.disconnect());
  return {
    element,
    mute,
    show: (strips) => {
      const { gainDb, pan: turned, mute: muted, solo: soloed } = strips[name] ?? NEUTRAL;
      mute.setAttribute('aria-pressed', String(muted));
      solo.setAttribute('aria-pressed', String(soloed));
      element.classList.toggle('unheard', !isHeard(strips, name));
      setSlider(volume, gainDb, gainDb <= LOWEST_DB ? t('mixer.silent') : t('mixer.db', { n: signed(words, gainDb) }));
      setSlider(pan, turned, panText(words, turned));
      loud.textContent = gainDb <= LOWEST_DB ? '−∞' : t('mixer.db', { n: signed(words, gainDb) });
      side.textContent = panText(words, turned);
    },
    level: (peak) => {
      shownLevel = Math.max(peak, shownLevel * FALL);
      bar.style.transform = `scaleX(${1 - decibels(shownLevel) / LOWEST_DB})`;
      bar.classList.toggle('hot', shownLevel > HOT);
      bar.classList.toggle('clip', shownLevel > 1);
    },
    wave: (peaks, loudest) => {
      drawn = [peaks, loudest];
      drawWave(canvas, peaks, loudest);
    },
    repaint,
    dispose: () => parts.dispose(),
  };
}

/**
 * @param {string} label
 * @param {number} min
 * @param {number} max
 * @param {number} step
 * @param {(value: number) => void} change
 */
function slider(label, min, max, step, change) {
  const made = el('input', { class: 'slider', attrs: { type: 'range', min, max, step, 'aria-label': label, title: label } });
  made.addEventListener('input', () => change(Number(made.value)));
  made.addEventListener('dblclick', () => change(0));
  return made;
}

/** @param {HTMLInputElement} control @param {number} value @param {string} text */
function setSlider(control, value, text) {
  control.value = String(value);
  setAttrs(control, { 'aria-valuetext': text });
  const { min, max } = control;
  control.style.setProperty('--share', `${((value - Number(min)) / (Number(max) - Number(min))) * 100}%`);
}

/** @param {import('../i18n.js').Words} words @param {number} value */
function signed(words, value) {
  const text = words.number(Math.abs(value), 1);
  return value === 0 ? text : `${value > 0 ? '+' : '−'}${text}`;
}

/** @param {import('../i18n.js').Words} words @param {number} pan */
function panText(words, pan) {
  if (Math.abs(pan) < 0.005) return words.t('mixer.middle');
  return words.t(pan < 0 ? 'mixer.left' : 'mixer.right', { n: Math.round(Math.abs(pan) * 100) });
}

/**
 * The notes of a stem: asked for on the first press, then shown and hidden.
 * @param {App} app
 * @param {Track} track
 * @param {string} name
 * @param {string} title
 * @param {Disposer} parts
 */
function notesPart(app, track, name, title, parts) {
  const { words, actions } = app;
  const { t } = words;
  const canvas = el('canvas', { class: 'roll', attrs: { role: 'img' } });
  const said = el('span', { class: 'hint' });
  const save = el('a', { class: 'button quiet', attrs: { href: api.midiUrl(track.name, name), download: '' } }, icon('download'), el('span', { text: t('mixer.midi') }));
  const panel = el('div', { class: 'strip-notes', attrs: { hidden: true } }, canvas, el('div', { class: 'strip-line' }, said, el('span', { class: 'push' }), save));
  /** @type {{seconds: number, notes: import('./draw.js').Note[]} | null} */
  let known = null;
  const repaint = () => {
    if (known && !panel.hidden) drawNotes(canvas, known.notes, known.seconds);
  };
  const show = (/** @type {boolean} */ open) => {
    panel.hidden = !open;
    toggle.setAttribute('aria-expanded', String(open));
    repaint();
  };
  const find = async () => {
    said.textContent = t('mixer.notesBusy');
    canvas.hidden = true;
    save.hidden = true;
    show(true);
    try {
      known = await api.notes(track.name, name, parts.signal);
      const range = known.notes.length > 0 ? pitchRange(known.notes) : null;
      said.textContent = t('mixer.notes', { n: known.notes.length });
      canvas.hidden = !range;
      save.hidden = !range;
      if (range) canvas.setAttribute('aria-label', t('mixer.roll', { stem: title, n: known.notes.length, low: pitchName(range.low + 1), high: pitchName(range.high - 1) }));
      repaint();
    } catch (problem) {
      if (parts.signal.aborted) return;
      show(false);
      actions.report(problem, () => void busy(toggle, find));
    }
  };
  const toggle = button({
    label: t('mixer.showNotes', { stem: title }),
    icon: 'notes',
    iconOnly: true,
    kind: 'quiet',
    attrs: { 'aria-expanded': 'false' },
    press: () => {
      if (known) show(panel.hidden === true);
      else void busy(toggle, find);
    },
  });
  return { toggle, panel, repaint };
}
