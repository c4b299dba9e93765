import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as chat from '../../static/js/models/chat.js';

const body = /** @type {any} */ ({ kind: 'generate', prompt: 'slow <script>alert(1)</script>', model: 'small', duration: 5, loop: true, audio_prompt: null, continuation: { track: 'T', mode: 'append', from: 2 } });

/** @param {Partial<chat.Entry>} [change] @returns {chat.Entry} */
const made = (change = {}) => ({
  ...chat.entry('abc', body, { continuation: 'T' }, 1000),
  state: 'done',
  tracks: [{ name: 'A', file: 'A.wav', duration_s: 5, take: 1, seed: 3 }],
  ...change,
});

test('a chat comes back from its own export as it was', () => {
  const before = [made()];
  assert.deepEqual(chat.read(JSON.parse(chat.toJson(before))), before);
});

test('what is not a chat is refused whole, and entries that make no sense are left out', () => {
  assert.throws(() => chat.read({ hello: 1 }), TypeError);
  assert.throws(() => chat.read('text'), TypeError);
  const bad = [null, 7, {}, { ...made(), id: '../x' }, { ...made(), state: 'haunted' }, { ...made(), request: { kind: 'load' } }, { ...made(), request: { kind: 'generate' } }];
  assert.deepEqual(chat.read(bad), []);
});

test('an imported entry carries nothing but what an entry has', () => {
  const [entry] = chat.read([{ ...made(), evil: 1, labels: { continuation: 'T', __proto__: 'x', other: 'y' }, error: { code: 'x', message: 'm', stack: 's' }, tracks: [{ name: 'A', file: 7 }], removed: ['A', 'never'] }]);
  assert.deepEqual(Object.keys(entry ?? {}).sort(), ['again', 'at', 'error', 'id', 'labels', 'removed', 'request', 'state', 'tracks', 'unknown']);
  assert.deepEqual(entry?.labels, { continuation: 'T' });
  assert.deepEqual(entry?.error, { code: 'x', message: 'm' });
  assert.deepEqual(entry?.removed, ['A']);
  assert.equal(entry?.tracks[0]?.file, 'A');
});

test('a request whose sending a reload cut off waits for the server to say whether it arrived', () => {
  assert.equal(chat.read([made({ state: 'sending', tracks: [] })])[0]?.state, 'sent');
});

test('an imported request that was going on elsewhere can be tried again, unless its job is known here', () => {
  const settled = (/** @type {any} */ entry, /** @type {any} */ jobs) => /** @type {any} */ (chat.interrupt([entry], chat.missing([entry], Object.values(jobs)))[0]);
  const going = made({ id: 'c1', state: 'running', tracks: [] });
  assert.equal(settled(going, {}).state, 'interrupted');
  const jobs = /** @type {any} */ ({ j1: { id: 'j1', client_id: 'c1' } });
  assert.equal(settled(going, jobs), going);
  assert.equal(settled(made(), {}).state, 'done');
});

test('what would fit the memory is still offered after a reload', () => {
  const error = { code: 'out_of_memory', message: 'm', details: { fits: [{ model: 'small', precision: 'int8' }] } };
  assert.deepEqual(chat.read([made({ state: 'failed', error })])[0]?.error, error);
});

test('numbers that are none are not taken over from a file', () => {
  const [entry] = chat.read([{ ...made(), at: 'x', request: { ...body, duration: Number.NaN, top_k: { a: 1 } } }]);
  assert.equal(entry?.at, 0);
  assert.equal(Object.hasOwn(entry?.request ?? {}, 'duration'), false);
  assert.equal(Object.hasOwn(entry?.request ?? {}, 'top_k'), false);
});

test('merging keeps each entry once, the newer knowledge first, in order of time', () => {
  const known = [made({ id: 'b', at: 2 }), made({ id: 'c', at: 3 })];
  const merged = chat.merge(known, [made({ id: 'a', at: 1 }), made({ id: 'b', at: 2, state: 'failed' })]);
  assert.deepEqual(merged.map((entry) => entry.id), ['a', 'b', 'c']);
  assert.equal(merged[1]?.state, 'done');
});

test('the oldest entries go once there are too many', () => {
  let all = /** @type {chat.Entry[]} */ ([]);
  for (let index = 0; index <= chat.MAX_ENTRIES; index += 1) all = chat.add(all, made({ id: `e${index}`, at: index }));
  assert.equal(all.length, chat.MAX_ENTRIES);
  assert.equal(all[0]?.id, 'e1');
});

test('a track that was deleted is marked once, and comes back when it is there again', () => {
  const gone = chat.tracksRemoved([made()], ['A', 'B']);
  assert.deepEqual(gone[0]?.removed, ['A']);
  assert.equal(chat.tracksRemoved(gone, ['A']), gone);
  const back = chat.takeTracks(gone, [/** @type {any} */ ({ name: 'A', file: 'A.flac', duration_s: 6, take: 1, seed: 9 })]);
  assert.deepEqual(back[0]?.removed, []);
  assert.equal(back[0]?.tracks[0]?.file, 'A.flac');
});

test('the text export says when, what was asked and what came of it', () => {
  const text = chat.toText([made()], () => 'noon', (entry) => entry.tracks.map((track) => track.file).join());
  assert.equal(text, '[noon]\n> slow <script>alert(1)</script>\nA.wav\n');
});
