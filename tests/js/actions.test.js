import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Actions } from '../../static/js/actions.js';
import { empty } from '../../static/js/models/library.js';
import { Store } from '../../static/js/store.js';

const facts = JSON.parse(readFileSync(new URL('../golden/page_facts.json', import.meta.url), 'utf8'));

/**
 * The page's actions over a server that answers with these.
 * @param {(path: string) => Promise<object | null> | object | null} answer the envelope of success; null is a 404
 * @param {object} [known] of the state
 */
function page(answer, known = {}) {
  globalThis.fetch = /** @type {any} */ (async (/** @type {string} */ path) => {
    const found = await answer(path);
    return new Response(JSON.stringify(found === null ? { ok: false, error: { code: 'not_found', message: 'gone' } } : { ok: true, ...found }), { status: found === null ? 404 : 200 });
  });
  const state = /** @type {any} */ ({ connection: 'online', library: empty(), tracks: {}, jobs: {}, models: [], chat: [], active: null, values: {}, ...known });
  const store = new Store(state);
  const player = /** @type {any} */ ({});
  return { store, actions: new Actions(store, player, facts, (problem) => assert.fail(String(problem))) };
}

/** @param {string} name */
const track = (name) => ({ name, file: `${name}.wav`, duration_s: 1, take: 1, seed: 1, stems: {} });

test('a track that went while the connection was lost leaves the card and its bubble, though it was known before', async () => {
  const entry = { id: 'e', tracks: [{ name: 'A' }, { name: 'B' }], removed: [] };
  const { store, actions } = page(
    (path) => (path.startsWith('/api/tracks?') ? { tracks: [track('B')], next_cursor: null, total: 1 } : null),
    { tracks: { A: track('A'), B: track('B') }, active: 'A', chat: [entry] },
  );
  await actions.list();
  await actions.checkTracks();
  assert.deepEqual(store.state.chat[0]?.removed, ['A']);
  assert.equal(store.state.active, null);
  assert.equal(store.state.library.total, 1);
});

/** @param {string} state */
const entry = (state) => ({ id: 'c1', state, tracks: [], removed: [], error: null });

test('a request that no list of the server has is interrupted', async () => {
  const { store, actions } = page(() => ({ jobs: [] }), { chat: [entry('running')] });
  await actions.findLost([]);
  assert.equal(store.state.chat[0]?.state, 'interrupted');
});

test('a request that the list of the connection is too old for goes on, and what became of it is known', async () => {
  const job = { id: 'j1', client_id: 'c1', rev: 4, kind: 'generate', status: 'done', tracks: ['T'], unknown_words: [] };
  const { store, actions } = page(() => ({ jobs: [job] }), { chat: [entry('queued')] });
  /** @type {string[]} */
  const seen = [];
  store.watch((now) => now.chat, (now) => seen.push(now[0]?.state ?? ''));
  await actions.findLost([]);
  assert.deepEqual(seen, ['done']);
});

test('a request that was sent while the server was being asked is not lost, nor is any when it does not answer', async () => {
  const late = page(() => {
    late.store.dispatch({ type: 'chat/add', entry: /** @type {any} */ ({ ...entry('queued'), id: 'c2' }) });
    return { jobs: [] };
  }, { chat: [entry('running')] });
  await late.actions.findLost([]);
  assert.deepEqual(late.store.state.chat.map((item) => item.state), ['interrupted', 'queued']);
  const deaf = page(() => null, { chat: [entry('running')] });
  await deaf.actions.findLost([]);
  assert.equal(deaf.store.state.chat[0]?.state, 'running');
});

test('the server is not asked again when its list has every request', async () => {
  const { actions } = page(() => assert.fail('asked'), { chat: [entry('running'), { ...entry('done'), id: 'old' }] });
  await actions.findLost([/** @type {any} */ ({ id: 'j1', client_id: 'c1' })]);
});
