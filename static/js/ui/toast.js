/** Short notes at the foot of the page, read out politely; an error stays until it is dismissed. */

import { button, el } from './dom.js';

const SHOWN_MS = 6000;

/** @param {HTMLElement} host an element with role=status */
export function toaster(host) {
  /**
   * @param {string} text
   * @param {{error?: boolean, close: string, action?: {label: string, press: () => void}}} options
   */
  return (text, { error = false, close, action }) => {
    const note = el('div', { class: error ? 'toast error' : 'toast' }, el('span', { text }));
    const gone = () => note.remove();
    if (action) {
      note.append(
        button({
          label: action.label,
          kind: 'quiet',
          press: () => {
            gone();
            action.press();
          },
        }),
      );
    }
    note.append(button({ label: close, icon: 'close', iconOnly: true, kind: 'quiet', press: gone }));
    // Said again, it is still one note.
    for (const known of [...host.children]) {
      if (known.firstElementChild?.textContent === text) known.remove();
    }
    host.append(note);
    if (!error) setTimeout(gone, SHOWN_MS);
  };
}
