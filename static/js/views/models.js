/** The model menu: what is here, what can be fetched, how large, under which licence, and where it is kept. */

import { Disposer, button, el, icon } from '../ui/dom.js';
import { open } from '../ui/dialog.js';
import { fraction, loadOf } from '../models/jobs.js';

/**
 * @typedef {import('../app.js').App} App
 * @typedef {import('../contract.js').ModelInfo} ModelInfo
 * @typedef {import('../contract.js').Job} Job
 */

/** @param {App} app */
export function showModels(app) {
  const { store, words, actions } = app;
  const { t } = words;
  const view = new Disposer();
  const list = el('ul', { class: 'models' });
  const shown = open({ title: t('models.title'), closeLabel: t('action.close'), class: 'wide', body: [el('p', { class: 'hint', text: t('models.hint') }), list] });
  let drawn = '';
  /** @type {Map<string, (job: Job) => void>} */
  let progress = new Map();
  const show = () => {
    const { models, jobs, values, health } = store.state;
    const state = JSON.stringify([models, values.model, health?.offline, health?.model, models.map((model) => loadOf(jobs, model.id)?.id)]);
    if (state !== drawn) {
      drawn = state;
      progress = new Map();
      const focused = document.activeElement?.getAttribute('data-focus');
      list.replaceChildren(...models.map((model) => row(model, app, progress)));
      if (focused) list.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.closest('button')?.focus();
    }
    for (const [id, update] of progress) {
      const job = loadOf(jobs, id);
      if (job) update(job);
    }
  };
  show();
  view.add(store.watch((state) => state.models, show));
  view.add(store.watch((state) => state.jobs, show));
  view.add(store.watch((state) => state.values.model, show));
  view.add(store.watch((state) => state.health, show));
  void actions.refreshModels();
  void shown.closed.then(() => view.dispose());
}

/**
 * @param {ModelInfo} model
 * @param {App} app
 * @param {Map<string, (job: Job) => void>} progress
 */
function row(model, app, progress) {
  const { store, words } = app;
  const { t } = words;
  const chosen = store.state.values.model === model.id;
  const loading = loadOf(store.state.jobs, model.id);
  const facts = [
    model.params_m ? t('models.params', { size: model.params_m >= 1000 ? t('models.billion', { n: words.number(model.params_m / 1000, 1) }) : t('models.million', { n: words.number(model.params_m, 0) }) }) : '',
    t(model.channels === 1 ? 'table.mono' : 'table.stereo'),
    model.melody ? t('models.melody') : '',
    model.licence ? t('models.licence', { licence: model.licence }) : '',
    model.diffusion ? t('models.diffusion', { licence: model.diffusion.licence }) : '',
  ].filter(Boolean);
  const state = model.loaded ? t('models.loaded') : t(`models.state.${model.state}`, { size: words.bytes(model.download_bytes) });
  return el(
    'li',
    { class: chosen ? 'model chosen' : 'model', attrs: { 'data-model': model.id } },
    el(
      'div',
      { class: 'model-head' },
      el('h3', { text: words.name(model) }),
      el('span', { class: `tag ${model.loaded ? 'loaded' : model.state}`, text: state }),
    ),
    el('p', { class: 'model-facts', text: facts.join(' · ') }),
    model.sketch ? el('p', { class: 'model-note', text: t('model.sketchLong') }) : null,
    model.problem ? el('p', { class: 'model-note warn', text: model.problem }) : null,
    model.state === 'missing' && model.missing.length > 0 ? el('p', { class: 'model-note warn', text: t('models.missing', { parts: words.listing(model.missing) }) }) : null,
    model.where ? el('p', { class: 'model-where', text: t(model.state === 'ready' ? 'models.where' : 'models.willBe', { where: model.where }) }) : null,
    loading ? fetching(loading, app, (update) => progress.set(model.id, update)) : choices(model, chosen, app),
  );
}

/** @param {ModelInfo} model @param {boolean} chosen @param {App} app */
function choices(model, chosen, { store, words, actions }) {
  const { t } = words;
  const offline = store.state.health?.offline ?? false;
  const fetchable = model.state !== 'ready' && model.download_bytes > 0 && !offline;
  return el(
    'div',
    { class: 'model-actions' },
    chosen
      ? el('span', { class: 'chosen-mark' }, icon('check'), el('span', { text: t('models.chosen') }))
      : model.state === 'ready' &&
          button({
            label: t('models.choose'),
            press: () => actions.choose(model.id),
            attrs: { 'data-focus': `choose-${model.id}`, 'aria-label': t('models.chooseThis', { name: words.name(model) }) },
          }),
    fetchable ? button({ label: t('models.download', { size: words.bytes(model.download_bytes) }), icon: 'download', kind: 'primary', press: () => void actions.fetchModel(model.id), attrs: { 'data-focus': `fetch-${model.id}` } }) : null,
    model.state === 'ready' && !model.loaded && chosen ? button({ label: t('models.load'), press: () => void actions.fetchModel(model.id), attrs: { 'data-focus': `load-${model.id}` } }) : null,
    model.state !== 'ready' && offline ? el('span', { class: 'hint', text: t('models.offline') }) : null,
  );
}

/** @param {Job} first @param {App} app @param {(update: (job: Job) => void) => void} watch */
function fetching(first, { words, actions }, watch) {
  const { t } = words;
  const meter = el('progress', { class: 'progress', attrs: { max: 1, 'aria-label': t('progress.label') } });
  const said = el('span', { class: 'left' });
  let now = first;
  watch((job) => {
    now = job;
    const share = fraction(job);
    if (share === null) meter.removeAttribute('value');
    else meter.value = share;
    const parts = [t(`phase.${job.phase}`)];
    if (job.phase === 'downloading' && job.total > 0) {
      parts.push(t('progress.bytes', { done: words.bytes(job.done), total: words.bytes(job.total) }));
      if (job.rate) parts.push(t('progress.speed', { speed: words.bytes(job.rate) }));
    }
    if (job.eta_s !== null && job.eta_s >= 1) parts.push(t('progress.left', { time: words.duration(Math.round(job.eta_s)) }));
    said.textContent = parts.join(' · ');
  });
  return el(
    'div',
    { class: 'model-progress' },
    meter,
    el('div', { class: 'progress-head' }, said, button({ label: t('action.cancel'), icon: 'close', kind: 'quiet', press: () => void actions.cancel(now, false) })),
    el('p', { class: 'hint', text: t('models.resumes') }),
  );
}
