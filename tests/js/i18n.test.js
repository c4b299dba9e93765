import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Words, fill, preferred } from '../../static/js/i18n.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
/** @param {string} path */
const read = (path) => readFileSync(join(root, path), 'utf8');
/** @type {Record<string, Record<string, string | Record<string, string>>>} */
const catalogues = { en: JSON.parse(read('static/i18n/en.json')), ru: JSON.parse(read('static/i18n/ru.json')) };
const facts = JSON.parse(read('tests/golden/page_facts.json'));

/** @param {string} folder @returns {string[]} */
function sources(folder) {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((item) =>
    item.isDirectory() ? sources(join(folder, item.name)) : item.name.endsWith('.js') ? [join(folder, item.name)] : [],
  );
}

const code = sources('static/js').map(read).join('\n');
const en = /** @type {Record<string, string | Record<string, string>>} */ (catalogues.en);
const prefixes = new Set(Object.keys(en).map((key) => key.split('.')[0]));

/** Keys that the code puts together, with everything that can stand in them. */
const made = [
  ...facts.parameters.flatMap((/** @type {any} */ item) => [
    `param.${item.name}`,
    ...(item.widget === 'model' ? [] : [`hint.${item.name}`]),
    ...item.choices.map((/** @type {string} */ choice) => `choice.${item.name}.${choice}`),
  ]),
  ...facts.parameters.filter((/** @type {any} */ item) => item.group !== 'model').map((/** @type {any} */ item) => `settings.group.${item.group}`),
  ...facts.error_codes.map((/** @type {string} */ name) => `error.${name}`),
  ...['queued', 'running', 'done', 'failed', 'cancelled', 'interrupted', 'sending', 'sent', 'refused'].map((name) => `status.${name}`),
  ...['queued', 'downloading', 'loading', 'preparing', 'generating', 'decoding', 'rendering', 'splitting', 'saving', 'finished'].map((name) => `phase.${name}`),
  ...['ready', 'downloadable', 'missing', 'broken'].flatMap((name) => [`model.state.${name}`, `models.state.${name}`]),
  ...['newest', 'oldest', 'name', 'duration'].map((name) => `library.sort.${name}`),
  ...['favourite', 'locked', 'stems'].map((name) => `library.${name}`),
  ...['auto', 'dark', 'light'].map((name) => `theme.${name}`),
  ...['continue', 'append'].flatMap((name) => [`chip.${name}`, `clips.mode.${name}`]),
  ...['one', 'two', 'three'].map((name) => `welcome.example.${name}`),
];

/** Whole keys that stand in the code. */
const written = [...code.matchAll(/'([a-z]+(?:\.[A-Za-z_]+)+)'/g)]
  .map(([, key]) => /** @type {string} */ (key))
  .filter((key) => prefixes.has(key.split('.')[0]) && !/\.(json|txt|js)$/.test(key));

test('every key that the code uses is in both catalogues', () => {
  for (const [language, catalogue] of Object.entries(catalogues)) {
    const missing = [...new Set([...written, ...made])].filter((key) => !Object.hasOwn(catalogue, key));
    assert.deepEqual(missing, [], `missing in ${language}`);
  }
});

test('no catalogue has a key that nothing uses', () => {
  const used = new Set([...written, ...made, 'error.unreachable']);
  // A key that is put together in the code begins with a template that stands there.
  const begun = [...code.matchAll(/`([a-z]+\.(?:[A-Za-z]+\.)?)\$\{/g)].map(([, start]) => /** @type {string} */ (start));
  const idle = Object.keys(en).filter((key) => !used.has(key) && !begun.some((start) => key.startsWith(start)));
  assert.deepEqual(idle, []);
});

test('the catalogues have the same keys, forms for every plural, and the same placeholders', () => {
  assert.deepEqual(Object.keys(catalogues.ru ?? {}).sort(), Object.keys(en).sort());
  const holes = (/** @type {string | Record<string, string>} */ message) =>
    (typeof message === 'string' ? [message] : Object.values(message)).map((text) => [...text.matchAll(/\{(\w+)\}/g)].map(([, name]) => name).sort().join());
  for (const [language, catalogue] of Object.entries(catalogues)) {
    const forms = new Intl.PluralRules(language).resolvedOptions().pluralCategories.slice().sort();
    for (const [key, message] of Object.entries(catalogue)) {
      if (typeof message !== 'string') assert.deepEqual(Object.keys(message).sort(), forms, `${language} ${key}`);
      assert.equal(typeof message === 'string', typeof en[key] === 'string', `${language} ${key}`);
      assert.deepEqual([...new Set(holes(message))], [...new Set(holes(/** @type {any} */ (en[key])))], `${language} ${key}`);
    }
  }
});

test('nothing in the Russian catalogue was left in English', () => {
  const allowed = /^(bar\.title|welcome\.example\.|param\.top_|choice\.format\.|table\.lufs)/;
  const left = Object.entries(catalogues.ru ?? {})
    .filter(([key, message]) => !allowed.test(key) && !/[а-яё]/i.test(typeof message === 'string' ? message : Object.values(message).join()))
    .map(([key]) => key);
  assert.deepEqual(left, []);
});

test('the plural form follows the number', () => {
  const message = catalogues.ru?.['library.count'] ?? '';
  const said = [1, 2, 5, 11, 21, 22].map((n) => fill('ru', message, { n }));
  assert.deepEqual(said, ['1 трек', '2 трека', '5 треков', '11 треков', '21 трек', '22 трека']);
});

test('what a person wrote is filled in as it is, markup and braces included', () => {
  assert.equal(fill('en', '{file} is here', { file: '<b>{n}</b>' }), '<b>{n}</b> is here');
});

test('a group of settings is not called what its only setting is called', () => {
  for (const group of new Set(facts.parameters.map((/** @type {any} */ item) => item.group))) {
    const [first, ...rest] = facts.parameters.filter((/** @type {any} */ item) => item.group === group);
    if (rest.length > 0) continue;
    for (const [language, catalogue] of Object.entries(catalogues)) {
      assert.notEqual(catalogue[`settings.group.${group}`], catalogue[`param.${first.name}`], language);
    }
  }
});

test('the first language of the browser that we have is chosen', () => {
  assert.equal(preferred(['de-DE', 'ru-RU', 'en']), 'ru');
  assert.equal(preferred(['ja']), 'en');
});

test('numbers in words are written as the language writes them', () => {
  // Between the thousands stands a space that does not break.
  assert.equal(new Words('ru', {}).number(1234.5), '1\u00a0234,5');
  assert.equal(new Words('en', {}).number(1234.5), '1,234.5');
});
