/** What would fit the memory where something does not: said once, for the composer and for a job that failed. */

import { button, el } from '../ui/dom.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').Fit} Fit
 */

/**
 * A button for each model that is here and would fit, and a word on a smaller precision of the chosen one.
 * @param {App} app
 * @param {readonly Fit[]} fits
 * @param {string} chosen the model that does not fit
 * @param {(model: string) => void} use
 * @returns {HTMLElement[]}
 */
export function whatFits({ store, words }, fits, chosen, use) {
  const { t } = words;
  const here = store.state.models.filter((model) => model.state === 'ready' && model.id !== chosen);
  const others = here.filter((model) => fits.some((fit) => fit.model === model.id));
  const smaller = fits.find((fit) => fit.model === chosen);
  /** @type {HTMLElement[]} */
  const made = others.map((model) => button({ label: t('preflight.use', { model: words.name(model) }), press: () => use(model.id) }));
  if (smaller) made.push(el('span', { text: t('preflight.precision', { flag: `--precision ${smaller.precision}` }) }));
  return made.length > 0 ? made : [el('span', { text: t('preflight.nothing') })];
}
