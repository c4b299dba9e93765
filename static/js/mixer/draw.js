/** The mixer's pictures on canvas: waveforms, the ruler with its loop, and the notes of a stem. */

import { extremes, prepare, token } from '../ui/canvas.js';

/**
 * @typedef {[start: number, end: number, pitch: number, velocity: number]} Note seconds, seconds, MIDI, 1 to 127
 */

/**
 * @param {HTMLCanvasElement} canvas
 * @param {readonly (readonly [number, number])[]} peaks
 * @param {number} loudest what fills the height: one for all stems, so that a quiet one looks quiet
 */
export function drawWave(canvas, peaks, loudest) {
  const ready = prepare(canvas);
  if (!ready || peaks.length === 0) return;
  const { pen, width, height } = ready;
  const middle = height / 2;
  const scale = (middle - 1) / Math.max(loudest, 0.02);
  pen.fillStyle = token(canvas, '--wave');
  for (let x = 0; x < width; x += 1) {
    const [low, high] = extremes(peaks, x, width);
    const top = Math.max(0, middle - high * scale);
    pen.fillRect(x, top, 1, Math.max(1, Math.min(height, middle - low * scale) - top));
  }
}

/** Distances between marks of a ruler that a person reads at a glance, in seconds. */
const STEPS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600];
const MARK_PX = 64;

/**
 * @param {number} seconds
 * @param {number} width
 * @returns {number} seconds between two marks
 */
export function rulerStep(seconds, width) {
  const least = (seconds * MARK_PX) / Math.max(1, width);
  return STEPS.find((step) => step >= least) ?? 7200;
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {number} seconds
 * @param {{start: number, end: number} | null} loop seconds
 * @param {(seconds: number) => string} clock
 */
export function drawRuler(canvas, seconds, loop, clock) {
  const ready = prepare(canvas);
  if (!ready) return;
  const { pen, width, height } = ready;
  if (loop) {
    const [from, to] = [(loop.start / seconds) * width, (loop.end / seconds) * width];
    pen.fillStyle = token(canvas, '--loop');
    pen.fillRect(from, 0, to - from, height);
    pen.fillStyle = token(canvas, '--accent');
    pen.fillRect(from, 0, 2, height);
    pen.fillRect(to - 2, 0, 2, height);
  }
  const step = rulerStep(seconds, width);
  pen.font = `11px ${token(canvas, '--font')}`;
  pen.textBaseline = 'middle';
  for (let at = 0; at < seconds; at += step) {
    const x = (at / seconds) * width;
    pen.fillStyle = token(canvas, '--line-strong');
    pen.fillRect(x, height - 5, 1, 5);
    if (x + 30 > width) continue;
    pen.fillStyle = token(canvas, '--muted');
    pen.fillText(clock(at), x + 4, height / 2);
  }
}

/**
 * A piano roll: time to the right, pitch upwards, louder notes stronger.
 * @param {HTMLCanvasElement} canvas
 * @param {readonly Note[]} notes
 * @param {number} seconds
 */
export function drawNotes(canvas, notes, seconds) {
  const ready = prepare(canvas);
  if (!ready || notes.length === 0) return;
  const { pen, width, height } = ready;
  const { low, high } = pitchRange(notes);
  const row = height / (high - low + 1);
  pen.fillStyle = token(canvas, '--line');
  for (let pitch = low; pitch <= high; pitch += 1) {
    if (pitch % 12 === 0) pen.fillRect(0, Math.round((high - pitch + 1) * row) - 1, width, 1);
  }
  pen.fillStyle = token(canvas, '--accent');
  for (const [start, end, pitch, velocity] of notes) {
    pen.globalAlpha = 0.35 + (0.65 * velocity) / 127;
    const x = (start / seconds) * width;
    pen.fillRect(x, (high - pitch) * row, Math.max(2, ((end - start) / seconds) * width - 1), Math.max(2, row - 0.5));
  }
  pen.globalAlpha = 1;
}

/**
 * At least an octave and a half, so that one note is no wall.
 * @param {readonly Note[]} notes
 */
export function pitchRange(notes) {
  const pitches = notes.map(([, , pitch]) => pitch);
  const [least, most] = [Math.min(...pitches), Math.max(...pitches)];
  const spare = Math.max(0, 18 - (most - least));
  return { low: Math.max(0, least - 1 - Math.floor(spare / 2)), high: Math.min(127, most + 1 + Math.ceil(spare / 2)) };
}

const NAMES = ['C', 'C♯', 'D', 'D♯', 'E', 'F', 'F♯', 'G', 'G♯', 'A', 'A♯', 'B'];

/** @param {number} pitch @returns {string} 60 is C4 */
export function pitchName(pitch) {
  return `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;
}
