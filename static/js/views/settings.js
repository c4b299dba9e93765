/** The settings, drawn from the contract's parameters; presets; and what the music goes on from. */

import * as model from '../models/settings.js';
import { Disposer, button, el, offer, select } from '../ui/dom.js';
import { ask, open } from '../ui/dialog.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Parameter} Parameter
 */

const GROUPS = ['length', 'seed', 'sampling', 'file'];

/**
 * @param {HTMLElement} host
 * @param {App} app
 * @returns {() => void}
 */
export function mountSettings(host, app) {
  const { store, words, facts } = app;
  const { t } = words;
  const view = new Disposer();
  host.className = 'settings';
  host.setAttribute('role', 'region');
  host.setAttribute('aria-label', t('settings.title'));
  const groups = GROUPS.map((group) =>
    el(
      'fieldset',
      { class: `group group-${group}` },
      el('legend', { text: t(`settings.group.${group}`) }),
      ...facts.parameters.filter((parameter) => parameter.group === group).map((parameter) => field(parameter, app, view)),
    ),
  );
  const clips = el('fieldset', { class: 'group group-clips' });
  host.replaceChildren(presetRow(app, view), el('div', { class: 'groups' }, ...groups, clips));
  const showOpen = () => (host.hidden = !store.state.prefs.panel);
  const showClips = () => {
    const held = clips.contains(document.activeElement) ? document.activeElement : null;
    const place = [...clips.children].findIndex((child) => child.contains(held));
    clips.replaceChildren(el('legend', { text: t('settings.group.clips') }), ...clipFields(app));
    if (!held) return;
    /** @type {HTMLElement | null | undefined} */
    const next = document.getElementById(held.id) ?? clips.children[place]?.querySelector('button, select');
    next?.focus();
  };
  showOpen();
  showClips();
  view.add(store.watch((state) => state.prefs.panel, showOpen));
  view.add(store.watch((state) => state.attachments, showClips));
  view.add(store.watch((state) => state.models, showClips));
  view.add(store.watch((state) => state.values.model, showClips));
  return () => view.dispose();
}

/**
 * @param {App} app
 * @param {string} name
 * @param {number | string | boolean} value
 */
function set({ store }, name, value) {
  store.dispatch({ type: 'values', values: { ...store.state.values, [name]: value } });
}

/**
 * @param {Parameter} parameter
 * @param {App} app
 * @param {Disposer} view
 * @returns {HTMLElement}
 */
function field(parameter, app, view) {
  switch (parameter.widget) {
    case 'slider':
      return sliderField(parameter, app, view);
    case 'seed':
      return seedField(parameter, app, view);
    case 'choice':
      return choiceField(parameter, app, view);
    case 'switch':
      return switchField(parameter, app, view);
    default:
      return textField(parameter, app, view);
  }
}

/**
 * @param {Parameter} parameter
 * @param {App} app
 */
function frame({ name }, { words }) {
  const { t } = words;
  const id = `set-${name}`;
  const label = el('label', { text: t(`param.${name}`), attrs: { for: id } });
  const hint = el('p', { class: 'hint', text: t(`hint.${name}`), attrs: { id: `${id}-hint` } });
  return { id, label, hint };
}

/**
 * @param {Parameter} parameter
 * @param {App} app
 * @param {Disposer} view
 */
function sliderField(parameter, app, view) {
  const { store, words } = app;
  const { name, minimum, maximum, step } = parameter;
  const { id, label, hint } = frame(parameter, app);
  const bounds = { min: minimum, max: maximum, step };
  const slider = el('input', { class: 'slider', attrs: { type: 'range', id, ...bounds, 'aria-describedby': `${id}-hint` } });
  const box = el('input', {
    class: 'number',
    attrs: { type: 'number', inputmode: 'decimal', ...bounds, 'aria-label': words.t('settings.exact', { name: words.t(`param.${name}`) }) },
  });
  const take = (/** @type {string} */ text) => set(app, name, model.clamp(parameter, text));
  slider.addEventListener('input', () => take(slider.value));
  box.addEventListener('change', () => {
    take(box.value);
    show(false);
  });
  const reset = () => set(app, name, parameter.default);
  for (const part of [slider, label]) part.addEventListener('dblclick', reset);
  slider.title = words.t('settings.reset', { value: String(parameter.default) });
  const made = el('div', { class: 'field' }, el('div', { class: 'field-head' }, label, box), slider, hint);
  /** What is being typed stays, whatever else changes meanwhile. @param {boolean} [typing] */
  const show = (typing = document.activeElement === box) => {
    const value = Number(store.state.values[name]);
    slider.value = String(value);
    if (!typing) box.value = String(value);
    const share = (value - Number(minimum)) / (Number(maximum) - Number(minimum));
    slider.style.setProperty('--share', `${share * 100}%`);
    if (name === 'top_k') showTopK(made, [slider, box], hint, app);
  };
  show();
  view.add(store.watch((state) => state.values, () => show()));
  return made;
}

/**
 * @param {HTMLElement} made
 * @param {HTMLInputElement[]} inputs
 * @param {HTMLElement} hint
 * @param {App} app
 */
function showTopK(made, inputs, hint, { store, words }) {
  const off = model.topKIgnored(store.state.values);
  made.classList.toggle('off', off);
  for (const input of inputs) input.disabled = off;
  hint.textContent = words.t(off ? 'hint.top_k_off' : 'hint.top_k');
}

/**
 * @param {Parameter} parameter
 * @param {App} app
 * @param {Disposer} view
 */
function seedField(parameter, app, view) {
  const { store, words, facts } = app;
  const { t } = words;
  const { id, label, hint } = frame(parameter, app);
  const box = el('input', {
    class: 'number wide',
    attrs: { type: 'number', id, min: -1, max: parameter.maximum, step: 1, inputmode: 'numeric', 'aria-describedby': `${id}-hint` },
  });
  box.addEventListener('change', () => {
    set(app, parameter.name, model.clamp(parameter, box.value));
    show();
  });
  const auto = button({
    label: t('seed.auto'),
    pressed: true,
    press: () => set(app, parameter.name, Number(store.state.values.seed) < 0 ? 0 : -1),
  });
  const roll = button({
    label: t('seed.roll'),
    icon: 'dice',
    press: () => set(app, parameter.name, (crypto.getRandomValues(new Uint32Array(1))[0] ?? 0) % facts.limits.seed),
  });
  const show = () => {
    const value = Number(store.state.values[parameter.name]);
    box.value = value < 0 ? '' : String(value);
    box.placeholder = t('seed.auto');
    auto.setAttribute('aria-pressed', String(value < 0));
  };
  show();
  view.add(store.watch((state) => state.values, show));
  return el('div', { class: 'field' }, label, el('div', { class: 'inline' }, box, auto, roll), hint);
}

/**
 * @param {Parameter} parameter
 * @param {App} app
 * @param {Disposer} view
 */
function choiceField(parameter, app, view) {
  const { store, words } = app;
  const { name } = parameter;
  const { id, label, hint } = frame(parameter, app);
  const options = parameter.choices.map((value) => ({ value, label: words.t(`choice.${name}.${value}`) }));
  const made = select(options, String(store.state.values[name]), (value) => set(app, name, value), { id, 'aria-describedby': `${id}-hint` });
  const whole = el('div', { class: 'field' }, label, made, hint);
  const show = () => {
    made.value = String(store.state.values[name]);
    if (name === 'decoder') showDecoder(whole, made, hint, app);
  };
  show();
  view.add(store.watch((state) => state.values, show));
  view.add(store.watch((state) => state.models, show));
  return whole;
}

/**
 * @param {HTMLElement} whole
 * @param {HTMLSelectElement} made
 * @param {HTMLElement} hint
 * @param {App} app
 */
function showDecoder(whole, made, hint, { words, actions }) {
  const off = !actions.model()?.diffusion;
  whole.classList.toggle('off', off);
  made.disabled = off;
  if (off) made.value = 'codec';
  hint.textContent = words.t(off ? 'hint.decoder_off' : 'hint.decoder');
}

/**
 * @param {Parameter} parameter
 * @param {App} app
 * @param {Disposer} view
 */
function switchField(parameter, app, view) {
  const { store, words } = app;
  const { name } = parameter;
  const { id, label, hint } = frame(parameter, app);
  const box = el('input', { attrs: { type: 'checkbox', id, 'aria-describedby': `${id}-hint` } });
  box.addEventListener('change', () => set(app, name, box.checked));
  label.className = 'check';
  label.prepend(box);
  const made = el('div', { class: 'field' }, label, hint);
  const show = () => {
    const off = name === 'loop' && store.state.attachments.base !== null;
    made.classList.toggle('off', off);
    box.disabled = off;
    box.checked = store.state.values[name] === true && !off;
    hint.textContent = words.t(off ? 'hint.loop_off' : `hint.${name}`);
  };
  show();
  view.add(store.watch((state) => state.values, show));
  view.add(store.watch((state) => state.attachments, show));
  return made;
}

/**
 * @param {Parameter} parameter
 * @param {App} app
 * @param {Disposer} view
 */
function textField(parameter, app, view) {
  const { store, facts } = app;
  const { name } = parameter;
  const { id, label, hint } = frame(parameter, app);
  const box = el('input', { class: 'text', attrs: { type: 'text', id, maxlength: facts.limits.artist_chars, autocomplete: 'off', 'aria-describedby': `${id}-hint` } });
  box.addEventListener('input', () => set(app, name, box.value));
  const show = () => {
    const value = String(store.state.values[name]);
    if (box.value !== value) box.value = value;
  };
  show();
  view.add(store.watch((state) => state.values, show));
  return el('div', { class: 'field' }, label, box, hint);
}

/** @param {App} app */
function clipFields(app) {
  const { store, words, actions } = app;
  const { t } = words;
  const { audioPrompt, base } = store.state.attachments;
  const melody = actions.model()?.melody ?? false;
  const made = [];
  if (melody) {
    made.push(
      clipField(app, 'clips.audioPrompt', 'clips.audioPromptHint', audioPrompt?.label ?? null, {
        take: (clip) => store.dispatch({ type: 'attach', attachments: { audioPrompt: clip } }),
        remove: () => store.dispatch({ type: 'attach', attachments: { audioPrompt: null } }),
      }),
    );
  }
  made.push(
    clipField(app, 'clips.base', 'clips.baseHint', base?.label ?? null, {
      take: (clip) => store.dispatch({ type: 'attach', attachments: { base: { ...clip, mode: 'continue', from: null } } }),
      remove: () => store.dispatch({ type: 'attach', attachments: { base: null } }),
    }),
  );
  if (base) made.push(baseFields(app, base));
  if (audioPrompt && !melody) made.push(el('p', { class: 'hint warn', text: t('clips.noMelody') }));
  return made;
}

/**
 * @param {App} app
 * @param {string} title
 * @param {string} hint
 * @param {string | null} chosen
 * @param {{take: (clip: model.Clip) => void, remove: () => void}} how
 */
function clipField(app, title, hint, chosen, { take, remove }) {
  const { words, dialogs } = app;
  const { t } = words;
  const picker = el('input', { class: 'unseen', attrs: { type: 'file', accept: 'audio/*', tabindex: -1, 'aria-hidden': 'true' } });
  picker.addEventListener('change', async () => {
    const [file] = picker.files ?? [];
    const upload = file ? await dialogs.upload(file) : null;
    if (upload) take({ ref: { upload: upload.id }, label: upload.name, seconds: upload.seconds });
  });
  const pick = () =>
    dialogs.library((track) => take({ ref: { track: track.name }, label: track.name, seconds: track.duration_s }));
  const row = chosen
    ? [
        el('span', { class: 'clip-name', text: chosen, attrs: { title: chosen } }),
        button({ label: t('chip.remove', { what: chosen }), icon: 'close', iconOnly: true, kind: 'quiet', press: remove }),
      ]
    : [
        button({ label: t('clips.upload'), icon: 'attach', press: () => picker.click() }),
        button({ label: t('clips.fromLibrary'), icon: 'library', press: pick }),
      ];
  return el('div', { class: 'field', attrs: { role: 'group', 'aria-label': t(title) } }, el('span', { class: 'label', text: t(title) }), el('div', { class: 'inline' }, ...row, picker), el('p', { class: 'hint', text: t(hint) }));
}

/** @param {App} app @param {model.Base} base */
function baseFields({ store, words }, base) {
  const { t } = words;
  const change = (/** @type {Partial<model.Base>} */ news) => store.dispatch({ type: 'attach', attachments: { base: { ...base, ...news } } });
  const mode = select(
    ['continue', 'append'].map((value) => ({ value, label: t(`clips.mode.${value}`) })),
    base.mode,
    (value) => change({ mode: value === 'append' ? 'append' : 'continue' }),
    { id: 'base-mode' },
  );
  const from = el('input', {
    class: 'number',
    attrs: { type: 'number', id: 'base-from', min: 0.1, step: 0.1, max: base.seconds > 0 ? base.seconds : null, placeholder: t('clips.end') },
  });
  from.value = base.from === null ? '' : String(base.from);
  from.addEventListener('change', () => {
    const seconds = Number(from.value);
    change({ from: from.value === '' || !(seconds >= 0.1) ? null : Math.min(seconds, base.seconds || seconds) });
  });
  return el(
    'div',
    { class: 'pair' },
    el('div', { class: 'field' }, el('label', { text: t('clips.modeLabel'), attrs: { for: 'base-mode' } }), mode),
    el('div', { class: 'field' }, el('label', { text: t('clips.from'), attrs: { for: 'base-from' } }), from),
  );
}

/** @param {App} app @param {Disposer} view */
function presetRow(app, view) {
  const { store, words, facts } = app;
  const { t } = words;
  /** @type {model.Preset | null} */
  let chosen = null;
  const take = (/** @type {string} */ value) => {
    const [kind, index] = value.split(':');
    chosen = (kind === 'own' ? store.state.presets : model.BUILT_IN)[Number(index)] ?? null;
    remove.disabled = kind !== 'own';
    if (chosen) store.dispatch({ type: 'values', values: model.complete(facts.parameters, chosen.values, store.state.values) });
  };
  const forget = () => {
    list.value = '';
    chosen = null;
    remove.disabled = true;
  };
  const list = select([], '', take, { 'aria-label': t('preset.title') });
  const remove = button({
    label: t('preset.delete'),
    icon: 'trash',
    iconOnly: true,
    kind: 'quiet',
    press: () => {
      store.dispatch({ type: 'presets', presets: store.state.presets.filter((preset) => preset !== chosen) });
      list.focus();
    },
  });
  const show = () => {
    const own = store.state.presets.map((preset, index) => ({ value: `own:${index}`, label: preset.name }));
    const built = model.BUILT_IN.map((preset, index) => ({ value: `built:${index}`, label: t(preset.name) }));
    offer(list, [{ value: '', label: t('preset.choose') }, ...built, ...own]);
    forget();
  };
  show();
  // A list that still named the preset would not take it again: the browser tells of another choice only.
  view.add(store.watch((state) => state.values, (values) => {
    if (chosen && !model.follows(facts.parameters, chosen, values)) forget();
  }));
  view.add(store.watch((state) => state.presets, show));
  return el(
    'div',
    { class: 'preset-row' },
    list,
    button({ label: t('preset.save'), icon: 'bookmark', kind: 'quiet', press: () => void savePreset(app) }),
    remove,
    button({
      label: t('settings.resetAll'),
      icon: 'redo',
      kind: 'quiet',
      class: 'push',
      press: () => store.dispatch({ type: 'values', values: { ...model.defaults(facts.parameters), model: store.state.values.model ?? '' } }),
    }),
  );
}

/** @param {App} app */
async function savePreset({ store, words, tell }) {
  const { t } = words;
  // As they were when Save was pressed: what is changed while the answer is on its way is not part of it.
  const { values } = store.state;
  const name = el('input', { class: 'text', attrs: { type: 'text', maxlength: 40, id: 'preset-name', autocomplete: 'off' } });
  const save = button({ label: t('action.save'), kind: 'primary', press: () => shown.dialog.close('save') });
  name.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter') return;
    // Else the same key press would go on to the button that focus returns to.
    event.preventDefault();
    shown.dialog.close('save');
  });
  const shown = open({
    title: t('preset.saveTitle'),
    closeLabel: t('action.close'),
    body: [el('label', { text: t('preset.name'), attrs: { for: 'preset-name' } }), name, el('p', { class: 'hint', text: t('preset.saveHint') })],
    actions: [save],
  });
  name.focus();
  if ((await shown.closed) !== 'save' || !name.value.trim()) return;
  const known = store.state.presets.some((preset) => preset.name === name.value.trim());
  if (known) {
    const answer = await ask({
      title: t('preset.replaceTitle'),
      closeLabel: t('action.close'),
      body: [el('p', { text: t('preset.replace', { name: name.value.trim() }) })],
      choices: [{ value: '', label: t('action.cancel') }, { value: 'yes', label: t('action.replace'), kind: 'primary' }],
    });
    if (answer !== 'yes') return;
  }
  store.dispatch({ type: 'presets', presets: model.savePreset(store.state.presets, name.value, values) });
  tell(t('preset.saved', { name: name.value.trim() }));
}
