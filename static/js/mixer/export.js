/** What leaves the mixer: the mix as a file or as a track, and the stems in one archive. */

import * as api from '../api.js';
import { button, el, select } from '../ui/dom.js';
import { open } from '../ui/dialog.js';
import { isHeard, toContract } from './law.js';
import { render } from './render.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Track} Track
 * @typedef {import('./law.js').Strips} Strips
 * @typedef {import('./render.js').Format} Format
 *
 * @typedef {object} Desk what there is to be exported
 * @property {Track} track
 * @property {Strips} strips
 * @property {ReadonlyMap<string, import('./source.js').StemSource>} sources
 * @property {import('./wav.js').Layout} layout
 * @property {import('../audio/schedule.js').Span | null} loop frames
 */

/**
 * Ask how, then render what is heard.
 * @param {App} app
 * @param {Desk} desk
 */
export async function askMixdown(app, desk) {
  const { t, listing } = app.words;
  const heard = Object.keys(desk.strips).filter((name) => isHeard(desk.strips, name));
  const format = select([{ value: 'int24', label: t('mixdown.whole_bits') }, { value: 'float', label: t('mixdown.float') }], 'int24', () => {}, { id: 'mixdown-format' });
  const span = select([{ value: 'all', label: t('mixdown.whole') }, { value: 'loop', label: t('mixdown.loop') }], desk.loop ? 'loop' : 'all', () => {}, { id: 'mixdown-span' });
  const nothing = heard.length === 0;
  const shown = open({
    title: t('mixdown.title'),
    closeLabel: t('action.close'),
    body: [
      el('p', { class: 'hint', text: nothing ? t('mixdown.nothing') : t('mixdown.heard', { stems: listing.call(app.words, heard.map((name) => t(`stem.${name}`))) }) }),
      el('div', { class: 'field' }, el('label', { text: t('mixdown.format'), attrs: { for: 'mixdown-format' } }), format),
      desk.loop ? el('div', { class: 'field' }, el('label', { text: t('mixdown.span'), attrs: { for: 'mixdown-span' } }), span) : null,
    ],
    actions: [
      button({ label: t('mixdown.asTrack'), icon: 'plus', disabled: nothing, press: () => shown.dialog.close('track') }),
      button({ label: t('mixdown.download'), icon: 'download', kind: 'primary', disabled: nothing, press: () => shown.dialog.close('file') }),
    ],
  });
  const answer = await shown.closed;
  if (answer === '') return;
  const wanted = { format: /** @type {Format} */ (format.value), span: span.value === 'loop' ? desk.loop : null };
  await carryOut(app, desk, wanted, answer === 'track');
}

/**
 * @param {App} app
 * @param {Desk} desk
 * @param {{format: Format, span: import('../audio/schedule.js').Span | null}} wanted
 * @param {boolean} asTrack
 */
async function carryOut(app, desk, wanted, asTrack) {
  const { words, actions, tell } = app;
  const { t } = words;
  const stop = new AbortController();
  const meter = el('progress', { class: 'progress', attrs: { max: 1, value: 0, 'aria-label': t('progress.label') } });
  const shown = open({
    title: t('mixdown.busy'),
    closeLabel: t('action.cancel'),
    body: [meter],
    actions: [button({ label: t('action.cancel'), press: () => shown.dialog.close('') })],
  });
  void shown.closed.then(() => stop.abort());
  try {
    const made = await render({ ...desk, ...wanted, signal: stop.signal, progress: (share) => (meter.value = share) });
    if (made.gain < 1) tell(t('mixdown.turnedDown', { n: words.number(-20 * Math.log10(made.gain), 1) }));
    if (!asTrack) {
      saveBlob(`${desk.track.name}_mix.wav`, made.blob);
      return;
    }
    meter.removeAttribute('value');
    const track = await api.mixdown(desk.track.name, toContract(desk.strips, made.gain), made.blob, stop.signal);
    tell(t('mixdown.saved', { file: track.file }), { action: { label: t('mixdown.open'), press: () => void actions.open(track.name) } });
  } catch (problem) {
    if (!stop.signal.aborted) actions.report(problem, () => void carryOut(app, desk, wanted, asTrack));
  } finally {
    shown.dialog.close('');
  }
}

/** @param {string} name @param {Blob} blob */
function saveBlob(name, blob) {
  const url = URL.createObjectURL(blob);
  el('a', { attrs: { href: url, download: name } }).click();
  // The browser reads the blob while it saves.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/**
 * @param {App} app
 * @param {Track} track
 */
export async function askZip(app, track) {
  const { t } = app.words;
  const boxes = Object.keys(track.stems).map((name) => {
    const box = el('input', { attrs: { type: 'checkbox', checked: true, value: name } });
    return { box, row: el('label', { class: 'check' }, box, el('span', { text: t(`stem.${name}`) })) };
  });
  const chosen = () => boxes.filter(({ box }) => box.checked).map(({ box }) => box.value);
  const take = button({ label: t('zip.download'), icon: 'download', kind: 'primary', press: () => shown.dialog.close('take') });
  const list = el('div', { class: 'checks', on: { change: () => (take.disabled = chosen().length === 0) } }, ...boxes.map(({ row }) => row));
  const shown = open({
    title: t('zip.title'),
    closeLabel: t('action.close'),
    body: [list],
    actions: [button({ label: t('action.cancel'), press: () => shown.dialog.close('') }), take],
  });
  if ((await shown.closed) !== 'take') return;
  const only = chosen();
  el('a', { attrs: { href: api.stemsZipUrl(track.name, only.length === boxes.length ? [] : only), download: '' } }).click();
}
