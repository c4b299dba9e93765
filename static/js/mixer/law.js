/**
 * What a mix means, as arithmetic: who is heard, how loud, and on which side. The page, the rendered file and the
 * tests all go by this.
 *
 * @typedef {object} Strip one stem's place in a mix
 * @property {number} gainDb LOWEST_DB (silent) to HIGHEST_DB
 * @property {number} pan -1 left, 0 middle, 1 right
 * @property {boolean} mute
 * @property {boolean} solo
 *
 * @typedef {Readonly<Record<string, Readonly<Strip>>>} Strips stem name -> strip
 */

export const LOWEST_DB = -60;
export const HIGHEST_DB = 12;
/** What a mix that would clip is turned down to: a little under full scale. */
export const CEILING = 10 ** (-0.1 / 20);

/** @type {Readonly<Strip>} */
export const NEUTRAL = Object.freeze({ gainDb: 0, pan: 0, mute: false, solo: false });

/**
 * @param {number} db
 * @returns {number} factor; the fader's lowest place is silence
 */
export function gainOf(db) {
  return db <= LOWEST_DB ? 0 : 10 ** (db / 20);
}

/** @param {number} gain @returns {number} decibels, LOWEST_DB for silence */
export function decibels(gain) {
  return gain > 0 ? Math.max(LOWEST_DB, 20 * Math.log10(gain)) : LOWEST_DB;
}

/**
 * A soloed stem is heard whatever its mute says; while any is soloed, the others are not.
 * @param {Strips} strips
 * @param {string} name
 */
export function isHeard(strips, name) {
  const strip = strips[name] ?? NEUTRAL;
  const soloed = Object.values(strips).some((one) => one.solo);
  return soloed ? strip.solo : !strip.mute;
}

/** @param {Strips} strips @param {string} name @returns {number} factor, 0 when it is not heard */
export function heardGain(strips, name) {
  return isHeard(strips, name) ? gainOf((strips[name] ?? NEUTRAL).gainDb) : 0;
}

/**
 * The equal-power law of the Web Audio API's StereoPannerNode for a stereo signal: the side that is turned to gets
 * what the other loses.
 * @param {number} pan
 * @returns {[[number, number], [number, number]]} [left from left, from right], [right from left, from right]
 */
export function panMatrix(pan) {
  const turn = ((pan <= 0 ? pan + 1 : pan) * Math.PI) / 2;
  const [kept, lost] = [Math.cos(turn), Math.sin(turn)];
  return pan <= 0 ? [[1, kept], [0, lost]] : [[kept, 0], [lost, 1]];
}

/**
 * By what factor a mix must be turned down so that it does not clip; 1 when it does not.
 * @param {number} peak linear
 */
export function safeGain(peak) {
  return peak > 1 ? CEILING / peak : 1;
}

/**
 * @param {Strips} strips
 * @param {string} name
 * @param {Partial<Strip>} change
 * @returns {Strips}
 */
export function changed(strips, name, change) {
  return { ...strips, [name]: { ...(strips[name] ?? NEUTRAL), ...change } };
}

/** The strips of these stems: what is known of each, neutral for the rest. @param {Strips} known @param {readonly string[]} names */
export function stripsFor(known, names) {
  return Object.fromEntries(names.map((name) => [name, { ...NEUTRAL, ...known[name] }]));
}

/** @param {Strips} strips */
export function isNeutral(strips) {
  return Object.values(strips).every((strip) => strip.gainDb === 0 && strip.pan === 0 && !strip.mute && !strip.solo);
}

/**
 * The contract's Mix, as the server keeps it with the track a mix becomes.
 * @param {Strips} strips
 * @param {number} turnedDown factor of safeGain
 */
export function toContract(strips, turnedDown) {
  const stems = Object.entries(strips).map(([name, { gainDb, pan, mute, solo }]) => [name, { gain_db: gainDb, pan, mute, solo }]);
  return { stems: Object.fromEntries(stems), turned_down_db: turnedDown < 1 ? 20 * Math.log10(turnedDown) : 0 };
}
