/** Words in the person's language. Catalogues are flat: key -> text, or key -> plural forms. */

import * as format from './format.js';

/**
 * @typedef {string | Readonly<Partial<Record<Intl.LDMLPluralRule, string>>>} Message
 * @typedef {Readonly<Record<string, Message>>} Catalogue
 * @typedef {Record<string, string | number>} Params
 */

export const LANGUAGES = /** @type {const} */ (['en', 'ru']);

/**
 * The first language of the browser's list that we have.
 * @param {readonly string[]} wanted
 * @returns {string}
 */
export function preferred(wanted) {
  const short = wanted.map((tag) => tag.toLowerCase().split('-')[0] ?? '');
  return short.find((tag) => LANGUAGES.some((known) => known === tag)) ?? 'en';
}

/**
 * Fill in a message. `n` chooses the plural form and is written as a number.
 * @param {string} language
 * @param {Message} message
 * @param {Params} params
 */
export function fill(language, message, params) {
  const form = typeof message === 'string' ? message : pick(language, message, Number(params.n ?? 0));
  return form.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = params[name];
    if (value === undefined) return whole;
    return typeof value === 'number' ? format.number(language, value) : value;
  });
}

/**
 * @param {string} language
 * @param {Readonly<Partial<Record<Intl.LDMLPluralRule, string>>>} forms
 * @param {number} n
 */
function pick(language, forms, n) {
  return forms[new Intl.PluralRules(language).select(n)] ?? forms.other ?? '';
}

/** The words of one language, and the ways to write numbers in it. */
export class Words {
  /**
   * @param {string} language
   * @param {Catalogue} catalogue
   * @param {readonly string[]} [wanted] the browser's languages
   */
  constructor(language, catalogue, wanted = []) {
    this.language = language;
    this.locale = format.locale(language, wanted);
    this.catalogue = catalogue;
    /** @type {(key: string, params?: Params) => string} */
    this.t = (key, params = {}) => {
      const message = this.catalogue[key];
      // A missing key is a failing test; in front of a person the key itself is better than nothing.
      return message === undefined ? key : fill(this.language, message, params);
    };
  }

  /** @param {string} key */
  has(key) {
    return Object.hasOwn(this.catalogue, key);
  }

  /**
   * What a model or a separator is called: its own title, unless we have one in this language.
   * @param {{id: string, title: string}} info
   */
  name({ id, title }) {
    return this.has(`name.${id}`) ? this.t(`name.${id}`) : title;
  }

  /** @param {number} value @param {number} [digits] */
  number(value, digits) {
    return format.number(this.language, value, digits);
  }

  /** @param {number} count */
  bytes(count) {
    return format.bytes(this.language, count);
  }

  /** @param {number} seconds */
  duration(seconds) {
    return format.duration(this.language, seconds);
  }

  /** @param {number} at */
  when(at) {
    return format.when(this.locale, at, Date.now());
  }

  /** @param {number} share */
  percent(share) {
    return format.percent(this.language, share);
  }

  /** @param {readonly string[]} items */
  listing(items) {
    return format.listing(this.language, items);
  }
}

/**
 * @param {string} language
 * @returns {Promise<Words>}
 */
export async function loadWords(language) {
  const answer = await fetch(new URL(`../i18n/${language}.json`, import.meta.url));
  if (!answer.ok) throw new Error(`the words of ${language} answered ${answer.status}`);
  return new Words(language, await answer.json(), navigator.languages);
}
