/** Dropping an audio file anywhere on the page. */

import { Disposer, el, icon } from '../ui/dom.js';

const AUDIO_NAME = /\.(wav|flac|mp3|ogg|oga|opus|m4a|aac|webm|aif|aiff)$/i;

/**
 * @param {Document} page
 * @param {import('../app.js').App} app
 * @returns {() => void}
 */
export function mountDrop(page, { words, dialogs, tell }) {
  const { t } = words;
  const view = new Disposer();
  const { signal } = view;
  const veil = el('div', { class: 'veil', attrs: { hidden: true } }, icon('attach'), el('span', { text: t('drop.here') }));
  page.body.append(veil);
  view.add(() => veil.remove());
  const files = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes('Files') ?? false;
  let depth = 0;
  const show = () => (veil.hidden = depth === 0);
  page.addEventListener('dragenter', (event) => {
    if (!files(event)) return;
    depth += 1;
    show();
  }, { signal });
  page.addEventListener('dragleave', (event) => {
    if (!files(event)) return;
    depth = Math.max(0, depth - 1);
    show();
  }, { signal });
  page.addEventListener('dragover', (event) => {
    if (files(event)) event.preventDefault();
  }, { signal });
  page.addEventListener('drop', (event) => {
    if (!files(event)) return;
    // Otherwise the browser would leave the page for the file.
    event.preventDefault();
    depth = 0;
    show();
    const [file] = event.dataTransfer?.files ?? [];
    if (!file) return;
    if (file.type.startsWith('audio/') || file.type === 'video/webm' || AUDIO_NAME.test(file.name)) dialogs.dropped(file);
    else tell(t('drop.notAudio', { file: file.name }), { error: true });
  }, { signal });
  return () => view.dispose();
}
