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
