/** The bubble of a job that is going on: progress, time left, cancel, and its sound as it grows. */

import { button, el, icon } from '../ui/dom.js';
import { drawPeaks } from '../ui/waveform.js';
import { fraction } from '../models/jobs.js';
import { clock } from '../format.js';
import { BIN_S } from '../live.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Job} Job
 * @typedef {import('../ui/dom.js').Disposer} Disposer
 */

/**
 * @param {Job} job
 * @param {App} app
 * @param {Disposer} parts
 * @returns {{element: HTMLElement, update: (job: Job) => void}}
 */
export function progressBubble(job, app, parts) {
  const { words, actions } = app;
  const { t } = words;
  const phase = el('span', { class: 'phase' });
  const left = el('span', { class: 'left' });
  const meter = el('progress', { class: 'progress', attrs: { max: 1, 'aria-label': t('progress.label') } });
  const note = el('p', { class: 'note' });
  let now = job;
  const cancel = button({ label: t('action.cancel'), icon: 'close', kind: 'quiet', press: () => void actions.cancel(now, false) });
  const keep = button({ label: t('progress.keep'), icon: 'check', kind: 'quiet', press: () => void actions.cancel(now, true) });
  const wave = job.live ? liveWave(job, app, parts) : null;
  const element = el(
    'div',
    { class: 'bubble reply working' },
    el('div', { class: 'progress-head' }, phase, left),
    meter,
    wave,
    note,
    el('div', { class: 'progress-actions' }, cancel, keep),
  );
  const update = (/** @type {Job} */ next) => {
    now = next;
    const share = fraction(next);
    phase.textContent = said(next, app);
    left.textContent = leftOf(next, app);
    if (share === null) meter.removeAttribute('value');
    else meter.value = share;
    meter.hidden = next.status === 'queued';
    note.textContent = notRead(next.unknown_words, app);
    note.hidden = next.unknown_words.length === 0;
    keep.hidden = !(next.kind === 'generate' && next.live_s > 0.5);
  };
  update(job);
  return { element, update };
}

/** Which words of a prompt the model did not read. @param {readonly string[]} unknown @param {App} app */
export const notRead = (unknown, { words }) => words.t('note.notRead', { words: words.listing(unknown) });

/** @param {Job} job @param {App} app */
function said({ status, phase, position }, { words, store }) {
  const { t } = words;
  if (status === 'queued') return position > 0 ? t('progress.position', { n: position }) : t('phase.queued');
  if (phase === 'loading' && store.state.health?.stack === 'loading') return t('phase.stack');
  return t(`phase.${phase}`);
}

/** @param {Job} job @param {App} app */
function leftOf(job, { words }) {
  const { t } = words;
  const share = fraction(job);
  const parts = [];
  if (job.status === 'queued') return '';
  if (share !== null) parts.push(words.percent(share));
  if (job.phase === 'downloading' && job.total > 0) {
    parts.push(t('progress.bytes', { done: words.bytes(job.done), total: words.bytes(job.total) }));
    if (job.rate) parts.push(t('progress.speed', { speed: words.bytes(job.rate) }));
  }
  if (job.eta_s !== null && job.eta_s >= 1) parts.push(t('progress.left', { time: words.duration(Math.round(job.eta_s)) }));
  return parts.join(' · ');
}

/**
 * The sound so far, on a canvas of our own; a press seeks within what is there.
 * @param {Job} job
 * @param {App} app
 * @param {Disposer} parts
 */
function liveWave(job, { live, player, words }, parts) {
  const { t } = words;
  const key = `job:${job.id}`;
  const canvas = el('canvas', { class: 'live-wave', attrs: { 'aria-hidden': 'true' } });
  const time = el('span', { class: 'time' });
  const play = button({ label: t('live.play'), icon: 'play', iconOnly: true, class: 'round', press: () => live.toggle(job.id) });
  const goal = Number(job.request.duration ?? 0);
  const extent = () => {
    const made = (live.streams.get(job.id)?.peaks.length ?? 0) * BIN_S;
    return { made, whole: Math.max(goal, made) };
  };
  canvas.addEventListener('click', (event) => {
    const { left, width } = canvas.getBoundingClientRect();
    live.seek(job.id, ((event.clientX - left) / width) * extent().whole);
  });
  let drawn = '';
  const paint = () => {
    const { made, whole } = extent();
    const here = player.key === key;
    const at = here ? player.time : 0;
    const state = `${made.toFixed(2)}/${at.toFixed(2)}/${canvas.clientWidth}`;
    if (state === drawn) return;
    drawn = state;
    drawPeaks(canvas, live.streams.get(job.id)?.peaks ?? [], { share: whole > 0 ? made / whole : 0, played: whole > 0 ? at / whole : 0 });
    time.textContent = here ? `${clock(at)} / ${clock(made)}` : clock(made);
  };
  const show = () => {
    const on = player.isPlaying(key);
    play.replaceChildren(icon(on ? 'pause' : 'play'));
    play.setAttribute('aria-label', t(on ? 'live.pause' : 'live.play'));
  };
  player.addEventListener('change', show, { signal: parts.signal });
  show();
  parts.everyFrame(paint);
  return el('div', { class: 'live' }, play, canvas, time);
}
