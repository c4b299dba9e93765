/** A track's parameters as a table, with what was really used, and a way to copy them. */

import { busy, button, el } from '../ui/dom.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Track} Track
 */

const USED = ['top_k', 'top_p', 'temperature', 'cfg_coef'];

/**
 * @param {Track} track
 * @param {App} app
 * @returns {[label: string, value: string][]}
 */
export function rows(track, { words, store }) {
  const { t } = words;
  const model = store.state.models.find((item) => item.id === track.model);
  const value = (/** @type {string} */ name) => track.used[name] ?? track.asked[name];
  const asked = USED.filter((name) => typeof value(name) === 'number' && !(name === 'top_k' && value('top_p') > 0));
  /** @type {[string, string | null][]} */
  const all = [
    [t('param.model'), model ? words.name(model) : track.model],
    [t('table.made'), words.when(Date.parse(track.created_at))],
    [t('param.duration'), words.duration(track.duration_s)],
    [t('table.seedUsed'), String(track.seed)],
    ...asked.map((name) => /** @type {[string, string]} */ ([t(`param.${name}`), words.number(value(name))])),
    [t('param.decoder'), track.used.decoder === 'diffusion' ? t('choice.decoder.diffusion') : null],
    [t('table.take'), track.take > 1 || Number(track.asked.takes) > 1 ? words.number(track.take) : null],
    [t('table.loop'), looped(track, words)],
    [t('table.file'), [track.format.toUpperCase(), t('table.rate', { rate: words.number(track.sample_rate_hz / 1000, 2) }), t(track.channels === 1 ? 'table.mono' : 'table.stereo'), words.bytes(track.bytes)].join(' · ')],
    [t('table.loudness'), loudness(track, words)],
    [t('table.continuation'), track.continuation ? t(`chip.${track.continuation.mode ?? 'continue'}`, { name: track.continuation.name }) : null],
    [t('table.parent'), track.parent && track.parent !== track.continuation?.name ? track.parent : null],
    [t('table.audioPrompt'), track.audio_prompt?.name ?? null],
    [t('table.engine'), track.engine ? [track.engine.backend, track.engine.precision, track.engine.device].join(' · ') : null],
    [t('table.took'), track.timings_s.total ? words.duration(track.timings_s.total) : null],
    [t('table.early'), track.kept_early ? t('table.yes') : null],
  ];
  return all.filter((row) => /** @type {boolean} */ (row[1] !== null && row[1] !== '')).map(([label, text]) => [label, String(text)]);
}

/** @param {Track} track @param {App['words']} words */
function looped({ loop }, words) {
  if (!loop) return null;
  const beats = loop.beats === null || loop.bpm === null ? null : words.t('table.beats', { n: loop.beats, bpm: words.number(loop.bpm, 1) });
  const jump = words.t('table.seam', { level: words.number(Math.round(loop.level_jump_db * 10) / 10 + 0), spectrum: words.number(loop.spectrum_jump_db, 1) });
  return [beats, jump].filter(Boolean).join(' · ');
}

/** @param {Track} track @param {App['words']} words */
function loudness({ loudness: { integrated_lufs: lufs, peak_dbfs: peak } }, words) {
  const parts = [];
  if (lufs !== null) parts.push(words.t('table.lufs', { n: words.number(lufs, 1) }));
  if (peak !== null) parts.push(words.t('table.peak', { n: words.number(peak, 1) }));
  return parts.length > 0 ? parts.join(' · ') : null;
}

/**
 * @param {Track} track
 * @param {App} app
 * @returns {HTMLElement[]}
 */
export function parameterTable(track, app) {
  const { words, tell } = app;
  const { t } = words;
  const shown = rows(track, app);
  const copy = button({
    label: t('table.copy'),
    icon: 'copy',
    kind: 'quiet',
    press: () =>
      void busy(copy, async () => {
        const text = [`${t('table.prompt')}: ${track.prompt}`, ...shown.map(([label, value]) => `${label}: ${value}`)].join('\n');
        tell((await copied(text)) ? t('table.copied') : t('table.notCopied'));
      }),
  });
  return [
    el('div', { class: 'section-head' }, el('h3', { text: t('card.parameters') }), copy),
    el('table', {}, el('tbody', {}, ...shown.map(([label, value]) => el('tr', {}, el('th', { text: label, attrs: { scope: 'row' } }), el('td', { text: value }))))),
  ];
}

/**
 * The clipboard needs a secure context; over plain http on a local network there is the old way.
 * @param {string} text
 */
async function copied(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  }
  const box = el('textarea', { class: 'unseen', text });
  document.body.append(box);
  box.select();
  const done = document.execCommand('copy');
  box.remove();
  return done;
}
