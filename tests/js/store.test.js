import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import * as jobs from '../../static/js/models/jobs.js';
import * as library from '../../static/js/models/library.js';
import { Store, reduce } from '../../static/js/store.js';
import { defaults } from '../../static/js/models/settings.js';
import { entry } from '../../static/js/models/chat.js';

/** @typedef {import('../../static/js/store.js').State} State */

const facts = JSON.parse(readFileSync(new URL('../golden/page_facts.json', import.meta.url), 'utf8'));

/** @param {Partial<State>} [change] @returns {State} */
function state(change = {}) {
  return {
    connection: 'online',
    outdated: false,
    health: null,
    models: [],
    jobs: {},
    tracks: {},
    library: library.empty(),
    chat: [],
    active: null,
    values: defaults(facts.parameters),
    attachments: { audioPrompt: null, base: null },
    prompt: '',
    presets: [],
    prefs: { language: 'en', theme: 'auto', compact: false, live: true, panel: false, volume: 1 },
    ...change,
  };
}

/** @param {Partial<import('../../static/js/contract.js').Job>} change */
function job(change) {
  return /** @type {import('../../static/js/contract.js').Job} */ ({
    id: 'j1', client_id: 'c1', rev: 1, kind: 'generate', status: 'queued', phase: 'queued', done: 0, total: 0, rate: null,
    eta_s: null, position: 0, created_at: '', request: {}, track: null, tracks: [], live: false, live_s: 0, unknown_words: [], error: null,
    ...change,
  });
}

/** @param {string} name @param {object} [change] */
function track(name, change = {}) {
  return /** @type {import('../../static/js/contract.js').Track} */ (
    /** @type {unknown} */ ({ name, file: `${name}.wav`, duration_s: 5, take: 1, seed: 7, stems: {}, locked: false, ...change })
  );
}

const body = /** @type {any} */ ({ kind: 'generate', prompt: 'piano' });
const asked = () => entry('c1', body, {}, 1);

test('the snapshot with the highest rev wins in whatever order they come', () => {
  const [early, late] = [job({ rev: 2, status: 'running' }), job({ rev: 5, status: 'running', done: 9 })];
  for (const order of [[early, late], [late, early]]) {
    assert.equal(jobs.takeAll({}, order).j1?.done, 9);
  }
});

test('a final status is never undone, whatever rev claims it', () => {
  const over = jobs.takeJob({}, job({ rev: 3, status: 'done' }));
  assert.equal(jobs.takeJob(over, job({ rev: 9, status: 'running' })), over);
});

test('an answer that is older than an event does not take the chat back', () => {
  let now = state({ chat: [asked()] });
  now = reduce(now, { type: 'job', job: job({ rev: 4, status: 'running' }) });
  now = reduce(now, { type: 'job', job: job({ rev: 1, status: 'queued' }) });
  assert.equal(now.chat[0]?.state, 'running');
});

test('a finished job puts its tracks into the chat, also when the track becomes known later', () => {
  let now = state({ chat: [asked()] });
  now = reduce(now, { type: 'job', job: job({ rev: 4, status: 'done', track: 'T', tracks: ['T'] }) });
  assert.deepEqual(now.chat[0]?.tracks.map((item) => [item.name, item.seed]), [['T', null]]);
  now = reduce(now, { type: 'library', change: { added: [track('T')] } });
  assert.deepEqual(now.chat[0]?.tracks.map((item) => [item.file, item.seed]), [['T.wav', 7]]);
});

test('a deleted track leaves the card, the list and the map, and its bubble says so', () => {
  let now = state({ chat: [asked()] });
  now = reduce(now, { type: 'job', job: job({ rev: 4, status: 'done', tracks: ['T'] }) });
  now = reduce(now, { type: 'library', change: { added: [track('T')] } });
  now = reduce(now, { type: 'open', name: 'T' });
  now = reduce(now, { type: 'library', change: { removed: ['T'] } });
  assert.equal(now.active, null);
  assert.deepEqual(now.library.names, []);
  assert.deepEqual(now.tracks, {});
  assert.deepEqual(now.chat[0]?.removed, ['T']);
});

test('only what was going on can be lost', () => {
  for (const [before, after] of /** @type {const} */ ([['sent', 'interrupted'], ['queued', 'interrupted'], ['running', 'interrupted'], ['sending', 'sending'], ['done', 'done']])) {
    const now = state({ chat: [{ ...asked(), state: before }] });
    assert.equal(reduce(now, { type: 'chat/lost', ids: ['c1'] }).chat[0]?.state, after);
    assert.equal(reduce(now, { type: 'chat/lost', ids: ['c2'] }).chat[0]?.state, before);
  }
});

test('a request that was taken for lost goes on when its job is heard of after all', () => {
  let now = state({ chat: [{ ...asked(), state: 'sent' }] });
  now = reduce(now, { type: 'chat/lost', ids: ['c1'] });
  now = reduce(now, { type: 'job', job: job({ rev: 2, status: 'running' }) });
  assert.equal(now.chat[0]?.state, 'running');
  now = reduce(now, { type: 'job', job: job({ rev: 3, status: 'done', tracks: ['T'] }) });
  assert.deepEqual([now.chat[0]?.state, now.chat[0]?.tracks.length], ['done', 1]);
});

test('a request that the server said was interrupted stays so', () => {
  let now = state({ chat: [{ ...asked(), state: 'running' }] });
  now = reduce(now, { type: 'job', job: job({ rev: 3, status: 'interrupted' }) });
  now = reduce(now, { type: 'job', job: job({ rev: 2, status: 'running' }) });
  assert.equal(now.chat[0]?.state, 'interrupted');
});

test('a listener is told only of its own part', () => {
  const store = new Store(state());
  /** @type {string[]} */
  const heard = [];
  const stop = store.watch((now) => now.prompt, (prompt) => heard.push(prompt));
  store.dispatch({ type: 'prompt', prompt: 'a' });
  store.dispatch({ type: 'open', name: 'T' });
  stop();
  store.dispatch({ type: 'prompt', prompt: 'b' });
  assert.deepEqual(heard, ['a']);
});

test('a new track goes to the top of an unfiltered list, and only marks a filtered one stale', () => {
  const waiting = { ...library.empty(), loading: true, stale: false };
  const plain = library.takePage(waiting, waiting.filters, [track('A')], '', 1, true);
  const added = library.takeChange(plain, { added: [track('B')] });
  assert.deepEqual([added.names, added.total, added.stale], [['B', 'A'], 2, false]);
  const filtered = { ...plain, filters: { ...plain.filters, q: 'x' } };
  const later = library.takeChange(filtered, { added: [track('B')] });
  assert.deepEqual([later.names, later.stale], [['A'], true]);
});

test('a list that changed while it was asked for is asked for again, and counts each track once', () => {
  let now = reduce(state(), { type: 'library/loading' });
  now = reduce(now, { type: 'library', change: { added: [track('B')] } });
  const { filters } = now.library;
  now = reduce(now, { type: 'library/page', filters, tracks: [track('A')], cursor: '', total: 1, fresh: true });
  assert.deepEqual([now.library.loading, now.library.stale], [false, true]);
  now = reduce(now, { type: 'library/loading' });
  now = reduce(now, { type: 'library/page', filters, tracks: [track('B'), track('A')], cursor: '', total: 2, fresh: true });
  assert.deepEqual([now.library.names, now.library.stale], [['B', 'A'], false]);
  now = reduce(now, { type: 'library', change: { added: [track('B')] } });
  assert.deepEqual([now.library.names, now.library.total], [['B', 'A'], 2]);
});

test('an answer to filters that are no longer asked for ends the waiting and leaves the list to be asked for again', () => {
  let now = reduce(state(), { type: 'library/loading' });
  const { filters } = now.library;
  now = reduce(now, { type: 'library/filters', filters: { q: 'x' } });
  now = reduce(now, { type: 'library/page', filters, tracks: [track('A')], cursor: '', total: 1, fresh: true });
  assert.deepEqual([now.library.names, now.library.loading, now.library.stale], [[], false, true]);
});

test('the count follows what is listed: news that comes twice, or of what stands on another page, does not bend it', () => {
  const blank = library.empty();
  const whole = library.takePage({ ...blank, stale: false }, blank.filters, [track('A'), track('B')], '', 2, true);
  const once = library.takeChange(whole, { removed: ['A'] });
  const twice = library.takeChange(once, { removed: ['A'] });
  assert.deepEqual([twice.names, twice.total, twice.stale], [['B'], 1, false]);
  assert.equal(library.takeChange(whole, { added: [track('A')] }).total, 2);
  const paged = { ...whole, cursor: 'next', total: 9 };
  assert.equal(library.takeChange(paged, { removed: ['Z'] }).stale, true);
});

test('a page asks for what is filtered and leaves the rest out', () => {
  const filters = { ...library.empty().filters, q: 'a b', locked: true };
  assert.equal(library.query(filters, 'c', 10), 'q=a+b&locked=true&sort=newest&cursor=c&limit=10');
});

test('progress is a share, and unknown when the phase has no end', () => {
  assert.equal(jobs.fraction(job({ done: 5, total: 10 })), 0.5);
  assert.equal(jobs.fraction(job({ done: 15, total: 10 })), 1);
  assert.equal(jobs.fraction(job({ done: 5, total: 0 })), null);
});
