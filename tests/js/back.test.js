import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers';
import { wayBack } from '../../static/js/back.js';

/** A browser's history: steps come later, entries after the present one go when another is made. */
class Browser {
  constructor(entries = /** @type {any[]} */ ([null, null]), at = entries.length - 1) {
    this.entries = entries;
    this.at = at;
    this.card = false;
    const browser = this;
    /** @type {any} */
    this.page = {
      history: {
        get state() {
          return browser.entries[browser.at];
        },
        pushState: (/** @type {unknown} */ state) => {
          browser.entries = [...browser.entries.slice(0, browser.at + 1), state];
          browser.at += 1;
        },
        back: () => browser.go(-1),
      },
      addEventListener: (/** @type {string} */ _, /** @type {() => void} */ listen) => (browser.listen = listen),
    };
    this.listen = () => {};
    this.settle = wayBack(this.page, () => this.card, () => this.show(false));
  }

  /** @param {number} steps */
  go(steps) {
    setImmediate(() => {
      this.at = Math.max(0, this.at + steps);
      this.listen();
    });
  }

  /** @param {boolean} card */
  show(card) {
    this.card = card;
    this.settle();
  }
}

const soon = async () => {
  for (let turn = 0; turn < 5; turn += 1) await new Promise(setImmediate);
};

test('Back closes the card and stays on the page', async () => {
  const browser = new Browser();
  browser.show(true);
  assert.equal(browser.at, 2);
  browser.go(-1);
  await soon();
  assert.deepEqual([browser.card, browser.at], [false, 1]);
});

test('a card that is closed by itself, and one that follows another, leave nothing behind', async () => {
  const browser = new Browser();
  browser.show(true);
  browser.show(true);
  browser.show(false);
  await soon();
  assert.deepEqual([browser.card, browser.at], [false, 1]);
});

test('a card that opens before the other one\'s entry is gone stays open, and Back closes it', async () => {
  const browser = new Browser();
  browser.show(true);
  browser.show(false);
  browser.show(true);
  await soon();
  assert.deepEqual([browser.card, browser.at], [true, 2]);
  browser.go(-1);
  await soon();
  assert.deepEqual([browser.card, browser.at], [false, 1]);
});

test('after a reload under a card, and on the way forward to a closed one, the page stands before the card\'s entry', async () => {
  const browser = new Browser([null, null, { card: true }]);
  await soon();
  assert.deepEqual([browser.card, browser.at], [false, 1]);
  browser.go(1);
  await soon();
  assert.deepEqual([browser.card, browser.at], [false, 1]);
});
