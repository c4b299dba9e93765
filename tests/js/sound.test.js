import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { test } from 'node:test';
import { Pcm, WavReader } from '../../static/js/audio/pcm.js';
import { nextPiece, positionAt } from '../../static/js/audio/schedule.js';
import { matchLoudness } from '../../static/js/audio/player.js';

/** A WAV as the server streams it: sizes unknown. @param {number} channels @param {number[]} samples interleaved */
function wav(channels, samples, { rate = 32_000, extra = 0, code = 1, bits = 16 } = {}) {
  const head = new DataView(new ArrayBuffer(44 + extra));
  const text = (/** @type {number} */ at, /** @type {string} */ word) => [...word].forEach((char, index) => head.setUint8(at + index, char.charCodeAt(0)));
  text(0, 'RIFF');
  head.setUint32(4, 0xffffffff, true);
  text(8, 'WAVE');
  text(12, 'fmt ');
  head.setUint32(16, 16 + extra, true);
  head.setUint16(20, code, true);
  head.setUint16(22, channels, true);
  head.setUint32(24, rate, true);
  head.setUint32(28, rate * channels * 2, true);
  head.setUint16(32, channels * 2, true);
  head.setUint16(34, bits, true);
  text(36 + extra, 'data');
  head.setUint32(40 + extra, 0xffffffff, true);
  return Buffer.concat([Buffer.from(head.buffer), Buffer.from(Int16Array.from(samples).buffer)]);
}

test('a WAV that arrives byte by byte gives the same samples as one that arrives whole', () => {
  const samples = Array.from({ length: 2000 }, (_, index) => ((index * 37) % 60_000) - 30_000);
  const file = wav(2, samples);
  for (const step of [1, 7, 44, file.length]) {
    const reader = new WavReader();
    for (let at = 0; at < file.length; at += step) reader.push(file.subarray(at, at + step));
    const { pcm } = reader;
    assert.ok(pcm);
    assert.deepEqual([pcm.sampleRateHz, pcm.channels, pcm.frames], [32_000, 2, 1000]);
    assert.deepEqual([...pcm.slice(1, 10, 13)], [21, 23, 25].map((index) => (samples[index] ?? 0) / 32768));
  }
});

test('a format block that is longer than usual is passed over', () => {
  const reader = new WavReader();
  reader.push(wav(1, [1, 2, 3], { extra: 2 }));
  assert.equal(reader.pcm?.frames, 3);
});

test('what is not a 16-bit WAV is refused', () => {
  assert.throws(() => new WavReader().push(new Uint8Array(64)), RangeError);
  assert.throws(() => new WavReader().push(wav(1, [1], { code: 3, bits: 32 })), RangeError);
  assert.throws(() => new WavReader().push(wav(0, [1])), RangeError);
  assert.throws(() => new WavReader().push(wav(1, [1], { rate: 1 })), RangeError);
});

test('samples are kept across the seams of the blocks they are stored in', () => {
  const pcm = new Pcm(8000, 1);
  const all = Float32Array.from({ length: 100_000 }, (_, index) => (index % 1000) / 1000);
  for (let at = 0; at < all.length; at += 777) pcm.append([all.subarray(at, at + 777)]);
  assert.equal(pcm.frames, all.length);
  assert.deepEqual(pcm.slice(0, 32_700, 32_900), all.slice(32_700, 32_900));
});

test('peaks are the lowest and highest of each full bin, and of the last one once it is over', () => {
  const pcm = new Pcm(8000, 2);
  pcm.append([Float32Array.of(0.5, 0, 0.1, 0, 0.25), Float32Array.of(-0.5, 0, 0, -0.75, 0)]);
  assert.deepEqual(pcm.peaks(0, 2), [[-0.5, 0.5], [-0.75, 0.10000000149011612]]);
  pcm.end();
  assert.deepEqual(pcm.peaks(4, 2), [[0, 0.25]]);
});

test('pieces laid end to end play every frame once and end at the end', () => {
  const heard = [];
  let at = 0;
  for (let piece = nextPiece(at, 1000, null, 300); piece; piece = nextPiece(at, 1000, null, 300)) {
    heard.push([piece.from, piece.frames]);
    at = piece.next;
  }
  assert.deepEqual(heard, [[0, 300], [300, 300], [600, 300], [900, 100]]);
});

test('a loop goes from its end to its start without a frame more or less', () => {
  const loop = { start: 100, end: 350 };
  let at = 100;
  const played = [];
  for (let count = 0; count < 6; count += 1) {
    const piece = nextPiece(at, 1000, loop, 200);
    assert.ok(piece);
    for (let frame = 0; frame < piece.frames; frame += 1) played.push(piece.from + frame);
    at = piece.next;
  }
  played.forEach((frame, index) => assert.equal(frame, 100 + (index % 250)));
});

test('a loop over what is still being made waits for it instead of turning early', () => {
  assert.deepEqual(nextPiece(0, 200, { start: 0, end: 350 }, 300), { from: 0, frames: 200, next: 200 });
  assert.equal(nextPiece(200, 200, { start: 0, end: 350 }, 300), null);
});

test('from past the loop it plays on to the end', () => {
  assert.deepEqual(nextPiece(500, 1000, { start: 0, end: 350 }, 300), { from: 500, frames: 300, next: 800 });
});

test('the position follows the pieces, and stands still where a stream ran dry', () => {
  const pieces = [{ at: 1000, from: 0, frames: 100 }, { at: 1100, from: 100, frames: 100 }];
  assert.equal(positionAt(pieces, 990, 5), 0);
  assert.equal(positionAt(pieces, 1150, 5), 150);
  assert.equal(positionAt(pieces, 5000, 5), 200);
  assert.equal(positionAt([], 5000, 5), 5);
});

test('takes are turned down to the quietest, never up', () => {
  assert.deepEqual(matchLoudness([-14, -20, null]), [-6, 0, 0]);
  assert.deepEqual(matchLoudness([null, -20]), [0, 0]);
});
