import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as format from '../../static/js/format.js';
import { command } from '../../static/js/keys.js';

/** Intl may put spaces of several kinds. @param {string} text */
const plain = (text) => text.replace(/\s/gu, ' ');

test('a position is written as a clock', () => {
  assert.deepEqual([0, 7.9, 65, 3723, -1, Number.NaN].map(format.clock), ['0:00', '0:07', '1:05', '1:02:03', '0:00', '0:00']);
  assert.equal(format.fineClock(7.44), '0:07.4');
  assert.equal(format.fineClock(59.97), '1:00.0');
});

test('sizes and lengths are in the language\'s own words', () => {
  assert.equal(plain(format.bytes('en', 6_510_000_000)), '6.5 GB');
  assert.equal(plain(format.bytes('ru', 841_000_000)), '841 МБ');
  assert.equal(plain(format.bytes('en', 0)), '0 byte');
  assert.equal(plain(format.duration('en', 125)), '2 min 5 sec');
  assert.equal(plain(format.duration('ru', 8)), '8 с');
  assert.equal(plain(format.duration('en', 3720)), '1 hr 2 min');
});

test('times are written as the browser\'s own kind of the language writes them', () => {
  const at = new Date(2024, 4, 3, 17, 11).getTime();
  const said = (/** @type {string} */ language, /** @type {string[]} */ wanted) => plain(format.when(format.locale(language, wanted), at, at));
  assert.equal(said('en', ['de-DE', 'en-GB', 'en-US']), '17:11');
  assert.equal(said('en', ['en-US', 'en-GB']), '5:11 PM');
  assert.equal(said('ru', ['en-US']), '17:11');
  assert.equal(said('en', ['de-DE']), '5:11 PM');
  assert.match(plain(format.when(format.locale('en', ['en-GB']), at, at + 9e7)), /^3 May 2024/);
});

test('a key means the same under any alphabet', () => {
  assert.deepEqual(command({ key: 'д', code: 'KeyL' }), { name: 'loop' });
  assert.deepEqual(command({ key: 'l', code: 'KeyL' }), { name: 'loop' });
  assert.deepEqual(command({ key: ' ', code: 'Space' }), { name: 'play' });
  assert.deepEqual(command({ key: '3', code: 'Digit3' }), { name: 'solo', stem: 3 });
  assert.deepEqual(command({ key: '.', code: 'Slash' }), { name: 'prompt' });
  assert.deepEqual(command({ key: '?', code: 'Slash', shiftKey: true }), { name: 'help' });
});

test('a chord of the browser or the system is left alone', () => {
  assert.equal(command({ key: 'l', code: 'KeyL', ctrlKey: true }), null);
  assert.equal(command({ key: 'ArrowLeft', code: 'ArrowLeft', altKey: true }), null);
  assert.equal(command({ key: 'q', code: 'KeyQ' }), null);
});
