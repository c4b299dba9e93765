import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as law from '../../static/js/mixer/law.js';
import { byteRange, readLayout, readStereo, wavHeader, writeSamples } from '../../static/js/mixer/wav.js';
import { PIECES_KEPT, PIECE_S, StemSource } from '../../static/js/mixer/source.js';
import { pitchName, pitchRange, rulerStep } from '../../static/js/mixer/draw.js';

/** @param {Record<string, Partial<import('../../static/js/mixer/law.js').Strip>>} some */
const mix = (some) => law.stripsFor(/** @type {any} */ (some), ['drums', 'bass', 'vocals']);
/** @param {import('../../static/js/mixer/law.js').Strips} strips */
const heard = (strips) => Object.keys(strips).filter((name) => law.isHeard(strips, name));

// ------------------------------------------------------------------------------------------------- the law
test('without solo everything is heard but what is muted', () => {
  assert.deepEqual(heard(mix({ bass: { mute: true } })), ['drums', 'vocals']);
});

test('while stems are soloed only they are heard, a muted one among them too', () => {
  assert.deepEqual(heard(mix({ bass: { solo: true, mute: true }, drums: { mute: true } })), ['bass']);
  assert.deepEqual(heard(mix({ bass: { solo: true }, vocals: { solo: true } })), ['bass', 'vocals']);
});

test('the fader speaks in decibels and ends in silence', () => {
  assert.equal(law.gainOf(0), 1);
  assert.ok(Math.abs(law.gainOf(-6) - 0.5012) < 1e-4);
  assert.equal(law.gainOf(law.LOWEST_DB), 0);
  assert.equal(law.decibels(0), law.LOWEST_DB);
  assert.ok(Math.abs(law.decibels(law.gainOf(-17)) + 17) < 1e-9);
});

test('a stem in the middle is left as it is, and one at the side has all of it there', () => {
  const near = (/** @type {number[][]} */ got, /** @type {number[][]} */ want) => got.flat().forEach((value, index) => assert.ok(Math.abs(value - (want.flat()[index] ?? NaN)) < 1e-12));
  near(law.panMatrix(0), [[1, 0], [0, 1]]);
  near(law.panMatrix(-1), [[1, 1], [0, 0]]);
  near(law.panMatrix(1), [[0, 0], [1, 1]]);
});

test('panning keeps the power of what is moved', () => {
  for (const pan of [-0.9, -0.5, -0.1, 0.3, 0.7]) {
    const [[ll, lr], [rl, rr]] = law.panMatrix(pan);
    const moved = pan < 0 ? lr ** 2 + rr ** 2 : ll ** 2 + rl ** 2;
    assert.ok(Math.abs(moved - 1) < 1e-12, `pan ${pan}`);
  }
});

test('a mix that would clip is turned down to just under full scale, another is left alone', () => {
  assert.equal(law.safeGain(0.9), 1);
  assert.equal(law.safeGain(1), 1);
  assert.ok(Math.abs(2 * law.safeGain(2) - law.CEILING) < 1e-12);
});

test('a change makes a new mix and leaves the others in it', () => {
  const before = mix({});
  const after = law.changed(before, 'bass', { gainDb: -3 });
  assert.equal(before.bass?.gainDb, 0);
  assert.deepEqual(after.bass, { ...law.NEUTRAL, gainDb: -3 });
  assert.equal(after.drums, before.drums);
  assert.ok(law.isNeutral(before) && !law.isNeutral(after));
});

test('a mix in the words of the contract', () => {
  const said = law.toContract(law.stripsFor({ bass: { gainDb: -3, pan: 0.5, mute: false, solo: true } }, ['bass']), 0.5);
  assert.deepEqual(said.stems, { bass: { gain_db: -3, pan: 0.5, mute: false, solo: true } });
  assert.ok(Math.abs(said.turned_down_db + 6.0206) < 1e-3);
  assert.equal(law.toContract({}, 1).turned_down_db, 0);
});

// -------------------------------------------------------------------------------------------------- WAV
/** @param {ArrayBuffer[]} parts */
function joined(parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    out.set(new Uint8Array(part), at);
    at += part.byteLength;
  }
  return out.buffer;
}

for (const format of /** @type {const} */ (['float', 'int24'])) {
  test(`what is written as ${format} is read back`, () => {
    const samples = Float32Array.from([0.5, -0.25, 1, -1, 0.000001, -0.75]);
    const file = joined([wavHeader(48_000, 3, format), writeSamples(samples, format, 1)]);
    const layout = readLayout(file);
    assert.deepEqual([layout.sampleRateHz, layout.channels, layout.frames], [48_000, 2, 3]);
    const [left, right] = readStereo(file.slice(layout.dataAt), layout);
    const step = format === 'float' ? 0 : 1 / 0x800000;
    [...left].forEach((value, index) => assert.ok(Math.abs(value - (samples[index * 2] ?? NaN)) <= step));
    [...right].forEach((value, index) => assert.ok(Math.abs(value - (samples[index * 2 + 1] ?? NaN)) <= step));
  });
}

test('24 bits clip at full scale instead of turning over', () => {
  const bytes = writeSamples(Float32Array.from([1.5, -1.5]), 'int24', 1);
  const [left] = readStereo(bytes, { channels: 1, bits: 24, kind: 'int' });
  assert.ok((left[0] ?? 0) > 0.9999 && left[1] === -1);
});

test('a mono stem is on both sides', () => {
  const [left, right] = readStereo(Float32Array.from([0.1, 0.2]).buffer, { channels: 1, bits: 32, kind: 'float' });
  assert.deepEqual([...left], [...right]);
});

test('chunks before the samples are skipped, and what cannot be mixed is refused', () => {
  const head = new Uint8Array(wavHeader(44_100, 10, 'int24'));
  const list = new Uint8Array([...new TextEncoder().encode('LIST'), 3, 0, 0, 0, 1, 2, 3, 0]);
  const odd = joined([head.slice(0, 12).buffer, list.buffer, head.slice(12).buffer]);
  assert.equal(readLayout(odd).dataAt, 44 + list.length);
  assert.throws(() => readLayout(new TextEncoder().encode('no WAV at all, but long enough to be looked at once more').buffer), RangeError);
  const eight = head.slice();
  eight[34] = 8;
  assert.throws(() => readLayout(eight.buffer), /8 bits/);
});

// ---------------------------------------------------------------------------------------- pieces of a stem
/** @param {number} frames */
function served(frames) {
  const samples = Float32Array.from({ length: frames * 2 }, (_, index) => (index % 1000) / 1000);
  const file = joined([wavHeader(8_000, frames, 'float'), samples.buffer]);
  /** @type {string[]} */
  const asked = [];
  const get = async (/** @type {string} */ _url, /** @type {RequestInit} */ init) => {
    const span = String(new Headers(init.headers).get('Range'));
    asked.push(span);
    const [first, last] = span.replace('bytes=', '').split('-').map(Number);
    return new Response(file.slice(first, Number(last) + 1), { status: 206 });
  };
  return { source: new StemSource('/stem', get), samples, asked };
}

const { signal } = new AbortController();

test('a stem comes in pieces, each asked for once by its bytes, the last one shorter', async () => {
  const frames = 8_000 * PIECE_S + 100;
  const { source, samples, asked } = served(frames);
  const [first, last] = [await source.piece(0, signal), await source.piece(1, signal)];
  assert.deepEqual([first[0].length, last[0].length], [8_000 * PIECE_S, 100]);
  assert.equal(first[1][7], samples[15]);
  assert.equal(last[0][0], samples[8_000 * PIECE_S * 2]);
  await source.piece(0, signal);
  assert.equal(asked.length, 3);
  const layout = await source.layout(signal);
  const { first: from, last: to } = byteRange(layout, 8_000 * PIECE_S, frames);
  assert.equal(asked[2], `bytes=${from}-${to}`);
});

test('however long the stem, only a few pieces are kept', async () => {
  const { source } = served(8_000 * PIECE_S * 12);
  for (let index = 0; index < 12; index += 1) await source.piece(index, signal);
  assert.equal(source.pieces.size, PIECES_KEPT);
  assert.ok(source.pieces.has(11) && !source.pieces.has(0));
});

test('a piece that failed is asked for again', async () => {
  const { source } = served(8_000 * PIECE_S);
  const { get } = source;
  await source.layout(signal);
  source.get = async () => new Response('', { status: 500 });
  await assert.rejects(source.piece(0, signal), /500/);
  source.get = get;
  assert.equal((await source.piece(0, signal))[0].length, 8_000 * PIECE_S);
});

// ------------------------------------------------------------------------------------------------ pictures
test('marks of the ruler stay readable at any length', () => {
  for (const [seconds, width] of [[2, 300], [30, 460], [600, 300], [7200, 200]]) {
    const marks = (seconds ?? 0) / rulerStep(seconds ?? 0, width ?? 1);
    assert.ok(marks <= (width ?? 0) / 60, `${seconds} s on ${width} px`);
  }
});

test('a piano roll shows every pitch, and one note is no wall', () => {
  const { low, high } = pitchRange([[0, 1, 60, 90]]);
  assert.ok(low < 60 && high > 60 && high - low >= 18);
  const wide = pitchRange([[0, 1, 22, 90], [0, 1, 108, 90]]);
  assert.ok(wide.low <= 22 && wide.high >= 108);
  assert.equal(pitchName(60), 'C4');
});
