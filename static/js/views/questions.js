/** The questions the page asks: delete, clear, extend, download as, what a dropped file is; and the keyboard list. */

import * as api from '../api.js';
import * as library from '../models/library.js';
import { button, el, select } from '../ui/dom.js';
import { ask, open } from '../ui/dialog.js';
import { clock, fineClock } from '../format.js';
import { SHOWN } from '../keys.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Track} Track
 * @typedef {import('../contract.js').Upload} Upload
 */

/** @param {App} app @param {Track} track */
export async function askRemove(app, track) {
  const { words, actions } = app;
  const { t } = words;
  const goes = [track.file, `${track.name}.json`];
  if (track.has_tokens) goes.push(`${track.name}.tokens.npz`);
  goes.push(...Object.values(track.stems).map((file) => t('remove.stem', { file })));
  const answer = await ask({
    title: t('remove.title'),
    closeLabel: t('action.close'),
    body: [el('p', { text: t('remove.text') }), el('ul', { class: 'goes' }, ...goes.map((text) => el('li', { text })))],
    choices: [
      { value: '', label: t('action.cancel') },
      { value: 'delete', label: t('action.delete'), kind: 'danger' },
    ],
  });
  if (answer === 'delete') await actions.remove(track);
}

/** What would go, counted by the server. */
async function counts() {
  const filters = library.empty().filters;
  const ask_ = async (/** @type {Partial<typeof filters>} */ change) => (await api.tracks(library.query({ ...filters, ...change }, '', 1))).total;
  const asked = [ask_({}), ask_({ locked: true }), ask_({ stems: true }), ask_({ locked: true, stems: true })];
  const [all = 0, locked = 0, stems = 0, spared = 0] = await Promise.all(asked);
  return { tracks: all - locked, locked, stems: stems - spared };
}

/** @param {App} app */
export async function askClear(app) {
  const { store, words, actions, tell } = app;
  const { t } = words;
  let found;
  try {
    found = await counts();
  } catch (problem) {
    actions.report(problem, () => void askClear(app));
    return;
  }
  const messages = store.state.chat.length;
  const { tracks } = found;
  const said = [
    t('clear.tracks', { n: tracks }),
    found.stems > 0 ? t('clear.stems', { n: found.stems }) : '',
    t('clear.messages', { n: messages }),
    found.locked > 0 ? t('clear.locked', { n: found.locked }) : '',
  ].filter(Boolean);
  const answer = await ask({
    title: t('clear.title'),
    closeLabel: t('action.close'),
    body: [el('ul', { class: 'goes' }, ...said.map((text) => el('li', { text }))), el('p', { class: 'hint', text: t('clear.hint') })],
    choices: [
      { value: '', label: t('action.cancel') },
      { value: 'chat', label: t('clear.chatOnly'), disabled: messages === 0 },
      { value: 'all', label: t('clear.all'), disabled: tracks === 0 && messages === 0 },
    ],
  });
  if (answer === '') return;
  // The second, distinct click: another dialog, where the safe choice is under the pointer.
  const sure = await ask({
    title: t('clear.sureTitle'),
    closeLabel: t('action.close'),
    body: [el('p', { text: answer === 'all' ? t('clear.sureAll', { n: tracks }) : t('clear.sureChat', { n: messages }) })],
    choices: [
      { value: 'yes', label: t('clear.yes'), kind: 'danger' },
      { value: '', label: t('action.cancel') },
    ],
  });
  if (sure !== 'yes') return;
  try {
    await actions.clear({ tracks: answer === 'all', chat: true });
    tell(t('clear.done'));
  } catch (problem) {
    actions.report(problem);
  }
}

/** @param {App} app @param {Track} track */
export async function askExtend(app, track) {
  const { words, player, actions, facts, store } = app;
  const { t } = words;
  const cursor = player.key === `track:${track.name}` ? player.time : 0;
  const usable = cursor >= 0.5 && cursor < track.duration_s - 0.2;
  const from = select(
    [
      { value: 'end', label: t('extend.end', { time: clock(track.duration_s) }) },
      ...(usable ? [{ value: 'cursor', label: t('extend.cursor', { time: fineClock(cursor) }) }] : []),
    ],
    usable ? 'cursor' : 'end',
    () => {},
    { id: 'extend-from' },
  );
  const range = facts.parameters.find((parameter) => parameter.name === 'duration');
  const seconds = el('input', { class: 'number wide', attrs: { type: 'number', id: 'extend-seconds', min: range?.minimum, max: range?.maximum, step: 1 } });
  seconds.value = String(store.state.values.duration);
  const prompt = el('textarea', { class: 'prompt', attrs: { id: 'extend-prompt', rows: 3, maxlength: facts.limits.prompt_chars } });
  prompt.value = track.prompt;
  const shown = open({
    title: t('extend.title'),
    closeLabel: t('action.close'),
    body: [
      el('p', { class: 'hint', text: t('extend.hint') }),
      el('div', { class: 'pair' },
        el('div', { class: 'field' }, el('label', { text: t('extend.from'), attrs: { for: 'extend-from' } }), from),
        el('div', { class: 'field' }, el('label', { text: t('extend.seconds'), attrs: { for: 'extend-seconds' } }), seconds)),
      el('div', { class: 'field' }, el('label', { text: t('composer.prompt'), attrs: { for: 'extend-prompt' } }), prompt),
    ],
    actions: [
      button({ label: t('action.cancel'), press: () => shown.dialog.close('') }),
      button({ label: t('action.extend'), icon: 'extend', kind: 'primary', press: () => shown.dialog.close('extend') }),
    ],
  });
  if ((await shown.closed) !== 'extend') return;
  const length = Math.min(range?.maximum ?? 300, Math.max(range?.minimum ?? 1, Number(seconds.value) || 10));
  const at = from.value === 'cursor' ? Math.round(cursor * 100) / 100 : null;
  await actions.extend(track, { from: at, duration: length, prompt: prompt.value.trim() || track.prompt });
}

/** @param {App} app @param {Track} track */
export async function askDownload(app, track) {
  const { words, facts } = app;
  const { t } = words;
  const choices = (/** @type {string} */ name) =>
    (facts.parameters.find((parameter) => parameter.name === name)?.choices ?? []).map((value) => ({ value, label: t(`choice.${name}.${value}`) }));
  const update = () => {
    const same = format.value === track.format && rate.value === 'original';
    link.href = same ? api.audioUrl(track.name) : api.audioUrl(track.name, { format: format.value, sample_rate: rate.value });
    link.download = `${track.name}.${format.value}`;
  };
  const format = select(choices('format'), track.format, update, { id: 'as-format' });
  const rate = select(choices('sample_rate'), 'original', update, { id: 'as-rate' });
  const link = el('a', { class: 'button primary', attrs: { href: '' } }, el('span', { text: t('player.download') }));
  update();
  const shown = open({
    title: t('download.title'),
    closeLabel: t('action.close'),
    body: [
      el('div', { class: 'pair' },
        el('div', { class: 'field' }, el('label', { text: t('param.format'), attrs: { for: 'as-format' } }), format),
        el('div', { class: 'field' }, el('label', { text: t('param.sample_rate'), attrs: { for: 'as-rate' } }), rate)),
    ],
    actions: [link],
  });
  link.addEventListener('click', () => setTimeout(() => shown.dialog.close(''), 0));
  await shown.closed;
}

/** @param {App} app @param {Track} track */
export async function askSplit(app, track) {
  const { words, facts, actions } = app;
  const { t } = words;
  const stems = (facts.parameters.find((parameter) => parameter.name === 'stems')?.choices ?? []).filter((value) => value !== 'none');
  const which = select(stems.map((value) => ({ value, label: t(`choice.stems.${value}`) })), 'all', () => {}, { id: 'split-stems' });
  const way = await separatorChoice(app);
  const shown = open({
    title: t('split.title'),
    closeLabel: t('action.close'),
    body: [
      el('p', { class: 'hint', text: t('split.hint') }),
      el('div', { class: 'field' }, el('label', { text: t('param.stems'), attrs: { for: 'split-stems' } }), which),
      way && way.node,
    ],
    actions: [
      button({ label: t('action.cancel'), press: () => shown.dialog.close('') }),
      button({ label: t('action.split'), icon: 'split', kind: 'primary', press: () => shown.dialog.close('split') }),
    ],
  });
  if ((await shown.closed) === 'split') await actions.split({ track: track.name }, track.file, which.value, way?.value());
}

/**
 * The separator a split will use: the one chosen, or for "auto" the best that is here.
 * @param {readonly import('../contract.js').SeparatorInfo[]} found
 * @param {string} chosen
 */
function separatorFor(found, chosen) {
  if (chosen !== 'auto') return found.find((info) => info.id === chosen);
  const here = found.filter((info) => info.state === 'ready');
  return here.find((info) => !info.sketch) ?? here[0];
}

/**
 * The separators to choose from, with a word on the one that comes with the program; null when there is no choice.
 * @param {App} app
 * @returns {Promise<{node: HTMLElement, value: () => string} | null>}
 */
async function separatorChoice({ words, actions }) {
  const { t } = words;
  try {
    const found = await api.separators();
    if (found.length < 2) return null;
    const label = (/** @type {import('../contract.js').SeparatorInfo} */ info) => {
      const title = words.name(info);
      if (info.state === 'downloadable') return t('split.fetch', { title, size: words.bytes(info.download_bytes) });
      return info.state === 'ready' ? title : t('split.missing', { title });
    };
    const options = found.filter((info) => info.state !== 'broken').map((info) => ({ value: info.id, label: label(info) }));
    const note = el('p', { class: 'hint', text: t('split.sketch'), attrs: { id: 'split-note', role: 'status' } });
    const show = (/** @type {string} */ chosen) => { note.hidden = !separatorFor(found, chosen)?.sketch; };
    const way = select([{ value: 'auto', label: t('split.auto') }, ...options], 'auto', show, { id: 'split-separator', 'aria-describedby': 'split-note' });
    show('auto');
    return {
      node: el('div', { class: 'field' }, el('label', { text: t('split.separator'), attrs: { for: 'split-separator' } }), way, note),
      value: () => way.value,
    };
  } catch (problem) {
    actions.report(problem);
    return null;
  }
}

/**
 * Send a file, with its progress and a way out.
 * @param {App} app
 * @param {File} file
 * @returns {Promise<Upload | null>} null when it was called off or refused
 */
export async function sendFile(app, file) {
  const { words, facts, tell } = app;
  const { t } = words;
  if (file.size > facts.limits.upload_mb * 1e6) {
    tell(t('upload.tooLarge', { file: file.name, limit: words.bytes(facts.limits.upload_mb * 1e6) }), { error: true });
    return null;
  }
  const meter = el('progress', { class: 'progress', attrs: { max: 1, value: 0, 'aria-label': t('progress.label') } });
  const stop = new AbortController();
  const shown = open({
    title: t('upload.title'),
    closeLabel: t('action.cancel'),
    body: [el('p', { class: 'file-name', text: file.name }), meter],
    actions: [button({ label: t('action.cancel'), press: () => shown.dialog.close('') })],
  });
  void shown.closed.then(() => stop.abort());
  try {
    return await api.upload(file, (share) => (meter.value = share), stop.signal);
  } catch (problem) {
    if (!stop.signal.aborted) tell(t('upload.failed', { file: file.name, problem: api.asError(problem).message }), { error: true });
    return null;
  } finally {
    shown.dialog.close('done');
  }
}

/** @param {App} app @param {File} file */
export async function askDropped(app, file) {
  const { words, store, actions } = app;
  const { t } = words;
  const melody = actions.model()?.melody ?? false;
  const answer = await ask({
    title: t('drop.title'),
    closeLabel: t('action.close'),
    body: [el('p', { class: 'file-name', text: file.name })],
    choices: [
      { value: 'audio', label: t('drop.audioPrompt'), hint: melody ? t('drop.audioPromptHint') : t('clips.noMelody'), disabled: !melody },
      { value: 'base', label: t('drop.continue'), hint: t('drop.continueHint') },
      { value: 'split', label: t('drop.split'), hint: t('drop.splitHint') },
    ],
  });
  if (answer === '') return;
  const upload = await sendFile(app, file);
  if (!upload) return;
  const clip = { ref: { upload: upload.id }, label: upload.name, seconds: upload.seconds };
  if (answer === 'audio') store.dispatch({ type: 'attach', attachments: { audioPrompt: clip } });
  if (answer === 'base') store.dispatch({ type: 'attach', attachments: { base: { ...clip, mode: 'continue', from: null } } });
  if (answer === 'split') await actions.split({ upload: upload.id }, upload.name);
  else app.toPrompt();
}

/** @param {App} app */
export function showKeys({ words }) {
  const { t } = words;
  open({
    title: t('keys.title'),
    closeLabel: t('action.close'),
    body: [
      el('table', { class: 'keys' }, el('tbody', {}, ...SHOWN.map(([keys, what]) =>
        el('tr', {}, el('th', { attrs: { scope: 'row' } }, ...keys.map((key) => el('kbd', { text: key }))), el('td', { text: t(what) }))))),
      el('p', { class: 'hint', text: t('keys.hint') }),
    ],
  });
}
