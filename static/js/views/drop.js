/** Dropping an audio file anywhere on the page. */

import { Disposer, el, icon } from '../ui/dom.js';

/** Browsers repeat the event at least every 350 ms. */
const DRAG_OVER_MS = 800;
const AUDIO_NAME = /\.(wav|flac|mp3|ogg|oga|opus|m4a|aac|webm|aif|aiff)$/i;

/** @param {File} file */
const isAudio = (file) => file.type.startsWith('audio/') || file.type === 'video/webm' || AUDIO_NAME.test(file.name);

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
  let timer = 0;
  const hide = () => {
    clearTimeout(timer);
    veil.hidden = true;
  };
  view.add(hide);
  page.addEventListener('dragover', (event) => {
    if (!files(event)) return;
    event.preventDefault();
    veil.hidden = false;
    // It is told again and again while the file is over the page. Leaving is not always told: what lay under the
    // pointer may be gone.
    clearTimeout(timer);
    timer = window.setTimeout(hide, DRAG_OVER_MS);
  }, { signal });
  page.addEventListener('drop', (event) => {
    if (!files(event)) return;
    // Otherwise the browser would leave the page for the file.
    event.preventDefault();
    hide();
    if (page.querySelector('dialog[open]')) {
      tell(t('drop.dialogOpen'));
      return;
    }
    const all = [...(event.dataTransfer?.files ?? [])];
    const [first] = all;
    if (!first) return;
    const file = all.find(isAudio);
    if (file) dialogs.dropped(file);
    else tell(t('drop.notAudio', { file: first.name }), { error: true });
    // After the question has opened, so that it is said in it.
    if (file && all.length > 1) tell(t('drop.several', { file: file.name }));
  }, { signal });
  return () => view.dispose();
}
