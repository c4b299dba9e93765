/** Numbers, times and sizes in words, by Intl. Every function takes the language. */

/**
 * A position in music: 0:07, 12:05, 1:02:03.
 * @param {number} seconds
 */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(Number.isFinite(seconds) ? seconds : 0));
  const pad = (/** @type {number} */ part) => String(part).padStart(2, '0');
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h > 0 ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

/**
 * A position with tenths, for where a cut is made: 0:07.4
 * @param {number} seconds
 */
export function fineClock(seconds) {
  const tenths = Math.max(0, Math.round((Number.isFinite(seconds) ? seconds : 0) * 10));
  return `${clock(tenths / 10)}.${tenths % 10}`;
}

/**
 * @param {string} language
 * @param {number} value
 * @param {number} [digits] at most this many after the point
 */
export function number(language, value, digits = 2) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);
}

/**
 * @param {string} language
 * @param {number} value
 * @param {string} unit one that Intl knows: second, byte, megabyte ...
 * @param {number} [digits]
 */
function measure(language, value, unit, digits = 0) {
  return new Intl.NumberFormat(language, { style: 'unit', unit, unitDisplay: 'short', maximumFractionDigits: digits }).format(value);
}

/**
 * @param {string} language
 * @param {number} count
 */
export function bytes(language, count) {
  const units = ['byte', 'kilobyte', 'megabyte', 'gigabyte'];
  const power = count < 1000 ? 0 : Math.min(3, Math.floor(Math.log10(count) / 3));
  const value = count / 1000 ** power;
  return measure(language, value, units[power] ?? 'byte', power > 0 && value < 100 ? 1 : 0);
}

/**
 * A length of waiting or of music in words: 8 sec, 2 min 5 sec.
 * @param {string} language
 * @param {number} seconds
 */
export function duration(language, seconds) {
  const total = Math.max(0, seconds);
  if (total < 60) return measure(language, total, 'second', total < 10 && total % 1 > 0.05 ? 1 : 0);
  const whole = Math.round(total);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const parts = h > 0 ? [measure(language, h, 'hour'), measure(language, m, 'minute')] : [measure(language, m, 'minute')];
  if (h === 0 && s > 0) parts.push(measure(language, s, 'second'));
  return parts.join(' ');
}

/**
 * The browser's own kind of a language: English may be British, with other times and dates.
 * @param {string} language
 * @param {readonly string[]} wanted the browser's languages, the first is the dearest
 */
export const locale = (language, wanted) => wanted.find((tag) => tag.split('-')[0] === language) ?? language;

/**
 * @param {string} language or a locale
 * @param {number} at milliseconds since 1970
 * @param {number} now
 */
export function when(language, at, now) {
  const sameDay = new Date(at).toDateString() === new Date(now).toDateString();
  return new Intl.DateTimeFormat(language, sameDay ? { timeStyle: 'short' } : { dateStyle: 'medium', timeStyle: 'short' }).format(at);
}

/**
 * @param {string} language
 * @param {number} share 0 to 1
 */
export function percent(language, share) {
  return new Intl.NumberFormat(language, { style: 'percent', maximumFractionDigits: 0 }).format(share);
}

/**
 * @param {string} language
 * @param {readonly string[]} items
 */
export function listing(language, items) {
  return new Intl.ListFormat(language, { style: 'long', type: 'conjunction' }).format(items);
}
