/** A quiet line over the page: the connection is lost, or the page is older than the server. */

import { Disposer, button, el, icon } from '../ui/dom.js';

/**
 * @param {HTMLElement} host
 * @param {import('../app.js').App} app
 * @returns {() => void}
 */
export function mountBanner(host, { store, words, actions }) {
  const { t } = words;
  const view = new Disposer();
  const show = () => {
    const { connection, outdated, health } = store.state;
    host.replaceChildren();
    if (outdated) {
      host.append(
        icon('warning'),
        el('span', { text: t('banner.outdated') }),
        button({ label: t('banner.reload'), kind: 'quiet', press: () => location.reload() }),
      );
    } else if (connection === 'lost') {
      host.append(icon('warning'), el('span', { text: t('banner.lost') }));
    } else if (health?.stack === 'failed') {
      host.append(
        icon('warning'),
        el('span', { text: t('banner.stack', { problem: health.stack_problem }) }),
        button({ label: t('action.retry'), kind: 'quiet', press: () => void actions.health() }),
      );
    }
  };
  show();
  view.add(store.watch((state) => state.connection, show));
  view.add(store.watch((state) => state.outdated, show));
  view.add(store.watch((state) => state.health, show));
  return () => view.dispose();
}
