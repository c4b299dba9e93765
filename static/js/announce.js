/** Tells a screen reader how a job goes: its phases, each quarter, its end. Never every percent. */

import { fraction, isFinal } from './models/jobs.js';

/**
 * @param {HTMLElement} host an element with role=status
 * @param {import('./app.js').App} app
 * @returns {() => void}
 */
export function announce(host, { store, words, actions }) {
  const { t } = words;
  /** @type {Map<string, string>} */
  const said = new Map();
  return store.watch(
    (state) => state.jobs,
    (jobs) => {
      for (const job of Object.values(jobs)) {
        if (!actions.asked.has(job.client_id)) continue;
        const quarter = Math.floor((fraction(job) ?? 0) * 4) * 25;
        const news = isFinal(job) ? job.status : `${job.phase} ${quarter}`;
        if (said.get(job.id) === news) continue;
        said.set(job.id, news);
        if (isFinal(job)) host.textContent = t(`status.${job.status}`);
        else host.textContent = quarter > 0 ? `${t(`phase.${job.phase}`)} ${words.percent(quarter / 100)}` : t(`phase.${job.phase}`);
      }
    },
  );
}
