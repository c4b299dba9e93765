/** Modal dialogs on <dialog>: the browser traps focus, Escape closes, focus returns to where it was. */

import { button, el } from './dom.js';

/** For ids that aria-labelledby can point at. */
let count = 0;

/**
 * @typedef {object} Choice
 * @property {string} value what the dialog gives when it is taken
 * @property {string} label
 * @property {string} [kind]
 * @property {string} [hint]
 * @property {boolean} [disabled]
 */

/**
 * Show a dialog until it closes.
 * @param {object} parts
 * @param {string} parts.title
 * @param {string} parts.closeLabel
 * @param {(import('./dom.js').Child)[]} parts.body
 * @param {(HTMLElement)[]} [parts.actions]
 * @param {string} [parts.class]
 * @returns {{dialog: HTMLDialogElement, closed: Promise<string>}} `closed` gives the dialog's return value, '' when dismissed
 */
export function open({ title, closeLabel, body, actions = [], class: extra = '' }) {
  count += 1;
  const id = `dialog-${count}`;
  const before = document.activeElement;
  const dialog = el(
    'dialog',
    { class: `dialog ${extra}`.trim(), attrs: { 'aria-labelledby': id } },
    el(
      'header',
      { class: 'dialog-head' },
      el('h2', { text: title, attrs: { id } }),
      button({ label: closeLabel, icon: 'close', iconOnly: true, kind: 'quiet', press: () => dialog.close('') }),
    ),
    el('div', { class: 'dialog-body' }, ...body),
    actions.length > 0 ? el('footer', { class: 'dialog-foot' }, ...actions) : null,
  );
  // A press on the backdrop lands on the dialog element itself.
  dialog.addEventListener('pointerdown', (event) => {
    if (event.target === dialog && outside(dialog, event)) dialog.close('');
  });
  document.body.append(dialog);
  dialog.showModal();
  carryNotes();
  const closed = new Promise((/** @type {(value: string) => void} */ resolve) => {
    dialog.addEventListener('close', () => {
      carryNotes();
      dialog.remove();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
      resolve(dialog.returnValue);
    });
  });
  return { dialog, closed };
}

/** Notes can be seen and pressed in the topmost dialog alone: what lies under it is inert. */
function carryNotes() {
  const notes = document.getElementById('toasts');
  const top = [...document.querySelectorAll('dialog[open]')].at(-1) ?? document.body;
  if (notes && notes.parentElement !== top) top.append(notes);
}

/**
 * @param {HTMLElement} box
 * @param {{clientX: number, clientY: number}} point
 */
function outside(box, { clientX, clientY }) {
  const { left, right, top, bottom } = box.getBoundingClientRect();
  return clientX < left || clientX > right || clientY < top || clientY > bottom;
}

/**
 * Ask one question.
 * @param {object} question
 * @param {string} question.title
 * @param {string} question.closeLabel
 * @param {(import('./dom.js').Child)[]} question.body
 * @param {Choice[]} question.choices
 * @param {string} [question.class]
 * @returns {Promise<string>} the value taken, '' when dismissed
 */
export function ask({ title, closeLabel, body, choices, class: extra = '' }) {
  const stacked = choices.some((choice) => choice.hint);
  const actions = choices.map((choice) => {
    const made = button({
      label: choice.label,
      kind: choice.kind ?? '',
      disabled: choice.disabled ?? false,
      press: () => shown.dialog.close(choice.value),
    });
    if (choice.hint) made.append(el('small', { text: choice.hint }));
    return made;
  });
  const shown = open({ title, closeLabel, body, actions, class: `${extra} ${stacked ? 'stacked' : ''}` });
  return shown.closed;
}
