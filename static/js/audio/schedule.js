/**
 * What to play next, as arithmetic: stretches of a clip laid end to end on the sound clock, around a loop when
 * there is one. Knows no sound hardware, so it can be tested to the frame.
 */

/**
 * @typedef {{start: number, end: number}} Span frames of the clip, the end not included
 * @typedef {{at: number, from: number, frames: number}} Piece `at` on the clock, in frames; `from` in the clip
 */

/**
 * The next stretch to schedule.
 * @param {number} position frame of the clip that comes next
 * @param {number} available frames of the clip that exist
 * @param {Span | null} loop
 * @param {number} most longest stretch
 * @returns {{from: number, frames: number, next: number} | null} null when there is nothing to play (yet)
 */
export function nextPiece(position, available, loop, most) {
  // A position past the loop's end plays on to the clip's end, as a person who sought there expects.
  const inLoop = loop !== null && position < loop.end;
  const end = inLoop ? Math.min(loop.end, available) : available;
  const frames = Math.min(most, end - position);
  if (frames <= 0) return null;
  const reached = position + frames;
  return { from: position, frames, next: inLoop && reached >= loop.end ? loop.start : reached };
}

/**
 * Where in the clip the sound is, given what was scheduled.
 * @param {readonly Piece[]} pieces in order of time
 * @param {number} now on the clock, in frames
 * @param {number} rest where it stands when nothing sounds
 */
export function positionAt(pieces, now, rest) {
  for (let index = pieces.length - 1; index >= 0; index -= 1) {
    const piece = /** @type {Piece} */ (pieces[index]);
    if (now >= piece.at) return piece.from + Math.min(piece.frames, now - piece.at);
  }
  return pieces[0]?.from ?? rest;
}
