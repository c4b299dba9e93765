/** What came of a request: one track as a line, several takes side by side with quick A/B. */

import * as api from '../api.js';
import { button, el, icon } from '../ui/dom.js';
import { drawPeaks } from '../ui/waveform.js';
import { clock } from '../format.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../models/chat.js').Entry} Entry
 * @typedef {import('../models/chat.js').TrackRef} TrackRef
 * @typedef {import('../ui/dom.js').Disposer} Disposer
 */

const BINS = 160;

/**
 * @param {Entry} entry
 * @param {App} app
 * @param {Disposer} parts
 */
export function takeRow(entry, app, parts) {
  const { t } = app.words;
  const many = entry.tracks.length > 1;
  const names = entry.tracks.map((track) => track.name).filter((name) => !entry.removed.includes(name));
  const rows = entry.tracks.map((track) =>
    entry.removed.includes(track.name) ? removed(track, app) : take(track, names, many, app, parts),
  );
  return el(
    'div',
    { class: many ? 'takes many' : 'takes', attrs: many ? { role: 'group', 'aria-label': t('takes.title') } : {} },
    many ? el('p', { class: 'takes-hint', text: t('takes.hint') }) : null,
    ...rows,
  );
}

/** @param {TrackRef} track @param {App} app */
function removed(track, { words }) {
  return el('p', { class: 'take removed' }, icon('trash'), el('s', { text: track.file }), el('span', { text: words.t('chat.deleted') }));
}

/**
 * @param {TrackRef} track
 * @param {readonly string[]} names the takes it is compared with
 * @param {boolean} many
 * @param {App} app
 * @param {Disposer} parts
 */
function take(track, names, many, app, parts) {
  const { player, words, actions } = app;
  const { t } = words;
  const key = `track:${track.name}`;
  const label = (/** @type {boolean} */ on) => t(on ? 'take.pause' : 'take.play', { name: many ? t('take.number', { n: track.take }) : track.file });
  const play = button({
    label: label(false),
    icon: 'play',
    iconOnly: true,
    class: 'round',
    press: async () => {
      await ready(track.name, app);
      await actions.compare(names, names.indexOf(track.name));
    },
  });
  const wave = el('canvas', { class: 'take-wave', attrs: { 'aria-hidden': 'true' } });
  const open = button({ label: many ? shortened(track.file) : track.file, kind: 'link', press: () => void actions.open(track.name), attrs: { 'data-track': track.name, title: track.file } });
  const facts = [many ? t('take.number', { n: track.take }) : '', track.duration_s > 0 ? clock(track.duration_s) : ''].filter(Boolean);
  const show = () => {
    const on = player.isPlaying(key);
    play.replaceChildren(icon(on ? 'pause' : 'play'));
    play.setAttribute('aria-label', label(on));
    play.title = label(on);
  };
  show();
  player.addEventListener('change', show, { signal: parts.signal });
  drawn(wave, track, app, parts);
  return el('div', { class: 'take' }, play, el('div', { class: 'take-main' }, el('div', { class: 'take-head' }, open, el('span', { class: 'time', text: facts.join(' · ') })), wave));
}

/** Takes differ at the end of their names, so the middle goes. @param {string} file */
function shortened(file) {
  return file.length > 20 ? `${file.slice(0, 6)}…${file.slice(-13)}` : file;
}

/** @param {string} name @param {App} app */
async function ready(name, { store, actions }) {
  if (store.state.tracks[name]) return;
  try {
    store.dispatch({ type: 'track', track: await api.track(name) });
  } catch (problem) {
    actions.report(problem);
  }
}

/**
 * Its waveform, fetched when it first comes into sight.
 * @param {HTMLCanvasElement} canvas
 * @param {TrackRef} track
 * @param {App} app
 * @param {Disposer} parts
 */
function drawn(canvas, track, { player }, parts) {
  /** @type {[number, number][]} */
  let peaks = [];
  let due = true;
  const key = `track:${track.name}`;
  const again = () => (due = true);
  const paint = () => {
    const here = player.key === key;
    if (peaks.length === 0 || (!due && !here)) return;
    due = false;
    drawPeaks(canvas, peaks, { share: 1, played: here && track.duration_s > 0 ? player.time / track.duration_s : 0 });
  };
  const seen = new IntersectionObserver((records) => {
    if (!records.some((record) => record.isIntersecting)) return;
    seen.disconnect();
    api.peaks(track.name, BINS, parts.signal).then(
      (found) => {
        peaks = found;
        parts.everyFrame(paint);
      },
      () => canvas.remove(),
    );
  });
  const sized = new ResizeObserver(again);
  const themed = new MutationObserver(again);
  sized.observe(canvas);
  themed.observe(document.documentElement, { attributeFilter: ['data-theme'] });
  player.addEventListener('change', again, { signal: parts.signal });
  parts.add(() => sized.disconnect());
  parts.add(() => themed.disconnect());
  seen.observe(canvas);
  parts.add(() => seen.disconnect());
  canvas.addEventListener('click', (event) => {
    if (player.key !== key) return;
    const { left, width } = canvas.getBoundingClientRect();
    player.seek(((event.clientX - left) / width) * track.duration_s);
  });
}
