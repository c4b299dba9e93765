/** The composer: the prompt, what is attached to it, Generate, and what it would take. */

import * as api from '../api.js';
import { Disposer, button, el, icon } from '../ui/dom.js';
import { whatFits } from './fits.js';

/** @typedef {import('../app.js').App} App */

/** Sending empties the prompt: another press within this time is the same press, not a wish to send nothing. */
const SAME_PRESS_MS = 500;
const ESTIMATE_AFTER_MS = 500;

/**
 * @param {HTMLElement} host
 * @param {App} app
 * @returns {() => void}
 */
export function mountComposer(host, app) {
  const { store, words, facts, dialogs, actions } = app;
  const { t } = words;
  const view = new Disposer();
  const prompt = el('textarea', {
    class: 'prompt',
    attrs: {
      id: 'prompt', rows: 2, maxlength: facts.limits.prompt_chars, placeholder: t('composer.placeholder'),
      'aria-label': t('composer.prompt'), 'aria-describedby': 'prompt-problem preflight',
    },
  });
  const problem = el('p', { class: 'problem', attrs: { id: 'prompt-problem', role: 'alert' } });
  const chips = el('div', { class: 'chips' });
  const preflight = el('p', { class: 'preflight', attrs: { id: 'preflight' } });
  const picker = el('input', { class: 'unseen', attrs: { type: 'file', accept: 'audio/*', tabindex: -1, 'aria-hidden': 'true' } });
  picker.addEventListener('change', () => {
    const [file] = picker.files ?? [];
    if (file) dialogs.dropped(file);
    picker.value = '';
  });

  let sentAt = -Infinity;
  const send = () => {
    const now = performance.now();
    if (store.state.prompt.trim() === '') {
      if (now - sentAt < SAME_PRESS_MS) return;
      problem.textContent = t('composer.empty');
      prompt.setAttribute('aria-invalid', 'true');
      prompt.focus();
      return;
    }
    sentAt = now;
    void app.actions.send();
    prompt.focus();
  };

  prompt.value = store.state.prompt;
  prompt.addEventListener('input', () => {
    problem.textContent = '';
    prompt.removeAttribute('aria-invalid');
    store.dispatch({ type: 'prompt', prompt: prompt.value });
  });
  prompt.addEventListener('keydown', (event) => onKey(event, app, send));

  const panel = button({
    label: t('composer.settings'),
    icon: 'sliders',
    kind: 'quiet',
    press: () => store.dispatch({ type: 'prefs', prefs: { panel: !store.state.prefs.panel } }),
    attrs: { 'aria-expanded': 'false', 'aria-controls': 'settings', id: 'settings-toggle' },
  });
  const showPanel = () => panel.setAttribute('aria-expanded', String(store.state.prefs.panel));
  const summary = el('span', { class: 'summary' });

  host.replaceChildren(
    el(
      'form',
      { class: 'composer', attrs: { 'aria-label': t('composer.title') }, on: { submit: (event) => { event.preventDefault(); send(); } } },
      chips,
      prompt,
      problem,
      el(
        'div',
        { class: 'composer-row' },
        button({ label: t('composer.attach'), icon: 'attach', iconOnly: true, kind: 'quiet', press: () => picker.click() }),
        panel,
        summary,
        button({ label: t('composer.generate'), icon: 'send', kind: 'primary', class: 'send', press: send, attrs: { id: 'generate' } }),
      ),
      preflight,
      picker,
    ),
  );

  const grow = () => {
    prompt.style.height = 'auto';
    prompt.style.height = `${Math.min(prompt.scrollHeight + 2, 180)}px`;
  };
  const showPrompt = (/** @type {string} */ text) => {
    if (prompt.value !== text) prompt.value = text;
    grow();
  };
  const showSummary = () => (summary.textContent = summarise(app));
  const showChips = () => chips.replaceChildren(...attached(app));
  showPanel();
  grow();
  showSummary();
  showChips();
  view.add(store.watch((state) => state.prompt, showPrompt));
  view.add(store.watch((state) => state.prefs.panel, showPanel));
  view.add(store.watch((state) => state.values, showSummary));
  view.add(store.watch((state) => state.models, showSummary));
  view.add(store.watch((state) => state.attachments, showChips));
  view.add(store.watch(() => actions.model()?.melody, showChips));
  estimating(preflight, app, view);
  return () => view.dispose();
}

/**
 * @param {KeyboardEvent} event
 * @param {App} app
 * @param {() => void} send
 */
function onKey(event, { store }, send) {
  // While an input method is composing, Enter chooses a word.
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    // A key held down is one wish.
    if (!event.repeat) send();
  } else if (event.key === 'ArrowUp' && store.state.prompt === '') {
    const last = store.state.chat.findLast((entry) => entry.request.kind === 'generate');
    if (last?.request.kind !== 'generate') return;
    event.preventDefault();
    store.dispatch({ type: 'prompt', prompt: last.request.prompt });
  }
}

/** @param {App} app */
function summarise({ store, words }) {
  const { t } = words;
  const { values, models, attachments } = store.state;
  const model = models.find((item) => item.id === values.model);
  const parts = [model ? words.name(model) : String(values.model), words.duration(Number(values.duration)), String(values.format).toUpperCase()];
  if (Number(values.takes) > 1) parts.push(t('summary.takes', { n: Number(values.takes) }));
  if (values.loop === true && !attachments.base) parts.push(t('summary.loop'));
  if (Number(values.seed) >= 0) parts.push(t('summary.seed', { seed: String(values.seed) }));
  return parts.join(' · ');
}

/** @param {App} app */
function attached({ store, words, actions, toPrompt }) {
  const { t } = words;
  const { audioPrompt, base } = store.state.attachments;
  const chip = (/** @type {string} */ label, /** @type {() => void} */ remove) =>
    el(
      'span',
      { class: 'chip' },
      icon('attach'),
      el('span', { class: 'chip-text', text: label }),
      button({ label: t('chip.remove', { what: label }), icon: 'close', iconOnly: true, kind: 'quiet', press: () => {
        remove();
        toPrompt();
      } }),
    );
  const made = [];
  if (audioPrompt) {
    made.push(chip(t('chip.audioPrompt', { name: audioPrompt.label }), () => store.dispatch({ type: 'attach', attachments: { audioPrompt: null } })));
  }
  if (audioPrompt && !actions.model()?.melody) made.push(el('p', { class: 'hint warn', text: t('clips.noMelody') }));
  if (base) {
    made.push(chip(t(`chip.${base.mode}`, { name: base.label }), () => store.dispatch({ type: 'attach', attachments: { base: null } })));
  }
  return made;
}

/**
 * The line under the composer: how long it should take here, and whether it fits.
 * @param {HTMLElement} line
 * @param {App} app
 * @param {Disposer} view
 */
function estimating(line, app, view) {
  const { store, actions } = app;
  let timer = 0;
  let asking = new AbortController();
  let offered = true;
  const ask = async () => {
    asking.abort();
    asking = new AbortController();
    try {
      line.replaceChildren(...told(app, await api.estimate(actions.draft(), asking.signal)));
      line.hidden = false;
    } catch (problem) {
      // A server without estimates, or a prompt it cannot judge yet: nothing to say is not an error.
      if (problem instanceof api.ApiError && problem.status === 404) offered = false;
      if (problem instanceof api.ApiError) line.hidden = true;
    }
  };
  const later = () => {
    clearTimeout(timer);
    // Until it is known which models there are, the chosen one may not be among them.
    if (offered && store.state.connection === 'online' && actions.model()) timer = window.setTimeout(() => void ask(), ESTIMATE_AFTER_MS);
  };
  line.hidden = true;
  view.add(store.watch((state) => state.values, later));
  view.add(store.watch((state) => state.attachments, later));
  view.add(store.watch((state) => state.models, later));
  view.add(store.watch((state) => state.connection, later));
  view.add(() => {
    clearTimeout(timer);
    asking.abort();
  });
  later();
}

/** @param {App} app @param {import('../contract.js').Estimate} estimate */
function told(app, { seconds, fits, first_sound_s: first, needs_bytes: needs, fits_with: others = [] }) {
  const { store, words, actions } = app;
  const { t } = words;
  if (!fits) {
    const text = needs ? t('preflight.tooBigBytes', { bytes: words.bytes(needs) }) : t('preflight.tooBig');
    const chosen = String(store.state.values.model);
    return [icon('warning'), el('span', { text }), ...whatFits(app, others, chosen, (model) => actions.choose(model))];
  }
  const parts = [t('preflight.takes', { time: words.duration(seconds) })];
  if (first && store.state.prefs.live) parts.push(t('preflight.first', { time: words.duration(first) }));
  return [el('span', { text: parts.join(' · ') })];
}
